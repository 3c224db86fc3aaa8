//! What moving a device consists of. Each step may be repeated, by this worker or by another one. Images go first, snapshots
//! while the device still runs; it is stopped for what was last written on it alone, and for the one transaction after that.

use std::time::Duration;

use contracts::{Event, EventBody, SnapshotId};
use coordination::PortError;
use platform::events::emit;
use platform::problem::causes;
use tokio::time::sleep;
use tracing::{info, warn};

use super::db::{self, Move};
use super::handover;
use crate::device::{Device, Status};
use crate::node::placement::{self, Demand, Refusal};
use crate::node::{self, Node, down, reservation};
use crate::operation::api::change_status;
use crate::operation::db::{Claimed, advance, finish};
use crate::operation::steps::{Interrupted, Step, lock_living, run, spec, step};
use crate::port::Leased;
use crate::runtime::{RuntimeError, Seen};
use crate::snapshot::copies;
use crate::{Devices, Error};

/// How often a worker looks, while an image is on its way, whether somebody wants something else of the device.
const LOOK: Duration = Duration::from_secs(1);
const NOT_DRAINED: &str = "its node is not drained any more";

/// What became of a step that somebody may stand in the way of.
pub enum Outcome<T> {
    /// It is done.
    Done(T),
    /// Nothing of the device was touched, and it stays; why.
    Stays(&'static str),
}

/// Moves a device to another node. Where that fails before it is given over, it is made what it was.
pub async fn carry_out(state: &Devices, claimed: &Claimed) -> Step<()> {
    let (device, of) = look(state, claimed).await?;
    if device.node != of.source {
        return arrive(state, claimed, &of).await;
    }
    if of.error.is_none() {
        match give_away(state, claimed, device, &of).await {
            Ok(Outcome::Done(())) => return Ok(()),
            Ok(Outcome::Stays(why)) => return stay(state, claimed, why).await,
            Err(interrupted) if goes_on(&interrupted) => return Err(interrupted),
            Err(interrupted) => turn_back(state, claimed, &interrupted).await?,
        }
    }
    go_back(state, claimed).await
}

/// Whether an interruption says nothing about the move: it goes on, here or with another worker.
fn goes_on(interrupted: &Interrupted) -> bool {
    matches!(
        interrupted,
        Interrupted::Lost
            | Interrupted::Deleted
            | Interrupted::Database(_)
            | Interrupted::Ports(Error::Database(_) | Error::Ports(PortError::Store(_)))
            | Interrupted::Runtime(
                RuntimeError::Leaving | RuntimeError::Fenced | RuntimeError::Database(_)
            )
    )
}

async fn look(state: &Devices, claimed: &Claimed) -> Step<(Device, Move)> {
    let mut tx = state.platform.db.begin().await?;
    let device = lock_living(&mut tx, claimed).await?;
    let of = db::find(&mut tx, claimed.id).await?;
    tx.commit().await?;
    Ok((device, of.ok_or(Interrupted::Lost)?))
}

async fn give_away(
    state: &Devices,
    claimed: &Claimed,
    device: Device,
    of: &Move,
) -> Step<Outcome<()>> {
    if of.ran.is_none() {
        if !of.drained {
            return Ok(Outcome::Stays(NOT_DRAINED));
        }
        if !matches!(device.status, Status::Running | Status::Stopped) {
            return Ok(Outcome::Stays("something else was asked of it"));
        }
    }
    let within = state.config.move_deadline.as_secs_f64() - of.seconds;
    let within = Duration::try_from_secs_f64(within).unwrap_or_default();
    let (target, leased) = choose(state, claimed, &device, of).await?;
    let ports = state.ports_of(&target);
    let going = bring(state, claimed, device, of, (&target, within));
    match ports.while_held(&leased, going).await? {
        Outcome::Done(kept) => handover::hand_over(state, claimed, &target, leased, kept)
            .await
            .map(Outcome::Done),
        Outcome::Stays(why) => Ok(Outcome::Stays(why)),
    }
}

/// Brings all that is on a device to another node, stopped for what was last written on it; what that is kept in, and its size.
async fn bring<'a>(
    state: &Devices,
    claimed: &'a Claimed,
    device: Device,
    of: &Move,
    (target, within): (&Node, Duration),
) -> Step<Outcome<Option<(&'a SnapshotId, i64)>>> {
    let has_images = device.runtime.has_engine();
    if has_images && of.ran.is_none() {
        // Before anything is brought, or stopped in vain.
        let engine = state.runtimes.engines.of(&device.node)?;
        engine.bound_layers(&spec(&device, claimed)).await?;
    }
    if has_images && of.ran.is_none() {
        let going = bring_snapshots(state, claimed, false, target, within);
        match unless_wanted(state, claimed, going).await? {
            Outcome::Done(()) => {}
            Outcome::Stays(why) => return Ok(Outcome::Stays(why)),
        }
    }
    let device = match stop(state, claimed).await? {
        Outcome::Done(device) => device,
        Outcome::Stays(why) => return Ok(Outcome::Stays(why)),
    };
    let runtime = state.runtimes.of(device.runtime, &device.node)?;
    runtime.stop(&spec(&device, claimed)).await?;
    let mut kept = None;
    if has_images {
        let hidden = claimed.snapshot_id.as_ref().ok_or(Interrupted::Lost)?;
        // What has no container is made anew of what it was made of.
        let is_there = runtime.inspect(&device.id).await? != Seen::Absent;
        let going = async {
            if is_there {
                let size = runtime.snapshot(&spec(&device, claimed), hidden).await?;
                copies::bring_to(state, hidden, &target.name, within).await?;
                kept = Some((hidden, size));
            }
            // What was brought already is seen to be there.
            bring_snapshots(state, claimed, !is_there, target, within).await
        };
        unless_deleted(state, claimed, going).await?;
    }
    Ok(Outcome::Done(kept))
}

