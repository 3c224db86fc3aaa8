//! The cluster: instances, their versions, what waits, and what was given up.

use std::collections::BTreeSet;

use contracts::Service;
use coordination::{Jobs, Keys, Registry, Snapshot};
use devices::node::check::{Check, Standing};
use platform::{db, redis};
use sqlx::PgPool;

use super::silent;
use crate::commands::stores::addresses;
use crate::serve::Config;

/// An event that was due so many seconds ago, and again since, is not handled as it should be.
const LATE: f64 = 60.0;

/// What is found.
pub async fn examine(database: &str, config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    match registry(config).await {
        Ok(snapshot) => checks.extend(instances(&snapshot)),
        Err(error) => checks.push(silent(format!("the registry: {error:#}"))),
    }
    match db::connect(database, (0, 1)).await {
        Ok(db) => {
            checks.extend(waiting(&db).await.unwrap_or_else(|error| {
                // A database that was never migrated has no such tables.
                vec![Check::new(
                    "events",
                    Standing::Unknown,
                    error.to_string(),
                    "",
                )]
            }));
            checks.push(cron(&db).await);
            db.close().await;
        }
        Err(error) => checks.push(silent(format!("{error:#}"))),
    }
    checks
}

async fn registry(config: &Config) -> anyhow::Result<Snapshot> {
    let redis = redis::connect(&addresses(&config.settings)?.redis)
        .await?
        .pool;
    let registry = Registry::new(redis, Keys::new(&config.settings.key_prefix));
    Ok(registry.read().await?)
}

fn instances(snapshot: &Snapshot) -> Vec<Check> {
    let count = |service: Service| snapshot.of(service.name()).len();
    let told: Vec<String> = Service::ALL
        .iter()
        .map(|service| format!("{} {}", count(*service), service.name()))
        .collect();
    let missing = Service::ALL.iter().any(|service| count(*service) == 0);
    let single = Service::ALL.iter().any(|service| count(*service) == 1);
    let (standing, advice) = match (missing, single) {
        (true, _) => (
            Standing::Fail,
            "start a replica that serves what is missing",
        ),
        (false, true) => (
            Standing::Warn,
            "start another replica: what has one instance is away while that restarts",
        ),
        (false, false) => (Standing::Ok, ""),
    };
    let versions: BTreeSet<&str> = snapshot
        .entries()
        .map(|entry| entry.announcement.version.as_str())
        .collect();
    let mixed = match versions.len() > 1 {
        true => Standing::Warn,
        false => Standing::Ok,
    };
    let versions: Vec<&str> = versions.into_iter().collect();
    vec![
        Check::new("instances", standing, told.join(", "), advice),
        Check::new(
            "versions",
            mixed,
            versions.join(", "),
            "finish the upgrade: `gateway reload`",
        ),
    ]
}

/// What waits in queues, and what was given up.
async fn waiting(db: &PgPool) -> sqlx::Result<Vec<Check>> {
    let (late, dead): (i64, i64) = sqlx::query_as(
        "-- doctor::waiting
        select (select count(*) from platform.outbox where settled_at is null and attempts > 1
                and due_at < clock_timestamp() - make_interval(secs => $1)),
            (select count(*) from platform.dead_letters where buried_at is not null)",
    )
    .bind(LATE)
    .fetch_one(db)
    .await?;
    let judge = |count| match count {
        0 => Standing::Ok,
        _ => Standing::Warn,
    };
    Ok(vec![
        Check::new(
            "events",
            judge(late),
            format!("{late} are late"),
            "see that an instance of each service runs; its log tells why it does not handle them",
        ),
        Check::new(
            "dead letters",
            judge(dead),
            dead.to_string(),
            "read GET /api/gateway/dead-letters, mend the cause, then replay or discard them",
        ),
    ])
}

async fn cron(db: &PgPool) -> Check {
    let jobs = match Jobs::new(db.clone()).overview(0).await {
        Ok(jobs) => jobs,
        Err(error) => return Check::new("cron", Standing::Unknown, error.to_string(), ""),
    };
    let bad: Vec<String> = jobs
        .iter()
        .filter_map(|job| match (&job.told.paused_at, job.told.failures) {
            (Some(_), _) => Some(format!("{} is paused", job.told.job)),
            (None, failures @ 1..) => {
                Some(format!("{} failed {failures} times in a row", job.told.job))
            }
            _ => None,
        })
        .collect();
    match bad.is_empty() {
        true => Check::new("cron", Standing::Ok, format!("{} jobs", jobs.len()), ""),
        false => Check::new(
            "cron",
            Standing::Warn,
            bad.join(", "),
            "`gateway cron history JOB` tells why, `gateway cron resume JOB` lets it go on",
        ),
    }
}
