//! What taking, restoring and removing a snapshot consist of. Each step may be repeated, by this worker or another one.

use contracts::SnapshotId;

use super::{Status, after_restore, api, copies, db};
use crate::Devices;
use crate::device::{self, Device, Status as DeviceStatus};
use crate::operation::Kind;
use crate::operation::api::change_status;
use crate::operation::db::{Claimed, advance, advance_anew, advance_unless, finish, insert_about};
use crate::operation::overdue;
use crate::operation::steps::{Interrupted, Step, lock_held, lock_living, run, spec};

/// Keeps what is on the device.
pub async fn take(state: &Devices, claimed: &Claimed) -> Step<()> {
    let id = subject(claimed)?;
    let mut tx = state.platform.db.begin().await?;
    let device = lock_living(&mut tx, claimed).await?;
    let wanted = db::find(&mut tx, id).await?;
    if wanted.is_none_or(|snapshot| snapshot.status != Status::Creating) {
        // Deleted before its turn came.
        let now = state.platform.clock.now();
        let reason = Some("the snapshot was deleted");
        return settled(
            finish(&mut tx, claimed, "cancelled", reason, now).await?,
            tx,
        )
        .await;
    }
    if !advance(&mut tx, claimed, "commit-container").await? {
        return Err(Interrupted::Lost);
    }
    tx.commit().await?;

    let runtime = state.runtimes.of(device.runtime, &device.node)?;
    let size = runtime.snapshot(&spec(&device, claimed), id).await?;

    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    lock_living(&mut tx, claimed).await?;
    db::taken(&mut tx, id, size, now).await?;
    if let Some(replaced) = db::replaced(&mut tx, id).await? {
        api::retire(&mut tx, &device.id, &replaced, now).await?;
    }
    settled(finish(&mut tx, claimed, "done", None, now).await?, tx).await
}

/// Makes the device anew of what was kept; it ends running or stopped, as it was.
pub async fn restore(state: &Devices, claimed: &Claimed) -> Step<()> {
    let id = subject(claimed)?;
    let Some(device) = begin(state, claimed, id).await? else {
        return Ok(());
    };
    let runtime = state.runtimes.of(device.runtime, &device.node)?;
    let spec = spec(&device, claimed);
    if device.runtime.has_engine() {
        // Another node may keep it alone, where the device was taken from one that is gone.
        fetch(state, claimed, id, &device.node).await?;
    }
    runtime.stop(&spec).await?;
    runtime.restore(&spec, id).await?;
    if device.wanted == DeviceStatus::Running {
        return run(state, claimed, device).await;
    }
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let device = lock_living(&mut tx, claimed).await?;
    db::restored(&mut tx, Some(id), now).await?;
    change_status(&mut tx, &device, DeviceStatus::Stopped, None, now).await?;
    settled(finish(&mut tx, claimed, "done", None, now).await?, tx).await
}

/// Brings the image of a snapshot to the node of its device where that does not have it. That has a deadline of its own, and
/// what comes after it begins its own anew.
async fn fetch(state: &Devices, claimed: &Claimed, id: &SnapshotId, node: &str) -> Step<()> {
    if !state.runtimes.engines.of(node)?.has_image(id).await? {
        let mut tx = state.platform.db.begin().await?;
        lock_living(&mut tx, claimed).await?;
        if !advance(&mut tx, claimed, overdue::BRINGING).await? {
            return Err(Interrupted::Lost);
        }
        tx.commit().await?;

        copies::bring_to(state, id, node, state.config.move_deadline).await?;
    }
    // A worker that died may have brought it without writing so.
    let mut tx = state.platform.db.begin().await?;
    lock_living(&mut tx, claimed).await?;
    if !advance_anew(&mut tx, claimed, "restore-container").await? {
        return Err(Interrupted::Lost);
    }
    copies::ready(&mut tx, id, node).await?;
    tx.commit().await?;
    Ok(())
}

