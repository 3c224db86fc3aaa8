//! A node that nobody reaches any more, and one that is back. Every step may be taken by any replica, at any time: the rows
//! decide who was first, and what is left undone is done at the next look.

use std::time::Duration;

use contracts::DeviceId;
use coordination::{PortKind, PortSet, RestReason};
use sqlx::PgConnection;
use tracing::{error, info};

use super::Node;
use crate::config::Failover;
use crate::device::{self, Device, Status, port_set};
use crate::operation::api::change_status;
use crate::operation::{Kind, db as operations};
use crate::{Devices, error::Result, port, snapshot};

/// How many devices one look deals with.
const BATCH: i64 = 200;
/// How many containers one look removes: each may take long.
const LEFTOVERS: usize = 8;
/// How long a replica has one of them in hand: longer than it may look after a node at a time.
const IN_HAND: Duration = Duration::from_secs(10);

/// Why a device does not come to a node that it was on.
pub const NOT_REMOVED: &str = "what was left there of the device is not removed yet";

/// What was left of a device on a node.
#[derive(sqlx::FromRow)]
struct Leftover {
    device_id: DeviceId,
    adb_port: i32,
    webrtc_port: i32,
    scrcpy_port: i32,
    rested: bool,
}

/// Notes that an engine answered.
pub async fn seen(conn: &mut PgConnection, node: &str) -> sqlx::Result<()> {
    let update = sqlx::query(
        "update devices.nodes set seen_at = clock_timestamp() where name = $1 and (seen_at is null or seen_at < clock_timestamp() - interval '500 milliseconds')",
    );
    update.bind(node).execute(conn).await?;
    Ok(())
}

/// Marks a node as down that no replica has reached for so long; whether this call did it.
pub async fn mark(
    conn: &mut PgConnection,
    node: &str,
    after: Duration,
    reason: &str,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "-- nodes::mark_down
        update devices.nodes set down_since = clock_timestamp(), down_reason = $3
        where name = $1 and down_since is null and removed_at is null and coalesce(seen_at, since) < clock_timestamp() - $2",
    );
    let done = update
        .bind(node)
        .bind(after)
        .bind(reason)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Puts the devices of a node that is down in error, each in a transaction of its own: what was being done with them ends,
/// and its workers are fenced. With `elsewhere` those that shall run are made anew on other nodes.
pub async fn lose_devices(state: &Devices, node: &Node, elsewhere: bool) -> Result<usize> {
    let ids: Vec<DeviceId> = {
        let mut conn = state.platform.db.acquire().await?;
        let select = sqlx::query_scalar(
            "select id from devices.devices where node = $1 and runtime <> 'simulated'
                and status in ('creating', 'starting', 'running', 'stopping', 'rebooting') order by id limit $2",
        );
        select
            .bind(&node.name)
            .bind(BATCH)
            .fetch_all(&mut *conn)
            .await?
    };
    let mut lost = 0;
    for id in ids {
        lost += usize::from(lose(state, node, &id, elsewhere).await?);
    }
    if lost > 0 {
        error!("{lost} devices are in error: node {} is down", node.name);
        state.operations_due.notify_one();
    }
    Ok(lost)
}

async fn lose(state: &Devices, node: &Node, id: &DeviceId, elsewhere: bool) -> Result<bool> {
    let reason = format!("node {} is down", node.name);
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let Some(device) = device::db::lock(&mut tx, id).await? else {
        return Ok(false);
    };
    let is_lost = device.node == node.name
        && device.node_down
        && matches!(
            device.status,
            Status::Creating
                | Status::Starting
                | Status::Running
                | Status::Stopping
                | Status::Rebooting
        );
    if !is_lost {
        return Ok(false);
    }
    operations::end_all(&mut tx, id, &reason, now).await?;
    change_status(&mut tx, &device, Status::Error, Some(&reason), now).await?;
    let update = sqlx::query("update devices.devices set lost = true where id = $1");
    update.bind(id).execute(&mut *tx).await?;
    if elsewhere && device.wanted == Status::Running {
        operations::insert(&mut tx, id, Kind::Repair, true, now).await?;
    }
    tx.commit().await?;
    Ok(true)
}

