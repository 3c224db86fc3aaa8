//! What carrying an operation out consists of. Each step may be repeated, by this worker or by another one, and writes
//! only while its worker holds the operation.

use contracts::{DeviceId, Event, EventBody};
use platform::events::emit;
use sqlx::PgConnection;

use super::api::change_status;
use super::db::{self, Claimed};
use super::{Kind, goal, ports};
use crate::device::{self, Device, Status};
use crate::node::placement::Refusal;
use crate::runtime::{Runtime, RuntimeError, Seen, Spec};
use crate::{Devices, Error, measure, moving, snapshot};

/// How often an attempt changes the ports of a device before it has failed.
const PORT_CHANGES: u32 = 4;

/// Why a worker does not go on.
#[derive(Debug, thiserror::Error)]
pub enum Interrupted {
    /// Another worker holds the operation now, or it is over.
    #[error("another worker holds the operation now")]
    Lost,
    /// The device was deleted; its deletion is next in the queue.
    #[error("the device was deleted")]
    Deleted,
    /// The runtime failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// One of its ports is occupied, and there are no others.
    #[error("a port of the device is occupied by another program, and no others could be leased")]
    Ports(#[source] Error),
    /// Its node is down, and no other one takes it.
    #[error(transparent)]
    Place(Error),
    /// As many images are on their way to its node as may.
    #[error("as many images are on their way to the node as may")]
    Turn,
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

impl Interrupted {
    /// No node takes a device that is to leave its own.
    pub fn no_room(refusals: Vec<Refusal>) -> Self {
        Self::Place(Error::NoRoom { refusals })
    }
}

/// What a step comes to.
pub type Step<T> = Result<T, Interrupted>;

/// Carries an operation out.
pub async fn carry_out(state: &Devices, claimed: &Claimed) -> Step<()> {
    match claimed.kind {
        Kind::Create => create(state, claimed).await,
        Kind::Start => {
            let Some(device) = begin(state, claimed, Status::Starting).await? else {
                return Ok(());
            };
            start(state, claimed, device).await
        }
        Kind::Stop => {
            let Some(device) = begin(state, claimed, Status::Stopping).await? else {
                return Ok(());
            };
            state
                .runtimes
                .of(device.runtime, &device.node)?
                .stop(&spec(&device, claimed))
                .await?;
            finish(state, claimed).await
        }
        Kind::Restart => {
            let Some(device) = begin(state, claimed, Status::Rebooting).await? else {
                return Ok(());
            };
            state
                .runtimes
                .of(device.runtime, &device.node)?
                .stop(&spec(&device, claimed))
                .await?;
            start(state, claimed, device).await
        }
        Kind::Delete => delete(state, claimed).await,
        Kind::Repair => super::repair::repair(state, claimed).await,
        Kind::Snapshot => snapshot::steps::take(state, claimed).await,
        Kind::Restore => snapshot::steps::restore(state, claimed).await,
        Kind::Forget => snapshot::steps::forget(state, claimed).await,
        Kind::Move => moving::steps::carry_out(state, claimed).await,
    }
}

async fn create(state: &Devices, claimed: &Claimed) -> Step<()> {
    let device = step(state, claimed, "create-container", |_| None).await?;
    let runtime = state.runtimes.of(device.runtime, &device.node)?;
    runtime.create(&spec(&device, claimed)).await?;
    // Whether it shall run is decided here, under the lock of the device: a start that was accepted before counts.
    let wanted = |device: &Device| (device.wanted == Status::Running).then_some(Status::Starting);
    let mut device = step(state, claimed, "start-container", wanted).await?;
    if device.status != Status::Starting {
        match finish_stopped(state, claimed).await? {
            None => return Ok(()),
            Some(wanted_now) => device = wanted_now,
        }
    }
    run(state, claimed, device).await
}

async fn start(state: &Devices, claimed: &Claimed, device: Device) -> Step<()> {
    let runtime = state.runtimes.of(device.runtime, &device.node)?;
    runtime.create(&spec(&device, claimed)).await?;
    run(state, claimed, device).await
}

/// Makes run what was created. What never ran gets other ports where a foreign program listens on one of its own; what did
/// keeps them: what is in its container would be lost with it.
pub async fn run(state: &Devices, claimed: &Claimed, mut device: Device) -> Step<()> {
    let runtime = state.runtimes.of(device.runtime, &device.node)?;
    let mut changes = 0;
    while let Err(error) = runtime.start(&spec(&device, claimed)).await {
        match error {
            RuntimeError::PortOccupied { port }
                if changes < PORT_CHANGES && is_unused(&*runtime, &device).await? =>
            {
                device = ports::change(state, claimed, port).await?;
                runtime.create(&spec(&device, claimed)).await?;
                changes += 1;
            }
            error => return Err(error.into()),
        }
    }
    finish(state, claimed).await
}

/// Whether what a device runs in never ran: it was made for a new device, or on another node than the last one.
async fn is_unused(runtime: &dyn Runtime, device: &Device) -> Step<bool> {
    if device.last_started_at.is_none() {
        return Ok(true);
    }
    let seen = runtime.inspect(&device.id).await?;
    Ok(matches!(seen, Seen::Absent | Seen::Unused))
}

async fn delete(state: &Devices, claimed: &Claimed) -> Step<()> {
    let mut tx = state.platform.db.begin().await?;
    let device = lock_held(&mut tx, claimed).await?;
    if !db::advance(&mut tx, claimed, "remove-container").await? {
        return Err(Interrupted::Lost);
    }
    tx.commit().await?;
    state
        .runtimes
        .of(device.runtime, &device.node)?
        .remove(&device.id)
        .await?;
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let device = lock_held(&mut tx, claimed).await?;
    if !db::finish(&mut tx, claimed, "done", None, now).await? {
        return Err(Interrupted::Lost);
    }
    device::db::set_status(&mut tx, &device.id, Status::Deleted, None, now).await?;
    snapshot::db::remove_all(&mut tx, &device.id).await?;
    measure::db::forget(&mut tx, &device.id).await?;
    let body = EventBody::DeviceDeleted {
        device_id: device.id.clone(),
        name: device.name.clone(),
    };
    emit(&mut tx, &Event::new(device.user_id.clone(), now, body)).await?;
    tx.commit().await?;
    // From here on the database lets others have the ports; until they are returned, their lease keeps them.
    let ports = state.ports.of_name(&device.node);
    ports.release(&device.id, device.ports()).await;
    Ok(())
}

/// Writes the status of an operation under way. `None` where the device is there already: then the operation is over.
async fn begin(state: &Devices, claimed: &Claimed, status: Status) -> Step<Option<Device>> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let device = lock_living(&mut tx, claimed).await?;
    let settled = claimed.kind != Kind::Restart && Some(device.status) == goal(claimed.kind);
    let held = if settled {
        db::finish(&mut tx, claimed, "done", None, now).await?
    } else {
        change_status(&mut tx, &device, status, None, now).await?;
        db::advance(&mut tx, claimed, status.as_str()).await?
    };
    if !held {
        return Err(Interrupted::Lost);
    }
    tx.commit().await?;
    Ok((!settled).then_some(device))
}

/// Writes the next step, and the status that goes with it.
pub async fn step(
    state: &Devices,
    claimed: &Claimed,
    name: &str,
    status: impl Fn(&Device) -> Option<Status>,
) -> Step<Device> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let mut device = lock_living(&mut tx, claimed).await?;
    if !db::advance(&mut tx, claimed, name).await? {
        return Err(Interrupted::Lost);
    }
    if let Some(status) = status(&device) {
        change_status(&mut tx, &device, status, None, now).await?;
        device.status = status;
    }
    tx.commit().await?;
    Ok(device)
}

