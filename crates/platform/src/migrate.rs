//! Bringing the schemas up to date while other replicas are at work.
//!
//! A change to a table waits for whoever uses it, and all who come later wait behind it: so it waits for seconds, gives
//! way, and is tried again.

use std::time::Duration;

use anyhow::Context;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use tokio::time::Instant;
use tracing::info;

use crate::db::MIGRATOR;

/// How long a statement of a migration runs: longer than one of a request.
const STATEMENT_TIMEOUT: &str = "set statement_timeout = '10min'";
/// How long it waits for a lock; those behind it wait as long.
const LOCK_TIMEOUT: &str = "set lock_timeout = '3s'";
/// How long a replica tries, and waits for another one that migrates, before it gives up.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long those who waited behind a migration have to themselves before it is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// The advisory lock of the replica that migrates.
const LOCK: i64 = 0x0063_6c6f_7564_7068;

/// Brings the schemas up to date. Safe on several replicas at once, beside others at work.
///
/// # Errors
/// Where a migration fails, or does not get a lock for ten minutes; those before it stay.
pub async fn migrate(db: &PgPool) -> anyhow::Result<()> {
    migrate_within(db, PATIENCE).await
}

/// Brings the schemas up to date, in tries for so long.
///
/// # Errors
/// Where a migration fails, or does not get a lock; those before it stay.
pub async fn migrate_within(db: &PgPool, patience: Duration) -> anyhow::Result<()> {
    let mut connection = db.acquire().await.context("migrating the database")?;
    // Its settings and its advisory lock end with it.
    connection.close_on_drop();
    for setting in [STATEMENT_TIMEOUT, LOCK_TIMEOUT] {
        let set = sqlx::query(setting).execute(&mut *connection).await;
        set.context("migrating the database")?;
    }
    let ends = Instant::now() + patience;
    while !attempt(&mut connection, Instant::now() >= ends).await? {
        tokio::time::sleep(TRY_AGAIN).await;
    }
    connection.close().await.context("migrating the database")
}

/// Tries once; `false` where others hold what it needs and it may try again.
async fn attempt(connection: &mut PgConnection, is_last: bool) -> anyhow::Result<bool> {
    // Not waited for in the server: an index that is built concurrently waits for all statements, also for that one.
    let locked: bool = sqlx::query_scalar("select pg_try_advisory_lock($1)")
        .bind(LOCK)
        .fetch_one(&mut *connection)
        .await
        .context("migrating the database")?;
    if !locked {
        anyhow::ensure!(
            !is_last,
            "another replica has been migrating the database for too long"
        );
        return Ok(false);
    }
    let run = run(connection).await;
    // Taken anew by each try, and counted by the server.
    sqlx::query("select pg_advisory_unlock($1)")
        .bind(LOCK)
        .execute(&mut *connection)
        .await
        .context("migrating the database")?;
    match run {
        Ok(()) => Ok(true),
        Err(MigrateError::ExecuteMigration(error, version)) if is_in_the_way(&error) => {
            anyhow::ensure!(
                !is_last,
                "migration {version} does not get its locks ({error}): long transactions hold tables that it changes; \
                 pg_stat_activity shows them; end them, or start again when they are over"
            );
            info!("migration {version} gives way to those at work, and is tried again: {error}");
            Ok(false)
        }
        Err(error) => Err(error).context("migrating the database"),
    }
}

async fn run(connection: &mut PgConnection) -> Result<(), MigrateError> {
    drop_invalid_indices(connection).await?;
    let mut migrator = Migrator {
        migrations: MIGRATOR.migrations.clone(),
        ..Migrator::DEFAULT
    };
    // While an upgrade rolls, replicas of the old version meet migrations of the new one, and must be able to start.
    migrator.set_ignore_missing(true).set_locking(false);
    migrator.run(connection).await
}

/// An index that was built concurrently and could not be finished stays, without use: `if not exists` would keep it so.
async fn drop_invalid_indices(connection: &mut PgConnection) -> sqlx::Result<()> {
    let names: Vec<String> = sqlx::query_scalar(
        "-- migrate::drop_invalid_indices
        select format('%I.%I', n.nspname, c.relname)
        from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace
        where not i.indisvalid and c.relkind = 'i' and n.nspname !~ '^pg_'
            and not exists (select from pg_stat_progress_create_index p where p.index_relid = i.indexrelid)",
    )
    .fetch_all(&mut *connection)
    .await?;
    for name in names {
        info!("drops the index {name}, which was never finished");
        let drop = format!("drop index concurrently if exists {name}");
        sqlx::raw_sql(AssertSqlSafe(drop))
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Whether a statement gave way: it did not get a lock in time, or was chosen where two waited for each other.
fn is_in_the_way(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == "55P03" || code == "40P01")
}