/// Takes a node back whose engine answers again: first what was made anew elsewhere is removed from it, then it is no longer
/// down, then each device that was lost is looked at. What it keeps of a device that it gave away, and that is in error where
/// it went, does not hinder it.
pub async fn come_back(state: &Devices, node: &Node) -> Result<()> {
    remove_leftovers(state, node).await?;
    // Their ports rest: whoever was connected to one must not meet the next tenant there. Whoever removed them may have died
    // since, and another may take the node back.
    state.ports.of(node).reconcile().await?;
    let mut tx = state.platform.db.begin().await?;
    // Whoever takes a device from here holds the row meanwhile, and what he left behind shows to a statement after that.
    let select = sqlx::query("select from devices.nodes where name = $1 for update");
    select.bind(&node.name).execute(&mut *tx).await?;
    let update = sqlx::query(
        "-- nodes::come_back
        update devices.nodes set down_since = null, down_reason = null, seen_at = clock_timestamp()
        where name = $1 and down_since is not null and not exists (
            select 1 from devices.leftovers l where l.node = $1 and not exists (
                select 1 from devices.held_leftovers h where h.node = l.node and h.device_id = l.device_id))",
    );
    let done = update.bind(&node.name).execute(&mut *tx).await?;
    if done.rows_affected() == 1 {
        // What waited for it has waited for no fault of its own.
        let update = sqlx::query(
            "update devices.operations set begun_at = null, due_at = clock_timestamp()
            where state in ('queued', 'running') and device_id in (
                select id from devices.devices where node = $1 and runtime <> 'simulated' and released_at is null)",
        );
        update.bind(&node.name).execute(&mut *tx).await?;
    }
    tx.commit().await?;
    if done.rows_affected() == 1 {
        info!("node {} is back", node.name);
    }
    Ok(())
}

/// Queues a look at each device that was lost with its node, once the node is back.
pub async fn find_again(state: &Devices, node: &Node) -> Result<u64> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let insert = sqlx::query(
        "-- nodes::find_again
        with found as (
            select d.id from devices.devices d join devices.nodes n on n.name = d.node
            where d.node = $1 and d.lost and d.status = 'error' and n.down_since is null and not exists (
                select 1 from devices.operations o where o.device_id = d.id and o.state in ('queued', 'running'))
            order by d.id limit $2 for update of d skip locked),
        queued as (
            insert into devices.operations (saga_id, device_id, kind, state, begun, step, created_at)
            select gen_random_uuid()::text, id, 'repair', 'queued', true, 'queued', $3 from found)
        update devices.devices set lost = false where id in (select id from found)",
    );
    let done = insert
        .bind(&node.name)
        .bind(BATCH)
        .bind(now)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    if done.rows_affected() > 0 {
        info!(
            "looking what became of {} devices of node {}",
            done.rows_affected(),
            node.name
        );
        state.operations_due.notify_one();
    }
    Ok(done.rows_affected())
}

/// How long after it was last tried a device is looked at again that waits for a node which keeps something of it.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Queues the failover of devices whose own node is down and that a node keeps something of which is there: it may have been
/// away when they were lost, or there was no room for them.
pub async fn find_elsewhere(state: &Devices, node: &Node) -> Result<u64> {
    if state.config.failover == Failover::None {
        return Ok(0);
    }
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let insert = sqlx::query(
        "-- nodes::find_elsewhere
        with found as (
            select d.id from devices.devices d join devices.nodes n on n.name = d.node
            where d.lost and d.status = 'error' and d.wanted = 'running' and d.node <> $1
                and n.down_since is not null and n.removed_at is null
                and exists (select 1 from devices.nodes k where k.name = $1 and k.down_since is null and k.removed_at is null)
                and not exists (
                    select 1 from devices.operations o where o.device_id = d.id
                        and (o.state in ('queued', 'running') or o.finished_at > clock_timestamp() - $4))
                and (exists (
                        select 1 from devices.held_leftovers l join devices.leftovers o on o.node = l.node and o.device_id = l.device_id
                        where l.node = $1 and l.device_id = d.id and o.claimed_until is null
                            and exists (
                                select 1 from devices.moves m join devices.operations g on g.id = m.operation_id and g.state <> 'done'
                                where m.device_id = d.id and m.source = $1
                                    and (d.last_started_at is null or d.last_started_at <= m.handed_over_at)))
                    or ($5 and exists (
                        select 1 from devices.snapshot_copies c join devices.snapshots s on s.id = c.snapshot_id
                        where c.node = $1 and c.state = 'ready' and s.device_id = d.id and s.taken_at is not null
                            and s.status in ('ready', 'restoring'))))
            order by d.id limit $2 for update of d skip locked)
        insert into devices.operations (saga_id, device_id, kind, state, begun, step, created_at)
        select gen_random_uuid()::text, id, 'repair', 'queued', true, 'queued', $3 from found",
    );
    let done = insert
        .bind(&node.name)
        .bind(BATCH)
        .bind(now)
        .bind(LOOK_AGAIN)
        .bind(state.config.failover == Failover::Snapshot)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    if done.rows_affected() > 0 {
        let count = done.rows_affected();
        info!(
            "node {} keeps something of {count} devices whose own node is down",
            node.name
        );
        state.operations_due.notify_one();
    }
    Ok(done.rows_affected())
}

/// Whether a node is down, which it stays until the transaction ends. What the device had there is counted off the same row
/// at its end: two that shared the lock would wait for each other.
pub async fn stays_down(tx: &mut PgConnection, node: &str) -> sqlx::Result<bool> {
    let select = sqlx::query(
        "select from devices.nodes where name = $1 and down_since is not null for no key update",
    );
    let done = select.bind(node).execute(tx).await?;
    Ok(done.rows_affected() == 1)
}