/// Writes that the restore is under way; `None` where there is nothing to restore: then the device is what it was.
async fn begin(state: &Devices, claimed: &Claimed, id: &SnapshotId) -> Step<Option<Device>> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let mut device = lock_living(&mut tx, claimed).await?;
    if device.status != DeviceStatus::Rebooting {
        let wanted = after_restore(device.status, device.wanted);
        change_status(&mut tx, &device, DeviceStatus::Rebooting, None, now).await?;
        device::db::set_wanted(&mut tx, &device.id, wanted).await?;
        (device.status, device.wanted) = (DeviceStatus::Rebooting, wanted);
    }
    // One that was taken and deleted since is kept until its removal, which is behind us in the queue.
    if !db::was_taken(&mut tx, id).await? {
        change_status(&mut tx, &device, device.wanted, None, now).await?;
        let reason = Some("the snapshot was not taken");
        settled(finish(&mut tx, claimed, "failed", reason, now).await?, tx).await?;
        return Ok(None);
    }
    // The image may be on its way, by a worker that died.
    if !advance_unless(&mut tx, claimed, "restore-container", overdue::BRINGING).await? {
        return Err(Interrupted::Lost);
    }
    db::restoring(&mut tx, id, now).await?;
    // Before the container is made: whoever comes next makes it of the same.
    device::db::set_restored_from(&mut tx, &device.id, id).await?;
    let before = device.restored_from.replace(id.clone());
    // One that was deleted stayed for this device alone.
    if let Some(before) = before.filter(|before| before != id)
        && db::is_deleted(&mut tx, &before).await?
    {
        let about = (&device.id, Some(&before));
        insert_about(&mut tx, about, Kind::Forget, true, now).await?;
    }
    tx.commit().await?;
    Ok(Some(device))
}

/// Removes what was kept. What the device is made of stays, and counts, until it is made of something else.
pub async fn forget(state: &Devices, claimed: &Claimed) -> Step<()> {
    let id = subject(claimed)?;
    let mut tx = state.platform.db.begin().await?;
    let device = lock_held(&mut tx, claimed).await?;
    if device.restored_from.as_ref() == Some(id) {
        let now = state.platform.clock.now();
        return settled(finish(&mut tx, claimed, "done", None, now).await?, tx).await;
    }
    if !advance(&mut tx, claimed, "remove-image").await? {
        return Err(Interrupted::Lost);
    }
    tx.commit().await?;

    state
        .runtimes
        .of(device.runtime, &device.node)?
        .forget(id)
        .await?;
    copies::remove(state, id, &device.node).await?;

    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    lock_held(&mut tx, claimed).await?;
    db::remove(&mut tx, id).await?;
    settled(finish(&mut tx, claimed, "done", None, now).await?, tx).await
}

/// Gives up removing what was kept: without its snapshot it is nobody's, and the sweep tries on.
pub async fn leave_to_sweep(state: &Devices, claimed: &Claimed, error: &str) -> Step<()> {
    let id = subject(claimed)?;
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    lock_held(&mut tx, claimed).await?;
    db::remove(&mut tx, id).await?;
    let held = finish(&mut tx, claimed, "failed", Some(error), now).await?;
    settled(held, tx).await
}

/// A worker that was frozen may have kept something after the snapshot was gone.
pub async fn leave_nothing(state: &Devices, claimed: &Claimed) -> Step<()> {
    let Some(id) = &claimed.snapshot_id else {
        return Ok(());
    };
    let mut conn = state.platform.db.acquire().await?;
    let unknown = db::unknown(&mut conn, std::slice::from_ref(id)).await?;
    drop(conn);
    if unknown.is_empty() {
        return Ok(());
    }
    for runtime in state.runtimes.all() {
        runtime.forget(id).await?;
    }
    Ok(())
}

fn subject(claimed: &Claimed) -> Step<&SnapshotId> {
    // The constraint is ours: operations of these kinds are queued with a snapshot.
    claimed.snapshot_id.as_ref().ok_or(Interrupted::Lost)
}

/// Commits where the worker still held the operation.
async fn settled(held: bool, tx: sqlx::Transaction<'_, sqlx::Postgres>) -> Step<()> {
    if !held {
        return Err(Interrupted::Lost);
    }
    tx.commit().await?;
    Ok(())
}
