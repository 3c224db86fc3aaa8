//! One round of the reconciler, over all nodes. Any number of rounds at once do no harm: what is removed is removed by its
//! identity, and what is put right waits in the queue of operations.

use std::time::Duration;

use contracts::DeviceId;
use coordination::{PortKind, RestReason};
use futures::StreamExt;
use futures::stream;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Action, Container, Difference, Row, db, differences, ports};
use crate::device::{self, Status};
use crate::node::{self, Node, down};
use crate::operation::api::change_status;
use crate::operation::{Kind, db as operations};
use crate::snapshot::copies;
use crate::{Devices, error::Result, metrics, port};

/// Nodes that are looked at together.
const NODES_AT_ONCE: usize = 8;
/// Within this time a device may be put right so many times; then it is in error.
const REPAIRS: (i64, Duration) = (5, Duration::from_secs(3600));
/// How often the same stopped device without a container is reported.
const REPORT_AGAIN: Duration = Duration::from_secs(24 * 3600);
/// How long the audit trail is kept.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// In how many rounds a container without a device is seen before that is told.
const SIGHTS: i32 = 2;
/// Entries that one round drops.
const BATCH: i64 = 10_000;

/// Compares every node that can be reached with its devices. A node that fails does not keep the others from it.
///
/// # Errors
/// Where the nodes cannot be read, or a node failed.
pub async fn run(state: &Devices, cancelled: &CancellationToken) -> anyhow::Result<()> {
    let nodes = {
        let mut conn = state.platform.db.acquire().await?;
        db::forget_old(&mut conn, KEPT, BATCH).await?;
        node::db::all(&mut conn).await?
    };
    state.runtimes.engines.learn(&nodes);
    let mut rounds = stream::iter(nodes)
        .map(|node| async move {
            let round = one(state, &node, cancelled).await;
            (node.name, round)
        })
        .buffer_unordered(NODES_AT_ONCE);
    let mut failed = None;
    while let Some((node, round)) = rounds.next().await {
        if let Err(error) = round {
            let context = format!("reconciling node {node}");
            failed = Some(anyhow::Error::from(error).context(context));
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Compares a node on all three sides. Neither of Redis and the engine keeps the other from it.
async fn one(state: &Devices, node: &Node, cancelled: &CancellationToken) -> Result<()> {
    let containers = containers(state, node, cancelled).await;
    let ports = ports::compare(state, node).await;
    containers.and(ports)
}

async fn containers(state: &Devices, node: &Node, cancelled: &CancellationToken) -> Result<()> {
    if !node.runtime.has_engine() || node.down_since.is_some() {
        return Ok(());
    }
    let engine = state.runtimes.engines.of(&node.name)?;
    if !engine.presence().answers() && engine.ping().await.is_err() {
        // Whether it is down is for others to say.
        return Ok(());
    }
    let before = rows(state, node).await?;
    let containers = engine.list().await?;
    let after = rows(state, node).await?;
    let found = differences(&before, containers, &after);
    let orphans: Vec<String> = (found.iter())
        .filter_map(|difference| match difference {
            Difference::Orphan(container) => Some(container.id.clone()),
            Difference::Broken { .. } | Difference::Missing { .. } => None,
        })
        .collect();
    for difference in found {
        if cancelled.is_cancelled() {
            return Ok(());
        }
        match difference {
            Difference::Orphan(container) => orphan(state, node, &container).await?,
            Difference::Broken { device, how } => broken(state, node, &device, &how).await?,
            Difference::Missing { device } => missing(state, node, &device).await?,
        }
    }
    {
        let mut conn = state.platform.db.acquire().await?;
        db::forget_orphans(&mut conn, &node.name, &orphans).await?;
    }
    if node.runtime.keeps_snapshots() {
        copies::verify(state, &node.name, &*engine).await?;
    }
    Ok(())
}

async fn rows(state: &Devices, node: &Node) -> Result<Vec<Row>> {
    let mut conn = state.platform.db.acquire().await?;
    Ok(db::rows(&mut conn, &node.name).await?)
}

/// Reports a container without a device, and removes it when it has been one for long enough.
async fn orphan(state: &Devices, node: &Node, container: &Container) -> Result<()> {
    let whom = (Some(container.device.as_str()), Some(container.id.as_str()));
    let grace = state.config.orphan_grace;
    let mut tx = state.platform.db.begin().await?;
    if let Ok(device) = container.device.parse()
        && down::is_left(&mut tx, &node.name, &device).await?
    {
        // Its device was taken from the node, and it is removed as what that left.
        return Ok(());
    }
    let key = (container.id.as_str(), container.device.as_str());
    let (seen, is_due) = db::see_orphan(&mut tx, &node.name, key, grace).await?;
    // What is seen once may be one whose device was deleted while the containers were listed.
    if seen == SIGHTS {
        let detail = format!("no device of the node has it; it is removed after {grace:?}");
        db::note(&mut tx, &node.name, Action::OrphanFound, whom, &detail).await?;
        metrics::reconciled(Action::OrphanFound);
        warn!(
            "container {} on node {} says it is for {}, which is no device there",
            container.id, node.name, container.device
        );
    }
    // The row, not what was read before, has the last word.
    let is_due =
        seen >= SIGHTS && is_due && !db::is_on(&mut tx, &container.device, &node.name).await?;
    // Who is connected to it must not meet the next tenant there.
    let ports = container.ports.filter(|_| is_due);
    if let Some(ports) = ports {
        let rest = state.config.port_quarantine;
        for kind in PortKind::ALL {
            let port = (kind, ports.of(kind));
            port::db::quarantine(&mut tx, &node.name, port, RestReason::Returned, rest).await?;
        }
    }
    tx.commit().await?;
    if !is_due {
        return Ok(());
    }
    if ports.is_some() {
        state.ports.of(node).reconcile().await?;
    }
    let engine = state.runtimes.engines.of(&node.name)?;
    engine.remove_container(&container.id).await?;
    let mut conn = state.platform.db.acquire().await?;
    let detail = format!("no device of the node had it for {grace:?}");
    db::note(&mut conn, &node.name, Action::OrphanRemoved, whom, &detail).await?;
    metrics::reconciled(Action::OrphanRemoved);
    info!(
        "removed container {} from node {}: no device has it",
        container.id, node.name
    );
    Ok(())
}

/// Has a device put right, unless that was tried often enough.
async fn broken(state: &Devices, node: &Node, id: &DeviceId, how: &str) -> Result<()> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let Some(device) = device::db::lock(&mut tx, id).await? else {
        return Ok(());
    };
    // Under its lock: something may be being done with it by now.
    let is_still = device.node == node.name
        && matches!(device.status, Status::Running | Status::Stopped)
        && !operations::is_busy(&mut tx, id).await?;
    if !is_still {
        return Ok(());
    }
    let (most, within) = REPAIRS;
    let whom = (Some(id.as_str()), None);
    let action = match db::count_repairs(&mut tx, id, within).await? < most {
        true => {
            operations::insert(&mut tx, id, Kind::Repair, true, now).await?;
            warn!(device.id = %id, "device {id} is to be put right: {how}");
            Action::Repair
        }
        false => {
            let reason = format!("it was put right {most} times within {within:?}: {how}");
            change_status(&mut tx, &device, Status::Error, Some(&reason), now).await?;
            Action::GivenUp
        }
    };
    db::note(&mut tx, &node.name, action, whom, how).await?;
    tx.commit().await?;
    metrics::reconciled(action);
    state.operations_due.notify_one();
    Ok(())
}

/// Reports a stopped device whose container is gone, with what was in it: its next start makes another.
async fn missing(state: &Devices, node: &Node, id: &DeviceId) -> Result<()> {
    let action = Action::ContainerMissing;
    let mut conn = state.platform.db.acquire().await?;
    if db::is_noted(&mut conn, id.as_str(), action, REPORT_AGAIN).await? {
        return Ok(());
    }
    let detail = "it is stopped and has no container; its next start makes one";
    let whom = (Some(id.as_str()), None);
    db::note(&mut conn, &node.name, action, whom, detail).await?;
    metrics::reconciled(action);
    Ok(())
}
