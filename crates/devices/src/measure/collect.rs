//! Measuring: each replica claims what is due in the slot, a batch at a time, and asks a few runtimes at once.

use std::time::Duration;

use chrono::DateTime;
use contracts::Timestamp;
use futures::StreamExt;
use platform::lifecycle::Tick;
use platform::problem::causes;
use tokio::time::timeout;
use tracing::debug;

use super::db::{self, Due, Measured};
use super::{Counted, between};
use crate::runtime::RuntimeError;
use crate::{Devices, metrics};

/// How many devices one step measures, and how many at once: few enough that they are written soon.
const BATCH: i64 = 40;
const AT_ONCE: usize = 8;
/// How long one device may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Measures what is due and nobody else measures.
pub async fn step(state: &Devices) -> anyhow::Result<Tick> {
    let (slot, due) = {
        let mut conn = state.platform.db.acquire().await?;
        let now = state.platform.clock.shared(&mut conn).await?;
        let slot = slot(now, state.config.measure_every);
        let nodes = state.runtimes.engines.answering();
        let reach = (&nodes[..], state.runtimes.simulated.host());
        (slot, db::claim(&mut conn, slot, reach, BATCH).await?)
    };
    if due.is_empty() {
        return Ok(Tick::Idle);
    }
    let claimed = due.len();
    let measuring = futures::stream::iter(due.into_iter().map(|due| measure(state, due)));
    let measured: Vec<Option<Measured>> = measuring.buffer_unordered(AT_ONCE).collect().await;
    let measured: Vec<Measured> = measured.into_iter().flatten().collect();
    metrics::measured(measured.len(), claimed - measured.len());
    if !measured.is_empty() {
        let mut tx = state.platform.db.begin().await?;
        db::write(&mut tx, &measured).await?;
        tx.commit().await?;
    }
    debug!(
        "measured {} of {claimed} devices for {slot}",
        measured.len()
    );
    Ok(Tick::after_batch(claimed, BATCH))
}

/// Measures one device; one that does not answer is left to the next slot.
async fn measure(state: &Devices, due: Due) -> Option<Measured> {
    let counting = async {
        let runtime = state.runtimes.of(due.runtime, &due.node)?;
        runtime.measure(&due.device_id).await
    };
    let counted: Result<Option<Counted>, RuntimeError> =
        timeout(PATIENCE, counting).await.unwrap_or_else(|_| {
            Err(RuntimeError::Silent {
                tried: "measure a device",
                within: PATIENCE,
            })
        });
    let counted = counted.unwrap_or_else(|error| {
        debug!(device.id = %due.device_id, "device {} was not measured: {}", due.device_id, causes(&error));
        None
    })?;
    let at = state.platform.clock.now();
    let used = between(&due.before(at), &counted, due.cpu_cores);
    Some(Measured {
        due,
        at,
        counted,
        used,
    })
}

/// The slot that a moment is in.
fn slot(now: Timestamp, every: Duration) -> Timestamp {
    let every = i64::try_from(every.as_millis()).unwrap_or(i64::MAX).max(1);
    let millis = now.utc().timestamp_millis();
    let begun = millis - millis.rem_euclid(every);
    DateTime::from_timestamp_millis(begun).map_or(now, Timestamp::from)
}
