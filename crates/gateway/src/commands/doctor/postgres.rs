//! PostgreSQL: whether it is there, keeps what it promises, and has room for the replicas.

use std::time::Instant;

use devices::node::check::{Check, Standing};
use platform::db::{self, MIGRATOR};
use platform::{Clock, redis};
use sqlx::PgPool;

use super::{clock, latency, silent};
use crate::commands::stores::addresses;
use crate::serve::Config;
use coordination::{Keys, Registry};

/// The oldest version that is tested, as `server_version_num`.
const OLDEST: i32 = 140_000;
/// Connections that are left to operators and tools.
const SPARE: i64 = 10;

/// What is found.
pub async fn examine(url: &str, config: &Config) -> Vec<Check> {
    let db = match db::connect(url, (0, 1)).await {
        Ok(db) => db,
        Err(error) => return vec![silent(format!("{error:#}"))],
    };
    let checks = async {
        let mut checks = vec![version(&db).await?, migrations(&db).await?];
        checks.extend(durable(&db).await?);
        checks.push(connections(&db, config).await?);
        checks.extend(times(&db).await?);
        sqlx::Result::Ok(checks)
    };
    let found = checks.await;
    db.close().await;
    found.unwrap_or_else(|error: sqlx::Error| vec![silent(error.to_string())])
}

async fn version(db: &PgPool) -> sqlx::Result<Check> {
    let number: i32 = sqlx::query_scalar("select current_setting('server_version_num')::int")
        .fetch_one(db)
        .await?;
    let standing = match number >= OLDEST {
        true => Standing::Ok,
        false => Standing::Fail,
    };
    let found = format!("{}.{}", number / 10_000, number % 10_000);
    Ok(Check::new(
        "version",
        standing,
        found,
        "upgrade to PostgreSQL 14 or later",
    ))
}

async fn migrations(db: &PgPool) -> sqlx::Result<Check> {
    let known: Vec<i64> = MIGRATOR.iter().map(|migration| migration.version).collect();
    let is_there: bool = sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null")
        .fetch_one(db)
        .await?;
    let done: Vec<i64> = match is_there {
        true => {
            sqlx::query_scalar(
                "select version from _sqlx_migrations where success order by version",
            )
            .fetch_all(db)
            .await?
        }
        false => Vec::new(),
    };
    let missing = known
        .iter()
        .filter(|version| !done.contains(version))
        .count();
    let foreign = done
        .iter()
        .filter(|version| !known.contains(version))
        .count();
    let found = format!(
        "{} of {} done, {foreign} of another version",
        done.len() - foreign,
        known.len()
    );
    let (standing, advice) = match (missing, foreign) {
        (0, 0) => (Standing::Ok, ""),
        (0, _) => (
            Standing::Warn,
            "this program is older than the database: use the newer one",
        ),
        _ => (
            Standing::Warn,
            "`gateway migrate` does the rest; a replica that starts does too",
        ),
    };
    Ok(Check::new("migrations", standing, found, advice))
}

/// What must be on for a commit to be kept.
async fn durable(db: &PgPool) -> sqlx::Result<Vec<Check>> {
    let mut checks = Vec::new();
    for (name, advice) in [
        ("fsync", "set it to on: a crash destroys the database"),
        ("full_page_writes", "set it to on: a crash destroys pages"),
        (
            "synchronous_commit",
            "set it to on: a crash loses payments that were confirmed",
        ),
    ] {
        let value: String = sqlx::query_scalar("select current_setting($1)")
            .bind(name)
            .fetch_one(db)
            .await?;
        let standing = match value.as_str() {
            "off" => Standing::Fail,
            _ => Standing::Ok,
        };
        checks.push(Check::new(name, standing, value, advice));
    }
    Ok(checks)
}

/// Whether every process of the cluster may have its whole pool.
async fn connections(db: &PgPool, config: &Config) -> sqlx::Result<Check> {
    let (most, used): (i64, i64) = sqlx::query_as(
        "select current_setting('max_connections')::bigint, (select count(*) from pg_stat_activity where backend_type = 'client backend')",
    )
    .fetch_one(db)
    .await?;
    let processes = processes(config).await.unwrap_or(0);
    let pool = i64::from(config.settings.database_pool.1);
    let wanted = processes * pool + SPARE;
    let found = format!("{used} of {most} used; {processes} processes may take {pool} each");
    let standing = match wanted > most {
        true => Standing::Warn,
        false => Standing::Ok,
    };
    let advice = format!(
        "raise max_connections to {wanted}, or lower DATABASE_POOL_MAX, or put PgBouncer (session pooling) between"
    );
    Ok(Check::new("connections", standing, found, &advice))
}

/// How many processes the registry knows.
async fn processes(config: &Config) -> Option<i64> {
    let url = addresses(&config.settings).ok()?.redis;
    let redis = redis::connect(&url).await.ok()?.pool;
    let registry = Registry::new(redis, Keys::new(&config.settings.key_prefix));
    let snapshot = registry.read().await.ok()?;
    let mut known: Vec<_> = snapshot
        .entries()
        .map(|entry| (entry.announcement.host.clone(), entry.announcement.pid))
        .collect();
    known.sort_unstable();
    known.dedup();
    i64::try_from(known.len()).ok()
}

async fn times(db: &PgPool) -> sqlx::Result<[Check; 2]> {
    let mut taken = Vec::new();
    let mut skew = 0.0;
    for _ in 0..5 {
        let began = Instant::now();
        let theirs: f64 =
            sqlx::query_scalar("select extract(epoch from clock_timestamp())::float8")
                .fetch_one(db)
                .await?;
        let way = began.elapsed();
        let ours = Clock::system().now().utc().timestamp_micros() as f64 / 1e6;
        skew = theirs - (ours - way.as_secs_f64() / 2.0);
        taken.push(way);
    }
    Ok([clock(skew), latency(taken)])
}
