//! What the reconciler reads and writes in PostgreSQL.

use std::time::Duration;

use contracts::{DeviceId, Timestamp};
use platform::http::Slice;
use serde::Serialize;
use sqlx::PgConnection;

use super::{Action, Row};
use crate::device::port_set;

/// An entry of the audit trail.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Grows.
    pub id: i64,
    /// On which node.
    pub node: String,
    /// orphan-found, orphan-removed, repair, given-up, container-missing, lease-restored or lease-unowned.
    pub action: String,
    /// With which device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// With which container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// What was found.
    pub detail: String,
    /// When.
    pub at: Timestamp,
}

/// Every device in a container on a node that is not released.
pub async fn rows(conn: &mut PgConnection, node: &str) -> sqlx::Result<Vec<Row>> {
    let rows: Vec<(DeviceId, String, bool, i32, i32, i32, Timestamp)> = sqlx::query_as(
        "-- reconcile::rows
        select d.id, d.status, exists (select 1 from devices.operations o where o.device_id = d.id and o.state in ('queued', 'running')),
            d.adb_port, d.webrtc_port, d.scrcpy_port, d.updated_at
        from devices.devices d where d.node = $1 and d.runtime <> 'simulated' and d.released_at is null order by d.id",
    )
    .bind(node)
    .fetch_all(conn)
    .await?;
    let rows = rows.into_iter();
    Ok(rows
        .filter_map(|(id, status, busy, adb, webrtc, scrcpy, changed)| {
            Some(Row {
                id,
                status: status.parse().ok()?,
                busy,
                ports: port_set(adb, webrtc, scrcpy),
                changed,
            })
        })
        .collect())
}

/// Adds to the audit trail.
pub async fn note(
    conn: &mut PgConnection,
    node: &str,
    action: Action,
    (device, container): (Option<&str>, Option<&str>),
    detail: &str,
) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "insert into devices.reconciliations (node, action, device_id, container, detail) values ($1, $2, $3, $4, $5)",
    );
    insert
        .bind(node)
        .bind(action.as_str())
        .bind(device)
        .bind(container)
        .bind(detail)
        .execute(conn)
        .await?;
    Ok(())
}

/// Whether the same was noted about a device within this time.
pub async fn is_noted(
    conn: &mut PgConnection,
    device: &str,
    action: Action,
    within: Duration,
) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (select 1 from devices.reconciliations where device_id = $1 and action = $2 and at > clock_timestamp() - $3)",
    )
    .bind(device)
    .bind(action.as_str())
    .bind(within)
    .fetch_one(conn)
    .await
}

/// How often a device was to be put right within this time.
pub async fn count_repairs(
    conn: &mut PgConnection,
    device: &DeviceId,
    within: Duration,
) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "select count(*) from devices.reconciliations where device_id = $1 and action = 'repair' and at > clock_timestamp() - $2",
    )
    .bind(device)
    .bind(within)
    .fetch_one(conn)
    .await
}

/// Notes that a container without a device is there; in how many rounds it was seen, and whether its grace is over.
pub async fn see_orphan(
    conn: &mut PgConnection,
    node: &str,
    (container, device): (&str, &str),
    grace: Duration,
) -> sqlx::Result<(i32, bool)> {
    sqlx::query_as(
        "insert into devices.orphans as o (node, container, device_id) values ($1, $2, $3)
        on conflict (node, container) do update set device_id = excluded.device_id, seen = o.seen + 1
        returning o.seen, o.first_seen <= clock_timestamp() - $4",
    )
    .bind(node)
    .bind(container)
    .bind(device)
    .bind(grace)
    .fetch_one(conn)
    .await
}

/// Forgets orphans of a node that are not among these.
pub async fn forget_orphans(
    conn: &mut PgConnection,
    node: &str,
    there: &[String],
) -> sqlx::Result<()> {
    sqlx::query("delete from devices.orphans where node = $1 and container <> all($2)")
        .bind(node)
        .bind(there)
        .execute(conn)
        .await?;
    Ok(())
}

/// Whether a device of this id is on a node and not released, in whatever state.
pub async fn is_on(conn: &mut PgConnection, device: &str, node: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (select 1 from devices.devices where id = $1 and node = $2 and released_at is null)",
    )
    .bind(device)
    .bind(node)
    .fetch_one(conn)
    .await
}

/// Drops entries that are older than this, so many at a time.
pub async fn forget_old(conn: &mut PgConnection, age: Duration, batch: i64) -> sqlx::Result<u64> {
    let delete = sqlx::query(
        "delete from devices.reconciliations where id in (
            select id from devices.reconciliations where at < clock_timestamp() - $1 order by at limit $2)",
    );
    let done = delete.bind(age).bind(batch).execute(conn).await?;
    Ok(done.rows_affected())
}

/// A page of the audit trail of a node, newest first.
pub async fn entries(
    conn: &mut PgConnection,
    node: &str,
    slice: Slice,
) -> sqlx::Result<(Vec<Entry>, i64)> {
    let entries = sqlx::query_as(
        "select id, node, action, device_id, container, detail, at from devices.reconciliations
        where node = $1 order by id desc limit $2 offset $3",
    );
    let entries = entries
        .bind(node)
        .bind(slice.limit)
        .bind(slice.offset)
        .fetch_all(&mut *conn)
        .await?;
    let count = "select count(*) from devices.reconciliations where node = $1";
    let count = sqlx::query_scalar(count).bind(node).fetch_one(conn).await?;
    Ok((entries, count))
}
