//! What sees to it that nodes are drained. Any replica may do any of it, at any time.

use std::time::Duration;

use contracts::SnapshotId;
use platform::lifecycle::Tick;
use platform::problem::causes;
use tracing::warn;

use super::db::{self, Ended};
use crate::device::{self, Status};
use crate::node::{self, Node, State, down};
use crate::operation::db::{Claimed, insert_about};
use crate::operation::{Kind, steps::Step};
use crate::{Devices, error::Result, metrics};

/// How many moves that ended one look deals with.
const BATCH: i64 = 100;
/// How long after an attempt the next one follows, and twice as long after each that failed.
const PAUSE: Duration = Duration::from_secs(15);

/// Has devices leave the nodes that are drained, as many at a time as may, and notes what moves have left that ended.
pub async fn look(state: &Devices) -> Result<Tick> {
    let ended = {
        let mut conn = state.platform.db.acquire().await?;
        db::ended(&mut conn, BATCH).await?
    };
    for ended in &ended {
        settle(state, ended).await?;
    }
    for _ in 0..BATCH {
        let mut conn = state.platform.db.acquire().await?;
        if !node::reservation::end_one(&mut conn).await? {
            break;
        }
    }
    let nodes = {
        let mut conn = state.platform.db.acquire().await?;
        node::db::all(&mut conn).await?
    };
    let drained = |node: &&Node| node.state == State::Draining && node.down_since.is_none();
    for node in nodes.iter().filter(drained) {
        // One that fails does not keep the others from it.
        if let Err(error) = queue(state, node).await {
            warn!(
                "no devices were taken from node {}: {}",
                node.name,
                causes(&error)
            );
        }
    }
    Ok(Tick::after_batch(ended.len(), BATCH))
}

async fn queue(state: &Devices, node: &Node) -> Result<()> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let Some(under_way) = db::lock_draining(&mut tx, &node.name).await? else {
        return Ok(());
    };
    let room = state.config.parallel_moves - under_way;
    let tries = (state.config.operation_attempts, PAUSE);
    let due = db::due(&mut tx, &node.name, tries, room.max(0)).await?;
    for id in &due {
        let device = device::db::lock(&mut tx, id).await?;
        if let Some(device) = device.filter(|device| device.node == node.name) {
            db::insert(&mut tx, &device, &SnapshotId::new(), now).await?;
        }
    }
    tx.commit().await?;
    if !due.is_empty() {
        state.operations_due.notify_one();
    }
    Ok(())
}

/// Notes what a move has left that ended, however it ended: images where the device did not come, and the snapshot that
/// nobody sees where the device is not made of it.
async fn settle(state: &Devices, ended: &Ended) -> Result<()> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let Some(device) = device::db::lock(&mut tx, &ended.device_id).await? else {
        return Ok(());
    };
    if !db::settle(&mut tx, ended.operation_id).await? {
        return Ok(());
    }
    if let Some(target) = &ended.target
        && *target != device.node
        && device.runtime.has_engine()
    {
        down::leave_images_behind(&mut tx, &device, target).await?;
    }
    let is_gone = matches!(device.status, Status::Deleting | Status::Deleted);
    if !is_gone
        && device.restored_from.as_ref() != Some(&ended.snapshot_id)
        && db::is_hidden(&mut tx, &ended.snapshot_id).await?
    {
        let about = (&device.id, Some(&ended.snapshot_id));
        insert_about(&mut tx, about, Kind::Forget, true, now).await?;
    }
    tx.commit().await?;
    metrics::moved(match ended.state.as_str() {
        "done" => "moved",
        "failed" => "failed",
        _ => "cancelled",
    });
    state.operations_due.notify_one();
    Ok(())
}

/// A worker that was frozen may have brought images to a node after the move had ended.
pub async fn leave_nothing(state: &Devices, claimed: &Claimed) -> Step<()> {
    let mut tx = state.platform.db.begin().await?;
    let Some(device) = device::db::lock(&mut tx, &claimed.device_id).await? else {
        return Ok(());
    };
    let of = db::find(&mut tx, claimed.id).await?;
    // Of one that is open, or has just ended, others take care.
    if let Some(target) = of.and_then(|of| of.target)
        && target != device.node
        && device.runtime.has_engine()
        && !db::is_coming(&mut tx, &device.id, &target).await?
    {
        down::leave_images_behind(&mut tx, &device, &target).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Notes what a node keeps of devices that are not there.
pub async fn note_strays(state: &Devices, node: &str, kept: &[SnapshotId]) -> Result<()> {
    let strays = {
        let mut conn = state.platform.db.acquire().await?;
        db::strays(&mut conn, node, kept).await?
    };
    for id in strays {
        let mut tx = state.platform.db.begin().await?;
        let device = device::db::lock(&mut tx, &id).await?;
        // Under its lock: it may have come there meanwhile.
        if let Some(device) = device.filter(|device| device.node != node)
            && !db::is_coming(&mut tx, &id, node).await?
        {
            down::leave_images_behind(&mut tx, &device, node).await?;
            warn!(device.id = %id, "node {node} keeps images of device {id}, which is on node {}: removing them", device.node);
        }
        tx.commit().await?;
    }
    Ok(())
}
