//! What is done about snapshots without anybody asking: old ones go, and so do images that no snapshot knows.

use anyhow::Context;
use chrono::TimeDelta;
use platform::lifecycle::Tick;
use platform::problem::causes;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::db::Aged;
use super::{api, db};
use crate::device::{self, Status};
use crate::{Devices, metrics, moving};

/// How many old snapshots one look takes.
const BATCH: i64 = 100;

/// Deletes snapshots that are older than they may become, as their owners would.
pub async fn retire_aged(state: &Devices, cancelled: &CancellationToken) -> anyhow::Result<()> {
    if state.config.snapshot_days == 0 {
        return Ok(());
    }
    let (mut total, mut behind) = (0, None);
    while !cancelled.is_cancelled() {
        let aged = {
            let mut conn = state.platform.db.acquire().await?;
            let now = state.platform.clock.shared(&mut conn).await?;
            let before = now.utc() - TimeDelta::days(state.config.snapshot_days);
            db::aged(&mut conn, before.into(), behind.as_ref(), BATCH)
                .await
                .context("looking for old snapshots")?
        };
        total += retire(state, &aged)
            .await
            .context("deleting old snapshots")?;
        if Tick::after_batch(aged.len(), BATCH) == Tick::Idle {
            break;
        }
        behind = aged.last().cloned();
    }
    if total > 0 {
        info!("deleted {total} snapshots that were too old");
    }
    Ok(())
}

async fn retire(state: &Devices, aged: &[Aged]) -> sqlx::Result<usize> {
    let mut retired = 0;
    for Aged { id, device_id, .. } in aged {
        let now = state.platform.clock.now();
        let mut tx = state.platform.db.begin().await?;
        let locked = device::db::lock(&mut tx, device_id).await?;
        if locked.is_some_and(|device| !matches!(device.status, Status::Deleting | Status::Deleted))
            && api::retire(&mut tx, device_id, id, now).await?
        {
            retired += 1;
        }
        tx.commit().await?;
    }
    state.operations_due.notify_one();
    Ok(retired)
}

/// Removes what this replica's runtimes keep of snapshots that there are not, as workers leave it that die or come late.
/// What cannot be removed is left to the next look, and keeps nothing else from going.
pub async fn sweep(state: &Devices) -> anyhow::Result<Tick> {
    for node in state.runtimes.engines.answering() {
        // What cannot be listed is told below.
        if let Ok(engine) = state.runtimes.engines.of(&node)
            && let Ok(kept) = engine.snapshots().await
        {
            moving::jobs::note_strays(state, &node, &kept).await?;
        }
    }
    for runtime in state.runtimes.all() {
        let kept = match runtime.snapshots().await {
            Ok(kept) => kept,
            Err(error) => {
                warn!(
                    "the snapshots of a runtime could not be looked through: {}",
                    causes(&error)
                );
                continue;
            }
        };
        let mut conn = state.platform.db.acquire().await?;
        let unknown = db::unknown(&mut conn, &kept).await?;
        drop(conn);
        for id in &unknown {
            match runtime.forget(id).await {
                Ok(true) => {
                    warn!("removed what was kept of snapshot {id}, which there is not");
                    metrics::snapshot_swept();
                }
                Ok(false) => {}
                Err(error) => warn!(
                    "what was kept of snapshot {id}, which there is not, could not be removed: {}",
                    causes(&error)
                ),
            }
        }
    }
    Ok(Tick::Idle)
}
