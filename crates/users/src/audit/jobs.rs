//! Removes entries whose time is over.

use std::time::Duration;

use platform::lifecycle::{Tasks, Tick};

use super::db;
use crate::Users;

const BATCH: i64 = 500;

/// Starts the periodic step.
pub fn spawn_jobs(state: &Users, tasks: &Tasks) {
    let state = state.clone();
    tasks.every(
        "users.purge_audit_log",
        Duration::from_secs(600),
        move || {
            let state = state.clone();
            async move { purge(&state).await }
        },
    );
}

/// Repeats the step until it finds nothing more.
///
/// # Errors
/// Where it fails.
pub async fn run_jobs(state: &Users) -> anyhow::Result<()> {
    while purge(state).await? == Tick::More {}
    Ok(())
}

async fn purge(state: &Users) -> anyhow::Result<Tick> {
    let before = state.platform.clock.now() - state.config.audit_lifetime;
    let mut conn = state.platform.db.acquire().await?;
    let purged = db::purge(&mut conn, before, BATCH).await?;
    Ok(Tick::after_batch(purged.try_into()?, BATCH))
}
