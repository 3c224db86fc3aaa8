//! The leases in Redis beside the rows: what is missing there is restored, what nobody has is reported.

use std::time::Duration;

use tracing::warn;

use super::{Action, db};
use crate::device::db as devices;
use crate::node::{Node, reservation};
use crate::{Devices, error::Result, metrics, port};

/// How often the same unowned lease is reported.
const REPORT_AGAIN: Duration = Duration::from_secs(3600);

/// Compares the leases of a node with its devices.
pub async fn compare(state: &Devices, node: &Node) -> Result<()> {
    let ports = state.ports.of(node);
    // Before the leases: a device is leased its ports before it has its row.
    let held = {
        let mut conn = state.platform.db.acquire().await?;
        port::db::held(&mut conn, &node.name).await?
    };
    let leases = match ports.leases().await {
        // An index that is missing is built by who keeps the leases.
        Err(crate::Error::Ports(coordination::PortError::IndexMissing { .. })) => return Ok(()),
        leases => leases?,
    };
    let missing: Vec<_> = (held.iter())
        .filter(|(id, set)| !(leases.iter()).any(|lease| lease.owner == *id && lease.ports == *set))
        .collect();
    if !missing.is_empty() {
        ports.reconcile().await?;
        for (id, set) in missing {
            let mut conn = state.platform.db.acquire().await?;
            // It may have been released, or have got other ports, between the two looks.
            let now = match id.parse() {
                Ok(id) => devices::find(&mut conn, &id).await?,
                Err(_) => None,
            };
            if now.is_some_and(|device| device.ports() == *set && device.node == node.name) {
                let detail = format!("{set:?} were not leased to it");
                let whom = (Some(id.as_str()), None);
                db::note(&mut conn, &node.name, Action::LeaseRestored, whom, &detail).await?;
                metrics::reconciled(Action::LeaseRestored);
            }
        }
    }
    let expected = {
        let mut conn = state.platform.db.acquire().await?;
        reservation::devices(&mut conn, &node.name).await?
    };
    for lease in leases {
        let age = (state.platform.clock.now().utc() - lease.since)
            .to_std()
            .unwrap_or_default();
        let is_known =
            held.iter().any(|(id, _)| *id == lease.owner) || expected.contains(&lease.owner);
        if is_known || age < state.config.port_lease {
            continue;
        }
        let mut conn = state.platform.db.acquire().await?;
        let action = Action::LeaseUnowned;
        if !db::is_noted(&mut conn, &lease.owner, action, REPORT_AGAIN).await? {
            warn!(
                "ports {:?} of node {} are leased to {}, which is no device there",
                lease.ports, node.name, lease.owner
            );
            let detail = format!(
                "{:?} are leased to it, and it is no device there; the lease ends by itself",
                lease.ports
            );
            let whom = (Some(lease.owner.as_str()), None);
            db::note(&mut conn, &node.name, action, whom, &detail).await?;
            metrics::reconciled(action);
        }
    }
    Ok(())
}
