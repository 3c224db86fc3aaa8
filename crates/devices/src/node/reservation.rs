//! Room on a node that is promised to a device before its images are brought there, so that nothing is brought in vain. The
//! caller holds the lock of the device, and the row of the node comes last.

use sqlx::PgConnection;

use super::Node;
use super::placement::{Demand, Held, reserve_beyond};
use crate::device::RuntimeKind;
use crate::operation::db::Claimed;

/// Why a node does not get the images of a device.
pub const NO_DISK: &str = "has no room on its disk for the images";

/// Promises room on a node to the device of an operation, in the place of what was promised to it before; `false` where there
/// is none.
pub async fn hold(
    conn: &mut PgConnection,
    claimed: &Claimed,
    (node, runtime): (&str, RuntimeKind),
    demand: &Demand,
) -> sqlx::Result<bool> {
    if is_held(conn, claimed, node, demand).await? {
        return is_open(conn, (node, runtime)).await;
    }
    // At the end of the transaction both nodes are counted anew: whoever goes the other way locks them in the same order.
    let lock = sqlx::query(
        "-- reservation::lock_nodes
        select from devices.nodes
        where name = $1 or name = (select node from devices.reservations where operation_id = $2)
        order by name for no key update",
    );
    lock.bind(node).bind(claimed.id).execute(&mut *conn).await?;
    let held = held(conn, claimed, node).await?;
    if !reserve_beyond(conn, (node, runtime), demand, held).await? {
        return Ok(false);
    }
    let insert = sqlx::query(
        "-- reservation::hold
        insert into devices.reservations (operation_id, node, cpu_cores, memory_mb) values ($1, $2, $3, $4)
        on conflict (operation_id) do update set node = excluded.node, cpu_cores = excluded.cpu_cores,
            memory_mb = excluded.memory_mb, transfer_token = null",
    );
    let insert = insert.bind(claimed.id).bind(node);
    let insert = insert.bind(demand.cpu_millis / 1000).bind(demand.memory_mb);
    insert.execute(conn).await?;
    Ok(true)
}

/// The node that holds room for an operation.
pub async fn node(conn: &mut PgConnection, claimed: &Claimed) -> sqlx::Result<Option<String>> {
    let select = "select node from devices.reservations where operation_id = $1";
    let select = sqlx::query_scalar(select).bind(claimed.id);
    select.fetch_optional(conn).await
}

/// Promises what so many bytes take of the disk of a node for the images of an operation, beside what snapshots, what is stored
/// on devices and what is on its way take there; `false` where that is more than may be. The room is held, and by that the row
/// of the node.
pub async fn hold_disk(
    conn: &mut PgConnection,
    claimed: &Claimed,
    node: &str,
    bytes: i64,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "-- reservation::hold_disk
        update devices.reservations set disk_mb = $3
        where operation_id = $1 and exists (
            select from devices.nodes n
                cross join lateral (
                    select coalesce(sum(s.size), 0) / 1048576 as mb
                    from devices.snapshots s join devices.devices d on d.id = s.device_id
                        left join devices.snapshot_copies c on c.snapshot_id = s.id and c.node = n.name
                    where s.taken_at is not null and coalesce(c.state = 'ready', d.node = n.name)) kept
                cross join lateral (
                    select coalesce(sum(r.storage_mb), 0)::numeric as mb
                    from devices.readings r join devices.devices d on d.id = r.device_id
                    where d.node = n.name and d.runtime = 'docker') stored
                cross join lateral (
                    select coalesce(sum(o.disk_mb), 0) as mb from devices.reservations o
                    where o.node = n.name and o.operation_id <> $1) promised
            where n.name = $2 and (n.disk_mb is null or kept.mb + stored.mb + promised.mb + $3 <= n.disk_mb))",
    );
    let megabytes = (bytes + (1 << 20) - 1) >> 20;
    let update = update.bind(claimed.id).bind(node).bind(megabytes);
    Ok(update.execute(conn).await?.rows_affected() == 1)
}

/// Gives the device of an operation the room on a node in the transaction that brings it there: what it was promised, or what
/// there is, where it has become larger since; `false` where there is none, or the node takes no devices any more.
pub async fn redeem(
    conn: &mut PgConnection,
    claimed: &Claimed,
    (node, runtime): (&str, RuntimeKind),
    demand: &Demand,
) -> sqlx::Result<bool> {
    let is_held = is_held(conn, claimed, node, demand).await?;
    let held = held(conn, claimed, node).await?;
    let delete = sqlx::query("delete from devices.reservations where operation_id = $1");
    delete.bind(claimed.id).execute(&mut *conn).await?;
    // What is counted at the end of the transaction is the device in the place of its reservation.
    match is_held {
        true => is_open(conn, (node, runtime)).await,
        false => reserve_beyond(conn, (node, runtime), demand, held).await,
    }
}