/// The node that the device comes to, with ports there: the one that was chosen before, as long as it can take it.
async fn choose(
    state: &Devices,
    claimed: &Claimed,
    device: &Device,
    of: &Move,
) -> Step<(Node, Leased)> {
    let nodes = {
        let mut conn = state.platform.db.acquire().await?;
        node::db::all(&mut conn).await?
    };
    // It goes on as what it is: what an image of an engine keeps is nothing for another kind.
    let runs_there = |node: &Node| {
        node.runtime == device.runtime || (!device.runtime.has_engine() && node.hosts_simulated)
    };
    let nodes: Vec<Node> = nodes.into_iter().filter(runs_there).collect();
    let provider = match device.runtime.has_engine() {
        true => device.provider_type,
        false => crate::device::ProviderType::Simulated,
    };
    let demand = Demand::new(provider, device.size(), node::selector(&device.metadata));
    let mut tried = vec![Refusal {
        node: device.node.clone(),
        reason: "is being drained".into(),
    }];
    let before = of.target.as_deref();
    if let Some(node) = nodes.iter().find(|node| Some(&*node.name) == before)
        && node.closed().is_none()
        && answers(state, node).await.is_ok()
        && let Ok(leased) = lease(state, device, node).await?
    {
        return Ok((node.clone(), leased));
    }
    for _ in 0..nodes.len() {
        let chosen = placement::choose(&nodes, &demand, state.config.placement, &tried);
        let (node, _) = chosen.map_err(Interrupted::no_room)?;
        let mut refuse = |reason: String| {
            let node = node.name.clone();
            tried.push(Refusal { node, reason });
        };
        if let Err(error) = answers(state, node).await {
            refuse(error.to_string());
            continue;
        }
        // What is not used of these goes back by itself.
        let leased = match lease(state, device, node).await? {
            Ok(leased) => leased,
            Err(reason) => {
                refuse(reason);
                continue;
            }
        };
        let mut tx = state.platform.db.begin().await?;
        let device = lock_living(&mut tx, claimed).await?;
        if !advance(&mut tx, claimed, "bring-images").await? {
            return Err(Interrupted::Lost);
        }
        if !db::aim(&mut tx, claimed.id, &node.name).await? {
            refuse(down::NOT_REMOVED.into());
            continue;
        }
        if let Some(before) = before.filter(|before| *before != node.name)
            && device.runtime.has_engine()
        {
            down::leave_images_behind(&mut tx, &device, before).await?;
        }
        let place = (node.name.as_str(), device.runtime);
        if !reservation::hold(&mut tx, claimed, place, &demand).await? {
            refuse("has no room any more".into());
            continue;
        }
        if device.runtime.has_engine() {
            let weight = db::weight(&mut tx, &device.id, &node.name).await?;
            if !reservation::hold_disk(&mut tx, claimed, &node.name, weight).await? {
                refuse(reservation::NO_DISK.into());
                continue;
            }
        }
        tx.commit().await?;
        return Ok((node.clone(), leased));
    }
    Err(Interrupted::no_room(tried))
}

