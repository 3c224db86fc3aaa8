//! The one transaction that makes a device one of another node.

use contracts::{Event, EventBody, SnapshotId};
use coordination::{PortKind, RestReason};
use platform::events::emit;
use tracing::info;

use super::db;
use crate::Devices;
use crate::node::placement::{Demand, Refusal};
use crate::node::{self, Node, down, reservation};
use crate::operation::api::tell;
use crate::operation::db::{Claimed, advance, hand_on};
use crate::operation::steps::{Interrupted, Step, lock_living};
use crate::port::{self, Leased};

/// Gives a device to its new node, with the ports that were leased there and what was kept of it, and the operation to whoever reaches that one.
///
/// Whoever dies before the commit has changed nothing. After it the device is of the new node; its former ports rest, and what
/// it was made of is removed from its former node once it has arrived.
pub async fn hand_over(
    state: &Devices,
    claimed: &Claimed,
    target: &Node,
    mut leased: Leased,
    kept: Option<(&SnapshotId, i64)>,
) -> Step<()> {
    let refused = |reason: String| {
        let node = target.name.clone();
        Interrupted::no_room(vec![Refusal { node, reason }])
    };
    let ports = state.ports_of(target);
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let before = lock_living(&mut tx, claimed).await?;
    if !advance(&mut tx, claimed, "hand-over").await? {
        return Err(Interrupted::Lost);
    }
    if !db::stays_draining(&mut tx, &before.node).await? {
        tx.rollback().await?;
        ports.hand_back(leased).await.map_err(Interrupted::Ports)?;
        return Err(refused(format!(
            "node {} is not drained any more",
            before.node
        )));
    }
    if before.runtime.has_engine() {
        let left = (before.ports(), true);
        down::leave_behind(&mut tx, &before.id, &before.node, left).await?;
    }
    for kind in PortKind::ALL {
        let port = (kind, before.ports().of(kind));
        let rest = (RestReason::Returned, ports.quarantine);
        port::db::quarantine(&mut tx, &before.node, port, rest.0, rest.1).await?;
    }
    let place = (target.name.as_str(), leased.ports);
    match db::hand_over(&mut tx, claimed, place, kept, now).await {
        Err(error) if port::is_conflict(&error) => {
            // Redis had forgotten who holds them; the database had not.
            tx.rollback().await?;
            ports.give_up(leased).await;
            ports.reconcile().await.map_err(Interrupted::Ports)?;
            return Err(error.into());
        }
        set => set?,
    }
    tell(&mut tx, &before, before.status, None, now).await?;
    let body = EventBody::DeviceMoved {
        device_id: before.id.clone(),
        name: before.name.clone(),
        from_node: before.node.clone(),
        to_node: target.name.clone(),
        snapshot_id: None,
    };
    emit(&mut tx, &Event::new(before.user_id.clone(), now, body)).await?;
    let selector = node::selector(&before.metadata);
    let demand = Demand::new(before.provider_type, before.size(), selector);
    let place = (target.name.as_str(), before.runtime);
    if !reservation::redeem(&mut tx, claimed, place, &demand).await? {
        tx.rollback().await?;
        ports.hand_back(leased).await.map_err(Interrupted::Ports)?;
        return Err(refused("has no room any more".into()));
    }
    if !hand_on(&mut tx, claimed).await? {
        return Err(Interrupted::Lost);
    }
    // Whether the commit takes effect may stay unknown.
    leased.keep();
    tx.commit().await?;

    info!(device.id = %before.id, "device {} goes from node {} to node {}", before.id, before.node, target.name);
    let former = state.ports.of_name(&before.node);
    former.release(&before.id, before.ports()).await;
    Ok(())
}
