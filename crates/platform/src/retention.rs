//! Deletes what nobody asks for any more: settled events, expired sessions, idempotency keys whose day is over.

use std::time::Duration;

use coordination::idempotency;

use crate::Platform;
use crate::auth::Sessions;
use crate::events;
use crate::lifecycle::{Tasks, Tick};

const PERIOD: Duration = Duration::from_secs(600);
const BATCH: i64 = 500;

/// Starts clearing, on every replica: rows that another one deletes are passed over.
pub fn spawn(platform: &Platform, tasks: &Tasks) {
    let platform = platform.clone();
    tasks.every("platform.retention", PERIOD, move || {
        let platform = platform.clone();
        async move { clear(&platform).await }
    });
}

async fn clear(platform: &Platform) -> anyhow::Result<Tick> {
    let now = platform.clock.now();
    let mut conn = platform.db.acquire().await?;
    let deleted = [
        events::purge(&mut conn, now, BATCH).await?,
        Sessions::purge(&mut conn, now, BATCH).await?,
        idempotency::purge(&mut conn, BATCH).await?,
    ];
    let most = deleted.into_iter().max().unwrap_or_default();
    Ok(Tick::after_batch(most as usize, BATCH))
}