/// Leases ports on a node to a device that is about to come there; why there are none.
async fn lease(state: &Devices, device: &Device, node: &Node) -> Step<Result<Leased, String>> {
    match state.ports_of(node).lease(&device.id).await {
        Ok(leased) => Ok(Ok(leased)),
        Err(Error::Ports(error @ PortError::Exhausted { .. })) => Ok(Err(error.to_string())),
        Err(error @ Error::PortsContended { .. }) => Ok(Err(error.to_string())),
        Err(error) => Err(Interrupted::Ports(error)),
    }
}

async fn answers(state: &Devices, node: &Node) -> Result<(), RuntimeError> {
    if !node.runtime.has_engine() {
        return Ok(());
    }
    state.runtimes.engines.know(node);
    state.runtimes.engines.of(&node.name)?.ping().await
}

async fn bring_snapshots(
    state: &Devices,
    claimed: &Claimed,
    made_of: bool,
    target: &Node,
    within: Duration,
) -> Step<()> {
    let snapshots = {
        let mut conn = state.platform.db.acquire().await?;
        db::snapshots(&mut conn, &claimed.device_id, made_of).await?
    };
    for snapshot in &snapshots {
        copies::bring_to(state, snapshot, &target.name, within).await?;
    }
    Ok(())
}

/// Does something that leaves the device alone, unless somebody wants something else of it meanwhile.
async fn unless_wanted(
    state: &Devices,
    claimed: &Claimed,
    going: impl Future<Output = Step<()>>,
) -> Step<Outcome<()>> {
    let wanted = async {
        loop {
            match is_wanted(state, claimed).await {
                (true, _) => return Err(Interrupted::Deleted),
                (_, true) => return Ok(Outcome::Stays("something else was asked of it")),
                _ => sleep(LOOK).await,
            }
        }
    };
    tokio::select! {
        done = going => done.map(Outcome::Done),
        wanted = wanted => wanted,
    }
}

/// Does something while the device is stopped, unless it is deleted meanwhile.
async fn unless_deleted(
    state: &Devices,
    claimed: &Claimed,
    going: impl Future<Output = Step<()>>,
) -> Step<()> {
    let deleted = async {
        while !is_wanted(state, claimed).await.0 {
            sleep(LOOK).await;
        }
    };
    tokio::select! {
        done = going => done,
        () = deleted => Err(Interrupted::Deleted),
    }
}

/// Where the database does not answer, nobody wants anything that we know of.
async fn is_wanted(state: &Devices, claimed: &Claimed) -> (bool, bool) {
    let asked = async {
        let mut conn = state.platform.db.acquire().await?;
        db::is_wanted(&mut conn, claimed).await
    };
    asked.await.unwrap_or_default()
}

