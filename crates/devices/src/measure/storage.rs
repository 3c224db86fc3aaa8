//! How much storage devices in containers use: an engine walks all files of a container to tell, so it is asked seldom, of few
//! at a time, and never while somebody waits.

use std::time::Duration;

use chrono::TimeDelta;
use contracts::DeviceId;
use futures::StreamExt;
use platform::lifecycle::Tick;
use platform::problem::causes;
use tracing::debug;

use super::db;
use crate::Devices;

/// How often a replica looks what is due.
pub const LOOK_EVERY: Duration = Duration::from_secs(20);
/// How often the storage of each device is counted.
const EVERY: TimeDelta = TimeDelta::minutes(10);
/// How many devices one step counts, and how many at once.
const BATCH: i64 = 20;
const AT_ONCE: usize = 2;

/// Counts what is due and nobody else counts. What a replica has claimed that dies is counted when it is due again.
pub async fn step(state: &Devices) -> anyhow::Result<Tick> {
    let nodes = state.runtimes.engines.answering();
    if nodes.is_empty() {
        return Ok(Tick::Idle);
    }
    let due = {
        let mut conn = state.platform.db.acquire().await?;
        let now = state.platform.clock.shared(&mut conn).await?;
        db::claim_storage(&mut conn, &nodes, now, now - EVERY, BATCH).await?
    };
    let claimed = due.len();
    let counting = due
        .into_iter()
        .map(|(device, node)| count(state, device, node));
    let counting = futures::stream::iter(counting).buffer_unordered(AT_ONCE);
    let counted: Vec<Option<(DeviceId, f64)>> = counting.collect().await;
    let counted: Vec<(DeviceId, f64)> = counted.into_iter().flatten().collect();
    if !counted.is_empty() {
        let mut conn = state.platform.db.acquire().await?;
        db::write_storage(&mut conn, &counted).await?;
    }
    Ok(Tick::after_batch(claimed, BATCH))
}

/// Counts the storage of one device, in megabytes.
async fn count(state: &Devices, device: DeviceId, node: String) -> Option<(DeviceId, f64)> {
    let counted = match state.runtimes.engines.of(&node) {
        Ok(engine) => engine.storage(&device).await,
        Err(error) => Err(error),
    };
    match counted {
        Ok(bytes) => bytes.map(|bytes| (device, bytes as f64 / 1_048_576.0)),
        Err(error) => {
            debug!(device.id = %device, "the storage of device {device} was not counted: {}", causes(&error));
            None
        }
    }
}
