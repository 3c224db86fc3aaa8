//! The deadline of operations: whoever works on one and however often, a device does not stay in a moving state for ever.

use contracts::DeviceId;
use platform::lifecycle::Tick;
use sqlx::PgConnection;
use std::time::Duration;
use tracing::error;

use super::api::change_status;
use super::db;
use crate::device::{self, Status};
use crate::{Devices, error::Result};

/// How many devices one look deals with.
const BATCH: i64 = 100;
/// How many deadlines an operation may wait for a worker before it counts as overdue, too.
const WAITS: f64 = 10.0;

/// The step of an operation that brings an image from another node, which takes as long as a move may.
pub const BRINGING: &str = "bring-image";

/// Ends what took longer than its deadline: the device is in error, and a worker that still has it changes nothing any more.
/// Deletions go on until they succeed, snapshots have a deadline of their own, moves and images on their way take longer by theirs, and devices of a
/// node that is down wait for it.
pub async fn end(state: &Devices) -> Result<Tick> {
    let deadline = state.config.operation_deadline;
    let ids = {
        let mut conn = state.platform.db.acquire().await?;
        find(&mut conn, None, (deadline, state.config.move_deadline)).await?
    };
    let reason = format!("the operation took longer than {deadline:?}");
    for id in &ids {
        let mut tx = state.platform.db.begin().await?;
        let now = state.platform.clock.shared(&mut tx).await?;
        let Some(device) = device::db::lock(&mut tx, id).await? else {
            continue;
        };
        // Under the lock of the device: it may have ended in this very moment.
        let deadlines = (deadline, state.config.move_deadline);
        if find(&mut tx, Some(id), deadlines).await?.is_empty() {
            continue;
        }
        db::end_all(&mut tx, id, &reason, now).await?;
        if !matches!(device.status, Status::Deleting | Status::Deleted) {
            change_status(&mut tx, &device, Status::Error, Some(&reason), now).await?;
        }
        tx.commit().await?;
        error!(device.id = %id, "device {id} is in error: {reason}");
    }
    Ok(Tick::after_batch(ids.len(), BATCH))
}

async fn find(
    conn: &mut PgConnection,
    device: Option<&DeviceId>,
    (deadline, moving): (Duration, Duration),
) -> sqlx::Result<Vec<DeviceId>> {
    let select = sqlx::query_scalar(
        "-- operations::overdue
        select distinct o.device_id from devices.operations o
            join devices.devices d on d.id = o.device_id join devices.nodes n on n.name = d.node
        where o.state in ('queued', 'running') and o.kind not in ('delete', 'forget', 'snapshot') and ($1::text is null or o.device_id = $1)
            and (d.runtime = 'simulated' or n.down_since is null)
            and coalesce(o.begun_at, o.due_at + $2 * $4) < clock_timestamp() - $2 - case when o.kind = 'move' or o.step = $6 then $5 else '0' end
        order by o.device_id limit $3",
    );
    select
        .bind(device)
        .bind(deadline)
        .bind(BATCH)
        .bind(WAITS - 1.0)
        .bind(moving)
        .bind(BRINGING)
        .fetch_all(conn)
        .await
}
