//! Putting a device right: what became of it is looked at, and it is made what it shall be, where it is or, where its node
//! is down and the policy says so, on another one.

use contracts::DeviceId;
use coordination::PortError;
use tracing::{info, warn};

use super::api::{change_status, tell};
use super::db::{self, Claimed};
use super::steps::{Interrupted, Step, lock_living, run, spec, step};
use crate::config::Failover;
use crate::device::{self, Device, Status};
use crate::node::placement::{self, Demand, Refusal};
use crate::node::{self, down};
use crate::runtime::{RuntimeError, Seen};
use crate::{Devices, Error, port};

/// Makes a device what it shall be.
pub async fn repair(state: &Devices, claimed: &Claimed) -> Step<()> {
    let mut device = step(state, claimed, "look", |_| None).await?;
    if device.node_down {
        if state.config.failover == Failover::None || device.wanted != Status::Running {
            let node = device.node;
            return Err(RuntimeError::Down { node }.into());
        }
        device = relocate(state, claimed, &device).await?;
    }
    let runtime = state.runtimes.of(device.runtime, &device.node)?;
    let seen = runtime.inspect(&device.id).await?;
    match (device.wanted, seen) {
        (Status::Running, Seen::Running) => finish(state, claimed, Status::Running).await,
        (Status::Running, Seen::Stopped | Seen::Absent) => {
            info!(device.id = %device.id, "device {} is {seen:?} on node {} and shall run: starting it", device.id, device.node);
            let starting = |_: &Device| Some(Status::Starting);
            let device = step(state, claimed, "start-container", starting).await?;
            runtime.create(&spec(&device, claimed)).await?;
            run(state, claimed, device).await
        }
        (_, Seen::Running) => {
            runtime.stop(&spec(&device, claimed)).await?;
            finish(state, claimed, Status::Stopped).await
        }
        (_, Seen::Absent) => {
            runtime.create(&spec(&device, claimed)).await?;
            finish(state, claimed, Status::Stopped).await
        }
        (_, Seen::Stopped) => finish(state, claimed, Status::Stopped).await,
    }
}

/// Ends the repair. What was accepted meanwhile shows its own status.
async fn finish(state: &Devices, claimed: &Claimed, status: Status) -> Step<()> {
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    let device = lock_living(&mut tx, claimed).await?;
    if !db::finish(&mut tx, claimed, "done", None, now).await? {
        return Err(Interrupted::Lost);
    }
    if !matches!(device.status, Status::Stopping | Status::Rebooting) {
        change_status(&mut tx, &device, status, None, now).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Gives a device to another node, with other ports. What it was made of stays behind on the node that is down, and is
/// removed from there before that node gets devices again; what was stored in it is lost with it.
///
/// Whoever dies before the commit has changed nothing; after it the device is of the other node, and whoever goes on makes
/// it there.
async fn relocate(state: &Devices, claimed: &Claimed, device: &Device) -> Step<Device> {
    let selector = node::selector(&device.metadata);
    let demand = Demand::new(device.provider_type, device.size(), selector);
    let mut tried = vec![Refusal {
        node: device.node.clone(),
        reason: "is down".into(),
    }];
    let nodes = {
        let mut conn = state.platform.db.acquire().await?;
        node::db::all(&mut conn).await?
    };
    for _ in 0..nodes.len() {
        let chosen = placement::choose(&nodes, &demand, state.config.placement, &tried);
        let (node, runtime) = chosen.map_err(Interrupted::no_room)?;
        let refuses = |reason: String| Refusal {
            node: node.name.clone(),
            reason,
        };
        if runtime.has_engine() {
            state.runtimes.engines.know(node);
            if let Err(error) = state.runtimes.engines.of(&node.name)?.ping().await {
                tried.push(refuses(error.to_string()));
                continue;
            }
        }
        let ports = state.ports.of(node);
        let mut leased = match ports.lease(&device.id).await {
            Ok(leased) => leased,
            Err(
                error @ (Error::Ports(PortError::Exhausted { .. }) | Error::PortsContended { .. }),
            ) => {
                tried.push(refuses(error.to_string()));
                continue;
            }
            Err(error) => return Err(Interrupted::Ports(error)),
        };
        let now = state.platform.clock.now();
        let mut tx = state.platform.db.begin().await?;
        let before = lock_living(&mut tx, claimed).await?;
        if !db::advance(&mut tx, claimed, "relocate").await? {
            return Err(Interrupted::Lost);
        }
        if !down::stays_down(&mut tx, &before.node).await? {
            tx.rollback().await?;
            ports.give_up(leased).await;
            // It came back meanwhile: the device stays where it is.
            return device_there(state, &device.id).await;
        }
        down::leave_behind(&mut tx, &device.id, &before.node, before.ports()).await?;
        let place = (node.name.as_str(), runtime, leased.ports);
        match device::db::set_place(&mut tx, &device.id, place, now).await {
            Err(error) if port::is_conflict(&error) => {
                tx.rollback().await?;
                ports.give_up(leased).await;
                ports.reconcile().await.map_err(Interrupted::Ports)?;
                return Err(error.into());
            }
            set => set?,
        }
        tell(&mut tx, &before, before.status, None, now).await?;
        placement::free(&mut tx, &before.node, before.size()).await?;
        if !placement::reserve(&mut tx, &node.name, &demand).await? {
            tried.push(refuses("has no room any more".into()));
            continue;
        }
        // Whether the commit takes effect may stay unknown.
        leased.keep();
        tx.commit().await?;
        warn!(device.id = %device.id, "device {} is made anew on node {}: node {} is down", device.id, node.name, before.node);
        return device_there(state, &device.id).await;
    }
    Err(Interrupted::no_room(tried))
}

async fn device_there(state: &Devices, id: &DeviceId) -> Step<Device> {
    let mut conn = state.platform.db.acquire().await?;
    let device = device::db::find(&mut conn, id).await?;
    device.ok_or(Interrupted::Deleted)
}