/// Counts what was promised to an operation as free, for the choice of a node that it makes once more.
pub async fn discount(
    conn: &mut PgConnection,
    claimed: &Claimed,
    nodes: &mut [Node],
) -> sqlx::Result<()> {
    let select = "select node, cpu_cores::bigint, memory_mb::bigint from devices.reservations where operation_id = $1";
    let select = sqlx::query_as(select).bind(claimed.id);
    let held: Option<(String, i64, i64)> = select.fetch_optional(conn).await?;
    if let Some((name, cores, memory)) = held
        && let Some(node) = nodes.iter_mut().find(|node| node.name == name)
    {
        node.used_cpu_millis -= cores * 1000;
        node.used_memory_mb -= memory;
        node.used_devices -= 1;
    }
    Ok(())
}

/// Begins to bring images to a node for a failover, unless as many workers do so already as may, or the operation is no longer
/// the caller's: the room is held.
pub async fn begin_transfer(
    conn: &mut PgConnection,
    claimed: &Claimed,
    node: &str,
    most: i64,
) -> sqlx::Result<bool> {
    let locked = sqlx::query("select from devices.nodes where name = $1 for no key update");
    locked.bind(node).execute(&mut *conn).await?;
    let update = sqlx::query(
        "-- reservation::begin_transfer
        update devices.reservations set transfer_token = $2
        where operation_id = $1
            and exists (select from devices.operations where id = $1 and fencing_token = $2 and state = 'running')
            and $4 > (
            select count(*) from devices.reservations r join devices.operations o
                on o.id = r.operation_id and o.fencing_token = r.transfer_token
            where r.node = $3 and r.operation_id <> $1 and o.state = 'running' and o.lease_until > clock_timestamp())",
    );
    let update = update.bind(claimed.id).bind(claimed.fencing_token);
    let done = update.bind(node).bind(most).execute(conn).await?;
    Ok(done.rows_affected() == 1)
}

/// The devices that are about to come to a node.
pub async fn devices(conn: &mut PgConnection, node: &str) -> sqlx::Result<Vec<String>> {
    let select = "select o.device_id from devices.reservations r join devices.operations o on o.id = r.operation_id where r.node = $1";
    let select = sqlx::query_scalar(select).bind(node);
    select.fetch_all(conn).await
}

/// Ends what was promised to one operation that is over; `false` where there is none. One at a time: the rows of several
/// nodes would be locked in any order.
pub async fn end_one(conn: &mut PgConnection) -> sqlx::Result<bool> {
    let delete = sqlx::query(
        "-- reservation::end_one
        delete from devices.reservations where operation_id in (
            select r.operation_id from devices.reservations r join devices.operations o on o.id = r.operation_id
            where o.state in ('done', 'failed', 'cancelled') limit 1 for update of r skip locked)",
    );
    Ok(delete.execute(conn).await?.rows_affected() == 1)
}

/// What is promised to an operation on a node.
async fn held(conn: &mut PgConnection, claimed: &Claimed, node: &str) -> sqlx::Result<Held> {
    let select = sqlx::query_as(
        "-- reservation::held
        select cpu_cores * 1000::bigint as cpu_millis, memory_mb::bigint as memory_mb, 1 as devices
        from devices.reservations where operation_id = $1 and node = $2",
    );
    let held = select.bind(claimed.id).bind(node);
    Ok(held.fetch_optional(conn).await?.unwrap_or_default())
}

/// Whether room for a device of at least this size is promised.
async fn is_held(
    conn: &mut PgConnection,
    claimed: &Claimed,
    node: &str,
    demand: &Demand,
) -> sqlx::Result<bool> {
    let select = sqlx::query_scalar(
        "-- reservation::is_held
        select exists (
            select 1 from devices.reservations
            where operation_id = $1 and node = $2 and cpu_cores * 1000::bigint >= $3 and memory_mb >= $4)",
    );
    let select = select.bind(claimed.id).bind(node);
    let select = select.bind(demand.cpu_millis).bind(demand.memory_mb);
    select.fetch_one(conn).await
}

/// Whether a node still takes devices of a runtime, which it does until the transaction ends.
async fn is_open(
    conn: &mut PgConnection,
    (node, runtime): (&str, RuntimeKind),
) -> sqlx::Result<bool> {
    let select = sqlx::query(
        "-- reservation::is_open
        select from devices.nodes
        where name = $1 and state = 'ready' and removed_at is null and down_since is null
            and (runtime = $2 or ($2 = 'simulated' and hosts_simulated))
        for no key update",
    );
    let done = select
        .bind(node)
        .bind(runtime.as_str())
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}
