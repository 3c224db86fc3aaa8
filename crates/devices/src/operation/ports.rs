//! Other ports for a device, where a foreign program took one of its own after they were leased.

use contracts::DeviceId;
use coordination::{PortKind, RestReason};
use tracing::warn;

use super::api::tell;
use super::db::{self, Claimed};
use super::steps::{Interrupted, Step, lock_living, step};
use crate::device::{self, Device};
use crate::runtime::RuntimeError;
use crate::{Devices, metrics, node, port};

/// Gives a device another set of ports and sends those it had to rest, the occupied one for as long as foreign ones do.
///
/// The row decides, in one transaction with the rests, under the token of the worker; Redis learns it afterwards. Whoever dies
/// before the commit has changed nothing, and the other set falls back by itself. Whoever dies after it leaves a device that
/// does not hold its ports in Redis, which the next keeping of the leases puts right in the same way.
pub async fn change(state: &Devices, claimed: &Claimed, occupied: u16) -> Step<Device> {
    let device = step(state, claimed, "change-ports", |_| None).await?;
    let node = {
        let mut conn = state.platform.db.acquire().await?;
        node::db::find(&mut conn, &device.node).await?
    };
    let node = node.ok_or_else(|| RuntimeError::NoEngine {
        node: device.node.clone(),
    })?;
    let ports = state.ports_of(&node);
    // To an owner of its own: until the row says otherwise, the device has what it had.
    let leased = ports.lease(&DeviceId::new()).await;
    let mut leased = leased.map_err(Interrupted::Ports)?;

    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let mut device = lock_living(&mut tx, claimed).await?;
    if !db::advance(&mut tx, claimed, "create-container").await? {
        return Err(Interrupted::Lost);
    }
    let before = device.ports();
    for kind in PortKind::ALL {
        let port = before.of(kind);
        let (reason, rest) = match port == occupied {
            true => (RestReason::ForeignProcess, ports.foreign),
            false => (RestReason::Returned, ports.quarantine),
        };
        port::db::quarantine(&mut tx, &device.node, (kind, port), reason, rest).await?;
    }
    match device::db::set_ports(&mut tx, &device.id, leased.ports, now).await {
        Err(error) if port::is_conflict(&error) => {
            // Redis had forgotten who holds them; the database had not.
            tx.rollback().await?;
            metrics::ports_contended("held");
            ports.give_up(leased).await;
            ports.reconcile().await.map_err(Interrupted::Ports)?;
            return Err(error.into());
        }
        set => set?,
    }
    // Its clients were told the former ones.
    tell(&mut tx, &device, device.status, None, now).await?;
    // Whether the commit takes effect may stay unknown.
    leased.keep();
    tx.commit().await?;

    metrics::ports_contended("occupied");
    device.take_ports(leased.ports);
    warn!(device.id = %device.id, "another program listens on port {occupied} of node {}: device {} has {:?} instead of {before:?}", device.node, device.id, leased.ports);
    if let Err(error) = ports.reconcile().await {
        warn!(device.id = %device.id, "Redis does not know the new ports of device {} yet: {error}", device.id);
    }
    Ok(device)
}