/// Notes what stays behind on a node from which a device is taken, in the transaction that does it. Its ports rest once that
/// is removed, unless they have `rested` already.
pub async fn leave_behind(
    tx: &mut PgConnection,
    device: &DeviceId,
    node: &str,
    (ports, rested): (PortSet, bool),
) -> sqlx::Result<()> {
    let [adb, webrtc, scrcpy] = device::port_columns(ports);
    // All images of the device go from there.
    snapshot::copies::forget_on(tx, device, node).await?;
    let insert = sqlx::query(
        "insert into devices.leftovers (node, device_id, adb_port, webrtc_port, scrcpy_port, rested) values ($1, $2, $3, $4, $5, $6)
        on conflict (node, device_id) do nothing",
    );
    insert
        .bind(node)
        .bind(device)
        .bind(adb)
        .bind(webrtc)
        .bind(scrcpy)
        .bind(rested)
        .execute(tx)
        .await?;
    Ok(())
}

/// Notes that images of a device may be on a node where it is not, unless that node keeps copies of its snapshots, among which
/// they stay: they are removed all or none. The caller holds the lock of the device.
pub async fn leave_images_behind(
    tx: &mut PgConnection,
    device: &Device,
    node: &str,
) -> sqlx::Result<()> {
    if snapshot::copies::are_on(tx, &device.id, node).await? {
        return Ok(());
    }
    leave_behind(tx, &device.id, node, (device.ports(), true)).await
}

/// Whether something of a device is still to be removed from a node: until then it does not come there.
pub async fn is_left(conn: &mut PgConnection, node: &str, id: &DeviceId) -> sqlx::Result<bool> {
    let select =
        "select exists (select 1 from devices.leftovers where node = $1 and device_id = $2)";
    let select = sqlx::query_scalar(select).bind(node).bind(id);
    select.fetch_one(conn).await
}

/// Takes something in hand that was left on a node and that nobody is removing. Of a device that is on its way to another
/// node everything stays until it has arrived there, and as long as it is in error there: what is left may be all that there
/// is of it.
async fn claim(conn: &mut PgConnection, node: &str) -> sqlx::Result<Option<Leftover>> {
    sqlx::query_as(
        "-- nodes::claim_leftover
        with due as (
            select l.device_id from devices.leftovers l
            where l.node = $1 and (l.claimed_until is null or l.claimed_until < clock_timestamp()) and not exists (
                select 1 from devices.operations o where o.device_id = l.device_id and o.kind = 'move' and o.state in ('queued', 'running'))
                and not exists (select 1 from devices.held_leftovers h where h.node = l.node and h.device_id = l.device_id)
            order by l.since, l.device_id limit 1 for update skip locked)
        update devices.leftovers l set claimed_until = clock_timestamp() + $2 from due
        where l.node = $1 and l.device_id = due.device_id
        returning l.device_id, l.adb_port, l.webrtc_port, l.scrcpy_port, l.rested",
    )
    .bind(node)
    .bind(IN_HAND)
    .fetch_optional(conn)
    .await
}

/// Removes what was left on a node, some of it.
pub async fn remove_leftovers(state: &Devices, node: &Node) -> Result<()> {
    for _ in 0..LEFTOVERS {
        let left = {
            let mut conn = state.platform.db.acquire().await?;
            claim(&mut conn, &node.name).await?
        };
        let Some(left) = left else {
            return Ok(());
        };
        remove_leftover(state, node, left).await?;
    }
    Ok(())
}

async fn remove_leftover(state: &Devices, node: &Node, left: Leftover) -> Result<()> {
    let id = left.device_id;
    // The device does not come to the node until this is gone: what bears its name is what was left, as long as it is written.
    // Whoever looked before, and was frozen since, removes what he saw, and not what has its name by now.
    let engine = state.runtimes.engines.of(&node.name)?;
    let there = engine.list().await?;
    let container = there.iter().find(|there| there.device == id.as_str());
    {
        let mut conn = state.platform.db.acquire().await?;
        if !is_left(&mut conn, &node.name, &id).await? {
            return Ok(());
        }
    }
    if let Some(container) = container {
        engine.remove_container(&container.id).await?;
    }
    engine.remove_kept(&id).await?;
    let ports = port_set(left.adb_port, left.webrtc_port, left.scrcpy_port);
    let rest = state.config.port_quarantine;
    let mut tx = state.platform.db.begin().await?;
    if !left.rested {
        for kind in PortKind::ALL {
            let port = (kind, ports.of(kind));
            port::db::quarantine(&mut tx, &node.name, port, RestReason::Returned, rest).await?;
        }
    }
    let delete = sqlx::query("delete from devices.leftovers where node = $1 and device_id = $2");
    delete.bind(&node.name).bind(&id).execute(&mut *tx).await?;
    tx.commit().await?;
    info!(device.id = %id, "removed from node {} what was left there of device {id}", node.name);
    Ok(())
}
