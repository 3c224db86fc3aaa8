//! Putting a device right: what became of it is looked at, and it is made what it shall be, where it is or, where its node
//! is down and the policy says so, on another one.

use contracts::{DeviceId, Event, EventBody, SnapshotId};
use coordination::PortError;
use platform::events::emit;
use tracing::{info, warn};

use super::api::{change_status, tell};
use super::db::{self, Claimed};
use super::overdue;
use super::steps::{Interrupted, Step, lock_living, run, spec, step};
use crate::config::Failover;
use crate::device::{self, Device, RuntimeKind, Status};
use crate::moving::back::{self, Back};
use crate::node::placement::{self, Demand, Refusal};
use crate::node::{self, Node, down, reservation};
use crate::runtime::{RuntimeError, Seen};
use crate::{Devices, Error, port, snapshot};

/// Makes a device what it shall be.
pub async fn repair(state: &Devices, claimed: &Claimed) -> Step<()> {
    let mut device = step(state, claimed, "look", |_| None).await?;
    if device.node_down {
        if state.config.failover == Failover::None || device.wanted != Status::Running {
            let node = device.node;
            return Err(RuntimeError::Down { node }.into());
        }
        // What it left behind is newer than any snapshot, and more than nothing.
        let kept_on = match back::go(state, claimed, &device).await? {
            Back::Gone => return Ok(()),
            Back::Stays | Back::Nothing => None,
            Back::Away(node) => Some(node),
        };
        let mut made_of = None;
        if state.config.failover == Failover::Snapshot {
            made_of = {
                let mut conn = state.platform.db.acquire().await?;
                snapshot::copies::latest(&mut conn, &device.id).await?
            };
        }
        if let Some(kept_on) = kept_on.filter(|_| made_of.is_none()) {
            let why = format!(
                "what is on the device is kept on node {kept_on} alone, which is not there or full: it waits"
            );
            return wait_for_node(state, claimed, &why).await;
        }
        if made_of.is_none() && state.config.failover == Failover::Snapshot {
            let why = "no other node keeps a snapshot of the device: it waits for its node";
            return wait_for_node(state, claimed, why).await;
        }
        match relocate(state, claimed, &device, made_of.as_ref()).await? {
            Some(stays) => device = stays,
            None => return Ok(()),
        }
    }
    let runtime = state.runtimes.of(device.runtime, &device.node)?;
    let seen = runtime.inspect(&device.id).await?;
    match (device.wanted, seen) {
        (Status::Running, Seen::Running) => {
            // What has other ports than the row says is made anew; what is as it shall be stays.
            runtime.create(&spec(&device, claimed)).await?;
            run(state, claimed, device).await
        }
        (Status::Running, Seen::Stopped | Seen::Unused | Seen::Absent) => {
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
        (_, Seen::Stopped | Seen::Unused) => finish(state, claimed, Status::Stopped).await,
    }
}

/// Ends the repair. What was accepted meanwhile shows its own status.
async fn finish(state: &Devices, claimed: &Claimed, status: Status) -> Step<()> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
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

/// Leaves a device in error of which nothing is kept elsewhere that is there: it is looked at again when its node is back, or
/// one that keeps something of it.
async fn wait_for_node(state: &Devices, claimed: &Claimed, why: &str) -> Step<()> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let device = lock_living(&mut tx, claimed).await?;
    let reason = format!("node {} is down, and {why}", device.node);
    if !db::finish(&mut tx, claimed, "failed", Some(&reason), now).await? {
        return Err(Interrupted::Lost);
    }
    let is_told = device.error.as_deref() == Some(&*reason);
    device::db::set_status(&mut tx, &device.id, Status::Error, Some(&reason), now).await?;
    let update = "update devices.devices set lost = true where id = $1";
    let update = sqlx::query(update).bind(&device.id);
    update.execute(&mut *tx).await?;
    if !is_told {
        tell(&mut tx, &device, Status::Error, Some(&reason), now).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Gives a device to another node, with other ports, empty or made of a snapshot. What it was made of stays behind on the node
/// that is down, and is removed from there before that node gets devices again; what was stored in it since, and snapshots
/// that no other node keeps, are lost with it.
///
/// Whoever dies before the commit has changed nothing; after it the device is of the other node, and the operation is for
/// whoever reaches that one, when its turn to boot comes there. The device where the node came back meanwhile: it stays.
async fn relocate(
    state: &Devices,
    claimed: &Claimed,
    device: &Device,
    made_of: Option<&SnapshotId>,
) -> Step<Option<Device>> {
    let selector = node::selector(&device.metadata);
    let demand = Demand::new(device.provider_type, device.size(), selector);
    let mut tried = vec![Refusal {
        node: device.node.clone(),
        reason: "is down".into(),
    }];
    let (nodes, before) = {
        let mut conn = state.platform.db.acquire().await?;
        let mut nodes = node::db::all(&mut conn).await?;
        reservation::discount(&mut conn, claimed, &mut nodes).await?;
        (nodes, reservation::node(&mut conn, claimed).await?)
    };
    // The image may have come to the node of an earlier attempt.
    let is_before = |node: &&Node| Some(&node.name) == before.as_ref();
    let chosen_before: Vec<Node> = nodes.iter().filter(is_before).cloned().collect();
    for _ in 0..nodes.len() {
        let policy = state.config.placement;
        let chosen = placement::choose(&chosen_before, &demand, policy, &tried)
            .or_else(|_| placement::choose(&nodes, &demand, policy, &tried));
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
        let ports = state.ports_of(node);
        let mut leased = match ports.lease(&device.id).await {
            Ok(leased) => leased,
            Err(Error::Ports(error @ PortError::Exhausted { .. })) => {
                tried.push(refuses(error.to_string()));
                continue;
            }
            Err(error @ Error::PortsContended { .. }) => {
                tried.push(refuses(error.to_string()));
                continue;
            }
            Err(error) => return Err(Interrupted::Ports(error)),
        };
        if let Some(snapshot) = made_of {
            let mut tx = state.platform.db.begin().await?;
            lock_living(&mut tx, claimed).await?;
            if down::is_left(&mut tx, &node.name, &device.id).await? {
                tx.rollback().await?;
                ports.hand_back(leased).await.map_err(Interrupted::Ports)?;
                tried.push(refuses(down::NOT_REMOVED.into()));
                continue;
            }
            if !db::advance(&mut tx, claimed, overdue::BRINGING).await? {
                return Err(Interrupted::Lost);
            }
            // Whoever sees it there before the device has come knows by this what it is.
            snapshot::copies::expect(&mut tx, snapshot, &node.name).await?;
            let place = (node.name.as_str(), runtime);
            if !reservation::hold(&mut tx, claimed, place, &demand).await? {
                tx.rollback().await?;
                ports.hand_back(leased).await.map_err(Interrupted::Ports)?;
                tried.push(refuses("has no room any more".into()));
                continue;
            }
            if let Some(before) = before.as_ref().filter(|before| **before != node.name) {
                snapshot::copies::no_longer_expect(&mut tx, snapshot, before).await?;
            }
            let weight = snapshot::copies::weight(&mut tx, snapshot, &node.name).await?;
            if !reservation::hold_disk(&mut tx, claimed, &node.name, weight).await? {
                tx.rollback().await?;
                ports.hand_back(leased).await.map_err(Interrupted::Ports)?;
                tried.push(refuses(reservation::NO_DISK.into()));
                continue;
            }
            tx.commit().await?;
            let mut tx = state.platform.db.begin().await?;
            lock_living(&mut tx, claimed).await?;
            let most = state.config.parallel_moves;
            if !reservation::begin_transfer(&mut tx, claimed, &node.name, most).await? {
                tx.rollback().await?;
                ports.hand_back(leased).await.map_err(Interrupted::Ports)?;
                return Err(Interrupted::Turn);
            }
            tx.commit().await?;
            let within = state.config.move_deadline;
            let going = snapshot::copies::bring_to(state, snapshot, &node.name, within);
            if let Err(error) = ports.while_held(&leased, going).await {
                ports.hand_back(leased).await.map_err(Interrupted::Ports)?;
                tried.push(refuses(error.to_string()));
                continue;
            }
        }
        let mut tx = state.platform.db.begin().await?;
        let now = state.platform.clock.shared(&mut tx).await?;
        let before = lock_living(&mut tx, claimed).await?;
        if !db::advance(&mut tx, claimed, "relocate").await? {
            return Err(Interrupted::Lost);
        }
        if !down::stays_down(&mut tx, &before.node).await? {
            tx.rollback().await?;
            ports.give_up(leased).await;
            return device_there(state, &device.id).await.map(Some);
        }
        if down::is_left(&mut tx, &node.name, &device.id).await? {
            tx.rollback().await?;
            ports.hand_back(leased).await.map_err(Interrupted::Ports)?;
            tried.push(refuses(down::NOT_REMOVED.into()));
            continue;
        }
        let left = (before.ports(), false);
        down::leave_behind(&mut tx, &device.id, &before.node, left).await?;
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
        if let Some(snapshot) = made_of {
            if !snapshot::copies::can_be_used(&mut tx, snapshot).await? {
                // Deleted meanwhile: there may be another one.
                tx.rollback().await?;
                ports.hand_back(leased).await.map_err(Interrupted::Ports)?;
                return Err(Interrupted::no_room(tried));
            }
            device::db::set_restored_from(&mut tx, &device.id, snapshot).await?;
            let body = EventBody::DeviceMoved {
                device_id: before.id.clone(),
                name: before.name.clone(),
                from_node: before.node.clone(),
                to_node: node.name.clone(),
                snapshot_id: Some(snapshot.clone()),
            };
            emit(&mut tx, &Event::new(before.user_id.clone(), now, body)).await?;
        }
        tell(&mut tx, &before, before.status, None, now).await?;
        let gone = format!("it was kept on node {}, which was down", before.node);
        snapshot::db::lost(&mut tx, &device.id, &gone, now).await?;
        if runtime == RuntimeKind::Docker {
            snapshot::copies::expect_all(&mut tx, &device.id, &node.name).await?;
            if let Some(snapshot) = made_of {
                snapshot::copies::ready(&mut tx, snapshot, &node.name).await?;
            }
        }
        // It may have become larger while its images were brought.
        let selector = node::selector(&before.metadata);
        let demand = Demand::new(before.provider_type, before.size(), selector);
        if !reservation::redeem(&mut tx, claimed, (&node.name, runtime), &demand).await? {
            tx.rollback().await?;
            ports.hand_back(leased).await.map_err(Interrupted::Ports)?;
            tried.push(refuses("has no room any more".into()));
            continue;
        }
        if !db::hand_on(&mut tx, claimed).await? {
            return Err(Interrupted::Lost);
        }
        // Whether the commit takes effect may stay unknown.
        leased.keep();
        tx.commit().await?;
        warn!(device.id = %device.id, "device {} is made anew on node {}: node {} is down", device.id, node.name, before.node);
        return Ok(None);
    }
    Err(Interrupted::no_room(tried))
}

async fn device_there(state: &Devices, id: &DeviceId) -> Step<Device> {
    let mut conn = state.platform.db.acquire().await?;
    let device = device::db::find(&mut conn, id).await?;
    device.ok_or(Interrupted::Deleted)
}
