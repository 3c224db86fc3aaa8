//! What PostgreSQL knows about ports.

use contracts::{DeviceId, Timestamp};
use coordination::PortSet;
use sqlx::PgConnection;

use crate::device::port_set;

/// Ports of a kind, counted over all nodes.
#[derive(Clone, Copy, Debug, sqlx::FromRow)]
pub struct PortCount {
    /// Nodes there are.
    pub nodes: i64,
    /// Sets that devices hold.
    pub held: i64,
    /// Sets that rest.
    pub resting: i64,
}

/// Every device of a node that holds ports, with these.
pub async fn held(conn: &mut PgConnection, node: &str) -> sqlx::Result<Vec<(String, PortSet)>> {
    let rows: Vec<(String, i32, i32, i32)> = sqlx::query_as(
        "select id, adb_port, webrtc_port, scrcpy_port from devices.devices where node = $1 and released_at is null",
    )
    .bind(node)
    .fetch_all(conn)
    .await?;
    let rows = rows.into_iter();
    Ok(rows
        .map(|(id, adb, webrtc, scrcpy)| (id, port_set(adb, webrtc, scrcpy)))
        .collect())
}

/// Some devices of a node that hold ports, in the order of their ids, from behind the last one.
pub async fn held_after(
    conn: &mut PgConnection,
    node: &str,
    last: &str,
    batch: i64,
) -> sqlx::Result<Vec<(String, PortSet)>> {
    let rows: Vec<(String, i32, i32, i32)> = sqlx::query_as(
        "select id, adb_port, webrtc_port, scrcpy_port from devices.devices
        where node = $1 and released_at is null and id > $2 order by id limit $3",
    )
    .bind(node)
    .bind(last)
    .bind(batch)
    .fetch_all(conn)
    .await?;
    let rows = rows.into_iter();
    Ok(rows
        .map(|(id, adb, webrtc, scrcpy)| (id, port_set(adb, webrtc, scrcpy)))
        .collect())
}

/// Ports of a node that were released since a moment.
pub async fn resting(
    conn: &mut PgConnection,
    node: &str,
    since: Timestamp,
) -> sqlx::Result<Vec<PortSet>> {
    let rows: Vec<(i32, i32, i32)> = sqlx::query_as(
        "select adb_port, webrtc_port, scrcpy_port from devices.devices where node = $1 and released_at > $2",
    )
    .bind(node)
    .bind(since)
    .fetch_all(conn)
    .await?;
    let rows = rows.into_iter();
    Ok(rows
        .map(|(adb, webrtc, scrcpy)| port_set(adb, webrtc, scrcpy))
        .collect())
}

/// Counts sets of ports. A set that rests and is held again counts as held.
pub async fn count(conn: &mut PgConnection, since: Timestamp) -> sqlx::Result<PortCount> {
    let count = sqlx::query_as(
        "select (select count(*) from devices.nodes) as nodes,
            (select count(*) from devices.devices where released_at is null) as held,
            (select count(distinct (r.node, r.adb_port)) from devices.devices r where r.released_at > $1
                and not exists (select 1 from devices.devices h where h.node = r.node and h.adb_port = r.adb_port and h.released_at is null)) as resting",
    );
    count.bind(since).fetch_one(conn).await
}

/// Whether a device still holds its ports.
pub async fn holds(conn: &mut PgConnection, id: &DeviceId) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (select 1 from devices.devices where id = $1 and released_at is null)",
    )
    .bind(id)
    .fetch_one(conn)
    .await
}