/// Ends a creation with the device stopped, unless it shall run after all: then it goes on.
async fn finish_stopped(state: &Devices, claimed: &Claimed) -> Step<Option<Device>> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let device = lock_living(&mut tx, claimed).await?;
    if device.wanted == Status::Running {
        return Ok(Some(device));
    }
    if !db::finish(&mut tx, claimed, "done", None, now).await? {
        return Err(Interrupted::Lost);
    }
    change_status(&mut tx, &device, Status::Stopped, None, now).await?;
    tx.commit().await?;
    Ok(None)
}

/// Ends an operation well.
async fn finish(state: &Devices, claimed: &Claimed) -> Step<()> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let device = lock_living(&mut tx, claimed).await?;
    if !db::finish(&mut tx, claimed, "done", None, now).await? {
        return Err(Interrupted::Lost);
    }
    if let Some(status) = goal(claimed.kind) {
        change_status(&mut tx, &device, status, None, now).await?;
    }
    snapshot::db::restored(&mut tx, claimed.snapshot_id.as_ref(), now).await?;
    tx.commit().await?;
    Ok(())
}

/// Stops what runs of a device that is about to be in error, where the operation would have led to another state.
pub async fn halt(state: &Devices, claimed: &Claimed) -> Step<()> {
    let device = {
        let mut conn = state.platform.db.acquire().await?;
        device::db::find(&mut conn, &claimed.device_id).await?
    };
    let Some(device) = device.filter(|_| goal(claimed.kind).is_some()) else {
        return Ok(());
    };
    let runtime = state.runtimes.of(device.runtime, &device.node)?;
    Ok(runtime.stop(&spec(&device, claimed)).await?)
}

