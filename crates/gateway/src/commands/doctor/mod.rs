//! `gateway doctor`: what is wrong with a cluster, or soon will be, and what to do about it.

mod cluster;
mod machine;
mod postgres;
mod redis;
mod stored;

use std::future::Future;
use std::time::Duration;

use devices::node::check::{Check, Standing};
use platform::Env;
use serde::Serialize;
use serde_json::json;
use tokio::time::timeout;

use super::say;
use super::stores::{Addresses, addresses};
use super::table::table;
use crate::serve::Config;

/// How long one part of the examination may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// By how many seconds clocks may differ before it matters: tokens and credentials of services are judged by them.
const SKEW: f64 = 1.0;
const LARGE_SKEW: f64 = 10.0;

/// The examination of one part.
#[derive(Serialize)]
struct Part {
    /// Which.
    part: String,
    checks: Vec<Check>,
}

/// Examines everything that can be reached from here; the exit code is 1 where something fails, and 78 where the configuration
/// does.
pub async fn doctor(env: Env, as_json: bool) -> anyhow::Result<i32> {
    let config = match Config::checked(env) {
        Ok(config) => config,
        Err(error) => {
            let faults = error.0.iter().map(|fault| {
                let found = format!("{}: {}", fault.variable, fault.message);
                Check::new(
                    "setting",
                    Standing::Fail,
                    found,
                    "correct it, then look again",
                )
            });
            let part = part("configuration", faults.collect());
            show(&[part], as_json)?;
            return Ok(platform::config::EXIT_CONFIG);
        }
    };
    let settings = &config.settings;
    let found = format!("right, for the profile {}", settings.profile.name());
    let right = Check::new("settings", Standing::Ok, found, "");
    let mut parts = vec![part("configuration", vec![right])];
    match addresses(settings) {
        Ok(Addresses { redis, database }) => {
            let (postgres, redis, stored) = tokio::join!(
                within("PostgreSQL", postgres::examine(&database, &config)),
                within("Redis", redis::examine(&redis, settings)),
                within("objects", stored::examine(settings)),
            );
            parts.extend([postgres, redis, stored]);
            parts.push(within("cluster", cluster::examine(&database, &config)).await);
        }
        Err(error) => {
            let advice = "the stores and the cluster are examined when a replica runs";
            let check = Check::new("stores", Standing::Unknown, format!("{error:#}"), advice);
            parts.push(part("stores", vec![check]));
            parts.push(within("objects", stored::examine(settings)).await);
        }
    }
    parts.push(within("machine", machine::examine(&config)).await);
    if let Ok(Addresses { database, .. }) = addresses(settings) {
        parts.extend(nodes(&database, &config).await);
    }
    show(&parts, as_json)?;
    let mut checks = parts.iter().flat_map(|part| &part.checks);
    Ok(checks.any(|check| check.status == Standing::Fail).into())
}

/// What `gateway nodes check` says of each node.
async fn nodes(database: &str, config: &Config) -> Vec<Part> {
    let asking = async {
        let db = platform::db::connect(database, (0, 1)).await?;
        let reports = devices::check_nodes(&db, &config.devices, None).await;
        db.close().await;
        anyhow::Ok(reports?)
    };
    match timeout(PATIENCE * 2, asking).await {
        Ok(Ok(reports)) => reports
            .into_iter()
            .map(|report| part(format!("node {}", report.node), report.checks))
            .collect(),
        Ok(Err(error)) => vec![part("nodes", vec![silent(format!("{error:#}"))])],
        Err(_) => vec![part("nodes", vec![silent("no answer in time".to_owned())])],
    }
}

async fn within(name: &str, examination: impl Future<Output = Vec<Check>>) -> Part {
    let checks = timeout(PATIENCE, examination).await;
    part(
        name,
        checks.unwrap_or_else(|_| vec![silent(format!("no answer within {PATIENCE:?}"))]),
    )
}

fn part(name: impl Into<String>, checks: Vec<Check>) -> Part {
    Part {
        part: name.into(),
        checks,
    }
}

fn silent(found: String) -> Check {
    let advice = "see that it runs and can be reached from this machine";
    Check::new("answers", Standing::Fail, found, advice)
}

/// How far a clock is from ours, in seconds.
fn clock(skew: f64) -> Check {
    let standing = match skew.abs() {
        skew if skew > LARGE_SKEW => Standing::Fail,
        skew if skew > SKEW => Standing::Warn,
        _ => Standing::Ok,
    };
    let found = format!("{skew:+.3} s from this machine's");
    let advice = "let an NTP service keep the clocks of all machines (chrony, systemd-timesyncd)";
    Check::new("clock", standing, found, advice)
}

/// How long a question takes on its way.
fn latency(mut taken: Vec<Duration>) -> Check {
    taken.sort_unstable();
    let median = taken.get(taken.len() / 2).copied().unwrap_or_default();
    let standing = match median > Duration::from_millis(20) {
        true => Standing::Warn,
        false => Standing::Ok,
    };
    let found = format!("{:.2} ms there and back", median.as_secs_f64() * 1000.0);
    let advice = "bring replicas and stores closer together: a request asks several times";
    Check::new("latency", standing, found, advice)
}

fn show(parts: &[Part], as_json: bool) -> anyhow::Result<()> {
    let of = |standing| {
        let checks = parts.iter().flat_map(|part| &part.checks);
        checks.filter(|check| check.status == standing).count()
    };
    let (fails, warnings) = (of(Standing::Fail), of(Standing::Warn));
    if as_json {
        let told = json!({ "fails": fails, "warnings": warnings, "parts": parts });
        return say(&serde_json::to_string_pretty(&told)?);
    }
    let rows = parts.iter().flat_map(|part| {
        part.checks.iter().map(|check| {
            vec![
                part.part.clone(),
                check.name.to_owned(),
                check.status.as_str().to_owned(),
                check.found.clone(),
                check.advice.clone().unwrap_or_default(),
            ]
        })
    });
    say(&table(
        &["PART", "CHECK", "STATUS", "FOUND", "WHAT TO DO"],
        rows,
    ))?;
    say(&match (fails, warnings) {
        (0, 0) => "\nnothing is wrong".to_owned(),
        (0, warnings) => format!("\nnothing fails; warnings: {warnings}"),
        (fails, warnings) => format!("\nfails: {fails}, warnings: {warnings}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_and_a_long_way_are_told() {
        assert_eq!(clock(0.4).status, Standing::Ok);
        assert_eq!(clock(-1.5).status, Standing::Warn);
        assert_eq!(clock(11.0).status, Standing::Fail);
        let of =
            |millis: &[u64]| latency(millis.iter().map(|ms| Duration::from_millis(*ms)).collect());
        assert_eq!(of(&[1, 500, 2]).status, Standing::Ok);
        assert_eq!(of(&[30, 1, 40]).status, Standing::Warn);
        assert_eq!(of(&[]).status, Standing::Ok);
    }
}
