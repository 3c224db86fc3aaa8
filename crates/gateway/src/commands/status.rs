//! `gateway status`: the cluster as its registry has it.

use std::collections::HashSet;

use contracts::{Service, Timestamp};
use coordination::{Entry, Keys, Registry, Snapshot};
use platform::{Clock, Env, redis};

use super::say;
use super::stores::addresses;
use super::table::{span, table};
use crate::local::Instance;
use crate::serve::Config;

/// Shows every instance of every service.
pub async fn status(env: Env, json: bool) -> anyhow::Result<i32> {
    let settings = Config::from_env(env)?.settings;
    let redis = redis::connect(&addresses(&settings)?.redis).await?.pool;
    let registry = Registry::new(redis, Keys::new(&settings.key_prefix));
    let snapshot = registry.read().await?;
    if json {
        let instances: Vec<Instance> = snapshot.entries().map(Instance::of).collect();
        say(&serde_json::to_string_pretty(&instances)?)?;
    } else {
        say(&shown(&snapshot, Clock::system().now()))?;
    }
    Ok(0)
}

const HEAD: [&str; 11] = [
    "SERVICE", "INSTANCE", "ADDRESS", "HOST", "PID", "VERSION", "UPTIME", "MEMORY", "REQ/S",
    "HEARD", "HEALTH",
];

fn shown(snapshot: &Snapshot, now: Timestamp) -> String {
    let mut rows = Vec::new();
    let mut seen = HashSet::new();
    for service in Service::ALL {
        let entries = snapshot.of(service.name());
        if entries.is_empty() {
            let mut row = vec![service.name().to_owned(), "none".to_owned()];
            row.resize(HEAD.len() - 1, "-".to_owned());
            row.push("down".to_owned());
            rows.push(row);
        }
        rows.extend(entries.iter().map(|entry| {
            let told = &entry.announcement;
            let is_first = seen.insert((told.host.clone(), told.pid));
            row(entry, now, is_first)
        }));
    }
    table(&HEAD, rows.into_iter())
}

/// A row; the memory is the process's, and stands in the first of its rows alone.
fn row(entry: &Entry, now: Timestamp, is_first: bool) -> Vec<String> {
    let told = &entry.announcement;
    // How long the last heartbeat is ago: one that died is listed for three seconds.
    let heard = (now.utc() - entry.heartbeat_at).num_milliseconds().max(0);
    let uptime = (now.utc() - told.started_at).num_seconds().max(0);
    vec![
        told.service.clone(),
        entry.instance.clone(),
        told.address.clone(),
        told.host.clone(),
        told.pid.to_string(),
        told.version.clone(),
        span(uptime),
        match is_first {
            true => format!("{} MB", entry.load.memory_bytes / 1_000_000),
            false => "as above".to_owned(),
        },
        format!("{:.1}", entry.load.requests_per_second),
        format!("{:.1}s ago", heard as f64 / 1000.0),
        Instance::of(entry).health().to_owned(),
    ]
}