/// Ends an operation badly: the device is in error, and what waited behind is cancelled.
pub async fn fail(state: &Devices, claimed: &Claimed, error: &str) -> Step<()> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let device = lock_living(&mut tx, claimed).await?;
    if !db::finish(&mut tx, claimed, "failed", Some(error), now).await? {
        return Err(Interrupted::Lost);
    }
    if let Some(snapshot) = &claimed.snapshot_id {
        snapshot::db::failed(&mut tx, snapshot, error, now).await?;
    }
    // A device that could not be kept a copy of is what it was.
    if goal(claimed.kind).is_some() {
        db::cancel_queued(&mut tx, &device.id, "the operation before it failed", now).await?;
        change_status(&mut tx, &device, Status::Error, Some(error), now).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Gives up an operation on a device that was deleted meanwhile.
pub async fn cancel(state: &Devices, claimed: &Claimed) -> Step<()> {
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    let reason = Some("the device was deleted");
    if db::finish(&mut conn, claimed, "cancelled", reason, now).await? {
        Ok(())
    } else {
        Err(Interrupted::Lost)
    }
}

/// Removes what a late worker may have made of a device that is gone: nothing holds its ports any more.
pub async fn leave_nothing(state: &Devices, id: &DeviceId) -> Step<()> {
    let gone = {
        let mut conn = state.platform.db.acquire().await?;
        device::db::find_released(&mut conn, id).await?
    };
    match gone {
        Some((runtime, node)) => Ok(state.runtimes.of(runtime, &node)?.remove(id).await?),
        None => Ok(()),
    }
}

/// The device of an operation, locked, in whatever state.
pub async fn lock_held(tx: &mut PgConnection, claimed: &Claimed) -> Step<Device> {
    let device = device::db::lock(tx, &claimed.device_id).await?;
    device.ok_or(Interrupted::Lost)
}

/// The device of an operation, locked, unless it was deleted.
pub async fn lock_living(tx: &mut PgConnection, claimed: &Claimed) -> Step<Device> {
    let device = lock_held(tx, claimed).await?;
    match device.status {
        Status::Deleting | Status::Deleted => Err(Interrupted::Deleted),
        _ => Ok(device),
    }
}

/// What a runtime needs to know of the device of an operation.
pub fn spec(device: &Device, claimed: &Claimed) -> Spec {
    Spec::of(device, claimed.fencing_token)
}
