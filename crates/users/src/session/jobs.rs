//! What runs beside the requests: ends that a crash kept from being told, and the forgetting of old sessions.

use std::time::Duration;

use chrono::TimeDelta;
use platform::lifecycle::{Tasks, Tick};
use tracing::warn;

use super::{db, enforce};
use crate::Users;

const BATCH: i64 = 100;
/// Who decided an end tells it within a moment; a job that comes first would only do it twice.
const OWN_TIME: TimeDelta = TimeDelta::seconds(2);
/// How long a session that is over stays for those who look into what happened.
const KEPT: TimeDelta = TimeDelta::days(30);

/// Starts the periodic steps.
pub fn spawn_jobs(state: &Users, tasks: &Tasks) {
    let enforcing = state.clone();
    tasks.every(
        "users.enforce_ended_sessions",
        Duration::from_secs(1),
        move || {
            let state = enforcing.clone();
            async move { enforce_ended(&state).await }
        },
    );
    let purging = state.clone();
    tasks.every(
        "users.purge_sessions",
        Duration::from_secs(600),
        move || {
            let state = purging.clone();
            async move { purge(&state).await }
        },
    );
}

/// Repeats each step until it finds nothing more.
///
/// # Errors
/// Where a step fails.
pub async fn run_jobs(state: &Users) -> anyhow::Result<()> {
    while enforce_ended(state).await? == Tick::More {}
    while purge(state).await? == Tick::More {}
    Ok(())
}

/// Tells the instances of ends that nobody told them. Safe on any number of replicas: telling twice changes nothing.
async fn enforce_ended(state: &Users) -> anyhow::Result<Tick> {
    let before = state.platform.clock.now() - OWN_TIME;
    let mut conn = state.platform.db.acquire().await?;
    let ids = db::unenforced(&mut conn, before, BATCH).await?;
    drop(conn);
    if let Err(error) = enforce(state, &ids).await {
        // The growing pauses after failures are not for this step: it has a second once Redis is back.
        warn!(
            "{} sessions are not ended everywhere yet: {error}",
            ids.len()
        );
        return Ok(Tick::Idle);
    }
    Ok(Tick::after_batch(ids.len(), BATCH))
}

async fn purge(state: &Users) -> anyhow::Result<Tick> {
    let before = state.platform.clock.now() - KEPT;
    let mut conn = state.platform.db.acquire().await?;
    let purged = db::purge(&mut conn, before, BATCH).await?;
    Ok(Tick::after_batch(purged.try_into()?, BATCH))
}