/// Writes that the device is stopped for the move, where it still can be.
async fn stop(state: &Devices, claimed: &Claimed) -> Step<Outcome<Device>> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let mut device = lock_living(&mut tx, claimed).await?;
    let of = db::find(&mut tx, claimed.id).await?;
    let of = of.ok_or(Interrupted::Lost)?;
    if !advance(&mut tx, claimed, "stop-container").await? {
        return Err(Interrupted::Lost);
    }
    if of.ran.is_none() {
        if !of.drained {
            return Ok(Outcome::Stays(NOT_DRAINED));
        }
        match device.status {
            Status::Running => {
                change_status(&mut tx, &device, Status::Rebooting, None, now).await?;
                device.status = Status::Rebooting;
                db::stopping(&mut tx, claimed.id, true).await?;
            }
            Status::Stopped => db::stopping(&mut tx, claimed.id, false).await?,
            _ => return Ok(Outcome::Stays("something else was asked of it")),
        }
    }
    tx.commit().await?;
    Ok(Outcome::Done(device))
}

/// Ends a move that has not touched the device.
async fn stay(state: &Devices, claimed: &Claimed, why: &str) -> Step<()> {
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    match finish(&mut conn, claimed, "cancelled", Some(why), now).await? {
        true => Ok(()),
        false => Err(Interrupted::Lost),
    }
}

/// Writes that the device goes back to what it was: from here on nobody tries to give it away.
async fn turn_back(state: &Devices, claimed: &Claimed, why: &Interrupted) -> Step<()> {
    let text = causes(why);
    warn!(device.id = %claimed.device_id, "device {} could not be moved: {text}", claimed.device_id);
    let mut tx = state.platform.db.begin().await?;
    lock_living(&mut tx, claimed).await?;
    if !advance(&mut tx, claimed, "go-back").await? {
        return Err(Interrupted::Lost);
    }
    db::turn_back(&mut tx, claimed.id, &text).await?;
    tx.commit().await?;
    Ok(())
}

/// Makes the device what it was on its source, and ends the move.
async fn go_back(state: &Devices, claimed: &Claimed) -> Step<()> {
    let (device, of) = look(state, claimed).await?;
    if of.ran == Some(true) {
        let runtime = state.runtimes.of(device.runtime, &device.node)?;
        let spec = spec(&device, claimed);
        runtime.create(&spec).await?;
        runtime.start(&spec).await?;
    }
    let reason = of.error.unwrap_or_default();
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let device = lock_living(&mut tx, claimed).await?;
    let told = "the device could not be moved to another node, and stays where it is";
    if !finish(&mut tx, claimed, "failed", Some(told), now).await? {
        return Err(Interrupted::Lost);
    }
    if of.ran == Some(true) {
        change_status(&mut tx, &device, Status::Running, None, now).await?;
    }
    // It is tried again: that is told once, until its node is drained anew.
    if db::is_first_failure(&mut tx, claimed).await? {
        let body = EventBody::DeviceMoveFailed {
            device_id: device.id.clone(),
            name: device.name.clone(),
            from_node: of.source,
            reason,
        };
        emit(&mut tx, &Event::new(device.user_id.clone(), now, body)).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Makes the device on the node that it has come to.
async fn arrive(state: &Devices, claimed: &Claimed, of: &Move) -> Step<()> {
    let device = step(state, claimed, "create-container", |_| None).await?;
    let runtime = state.runtimes.of(device.runtime, &device.node)?;
    runtime.create(&spec(&device, claimed)).await?;
    info!(device.id = %device.id, "device {} has come from node {} to node {}", device.id, of.source, device.node);
    if of.ran == Some(true) {
        return run(state, claimed, device).await;
    }
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    match finish(&mut conn, claimed, "done", None, now).await? {
        true => Ok(()),
        false => Err(Interrupted::Lost),
    }
}
