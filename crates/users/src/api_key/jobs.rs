//! What runs beside the requests: the forgetting of deleted keys.

use std::time::Duration;

use chrono::TimeDelta;
use platform::auth::ApiKeys;
use platform::lifecycle::{Tasks, Tick};

use super::db;
use crate::Users;

const BATCH: i64 = 100;
/// How long a deleted key stays: until every process has heard of it, however long it was paused.
const KEPT: TimeDelta = TimeDelta::days(1);

/// Starts the periodic step.
pub fn spawn_jobs(state: &Users, tasks: &Tasks) {
    let state = state.clone();
    tasks.every(
        "users.purge_api_keys",
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
    let before = state.platform.clock.now() - KEPT;
    let mut tx = state.platform.db.begin().await?;
    let purged = db::purge(&mut tx, before, BATCH).await?;
    ApiKeys::forget_uses(&mut tx, &purged).await?;
    tx.commit().await?;
    Ok(Tick::after_batch(purged.len(), BATCH))
}
