//! Who listens for which simulated device: leases in PostgreSQL, so that the loss of Redis changes nothing.

use std::time::Duration;

use contracts::{DeviceId, SnapshotId};
use device_stub::Contents;
use sqlx::PgConnection;
use sqlx::types::Json;

use super::Spec;
use crate::device::{pixels, port_set};
use crate::node::bind_address;

/// A device that a host holds the lease of.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Held {
    /// Which device.
    pub device_id: DeviceId,
    /// Whether it shall be listened for any longer.
    pub wanted: bool,
    /// Whether it runs; otherwise a worker is to bring it there, or away from it.
    pub running: bool,
    /// The number of the wish that what is on it be written, where one is open.
    pub save_asked: Option<i64>,
}

/// What a claim of a worker came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The lease is this host's.
    Ours,
    /// A living host has it.
    Others,
    /// The worker no longer holds the operation.
    Fenced,
}

#[derive(sqlx::FromRow)]
struct SpecRow {
    id: DeviceId,
    name: String,
    bind: String,
    adb_port: i32,
    webrtc_port: i32,
    scrcpy_port: i32,
    cpu_cores: i32,
    memory_mb: i32,
    storage_mb: i32,
    resolution: String,
    dpi: i32,
    android_version: String,
}

impl From<SpecRow> for Spec {
    fn from(row: SpecRow) -> Self {
        let (width, height) = pixels(&row.resolution).unwrap_or((1080, 1920));
        Self {
            id: row.id,
            name: row.name,
            fence: 0,
            address: bind_address(&row.bind),
            host: row.bind,
            ports: port_set(row.adb_port, row.webrtc_port, row.scrcpy_port),
            cpu_cores: row.cpu_cores,
            memory_mb: row.memory_mb,
            storage_mb: row.storage_mb,
            width,
            height,
            dpi: u32::try_from(row.dpi).unwrap_or(320),
            android_version: row.android_version,
            made_of: None,
        }
    }
}

/// Takes the lease of a device for the worker of an operation on it, in one statement with the check that the worker
/// still holds the operation.
pub async fn claim(
    conn: &mut PgConnection,
    device: &DeviceId,
    host: &str,
    fence: i64,
    lease: Duration,
) -> sqlx::Result<Claim> {
    let claim = sqlx::query_as::<_, (bool, bool)>(
        "-- hosts::claim
        with worker as (
            select device_id from devices.operations where device_id = $1 and state = 'running' and fencing_token = $3),
        taken as (
            insert into devices.hosts as h (device_id, host, until)
            select device_id, $2, clock_timestamp() + $4 from worker
            on conflict (device_id) do update set host = $2, until = excluded.until, stop_asked = false
            where h.host = $2 or h.until < clock_timestamp()
            returning h.device_id)
        select exists (select 1 from worker), exists (select 1 from taken)",
    );
    let (is_worker, is_taken) = claim
        .bind(device)
        .bind(host)
        .bind(fence)
        .bind(lease)
        .fetch_one(conn)
        .await?;
    Ok(match (is_worker, is_taken) {
        (false, _) => Claim::Fenced,
        (true, true) => Claim::Ours,
        (true, false) => Claim::Others,
    })
}

/// Renews every lease of a host, and says which devices it shall listen for.
pub async fn renew(
    conn: &mut PgConnection,
    host: &str,
    lease: Duration,
) -> sqlx::Result<Vec<Held>> {
    let renew = sqlx::query_as(
        "-- hosts::renew
        update devices.hosts h set until = clock_timestamp() + $2
        from devices.devices d where h.host = $1 and d.id = h.device_id
        returning h.device_id, not h.stop_asked and d.status in ('creating', 'starting', 'running', 'rebooting') as wanted,
            d.status = 'running' as running, case when h.save_asked > h.saved then h.save_asked end as save_asked",
    );
    renew.bind(host).bind(lease).fetch_all(conn).await
}

/// Takes over running devices that no living host listens for.
pub async fn take_over(
    conn: &mut PgConnection,
    host: &str,
    lease: Duration,
    limit: i64,
) -> sqlx::Result<Vec<DeviceId>> {
    let take = sqlx::query_scalar(
        "-- hosts::take_over
        insert into devices.hosts as h (device_id, host, until)
        select d.id, $1, clock_timestamp() + $2 from devices.devices d
            left join devices.hosts o on o.device_id = d.id
        where d.runtime = 'simulated' and d.status = 'running' and (o.device_id is null or o.until < clock_timestamp())
        order by d.id limit $3
        on conflict (device_id) do update set host = $1, until = excluded.until, stop_asked = false
        where h.until < clock_timestamp()
        returning h.device_id",
    );
    take.bind(host)
        .bind(lease)
        .bind(limit)
        .fetch_all(conn)
        .await
}

/// What is needed to listen for devices.
pub async fn specs(conn: &mut PgConnection, devices: &[DeviceId]) -> sqlx::Result<Vec<Spec>> {
    let rows: Vec<SpecRow> = sqlx::query_as(
        "select d.id, d.name, n.bind, d.adb_port, d.webrtc_port, d.scrcpy_port, d.cpu_cores, d.memory_mb, d.storage_mb, d.resolution, d.dpi, d.android_version
        from devices.devices d join devices.nodes n on n.name = d.node where d.id = any($1)",
    )
    .bind(devices)
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Spec::from).collect())
}

/// Gives leases of a host back.
pub async fn release(
    conn: &mut PgConnection,
    host: &str,
    devices: &[DeviceId],
) -> sqlx::Result<()> {
    sqlx::query("delete from devices.hosts where host = $1 and device_id = any($2)")
        .bind(host)
        .bind(devices)
        .execute(conn)
        .await?;
    Ok(())
}

/// Gives every lease of a host back.
pub async fn release_all(conn: &mut PgConnection, host: &str) -> sqlx::Result<()> {
    sqlx::query("delete from devices.hosts where host = $1")
        .bind(host)
        .execute(conn)
        .await?;
    Ok(())
}

/// Whether a worker still holds its operation on a device.
pub async fn is_worker(
    conn: &mut PgConnection,
    device: &DeviceId,
    fence: i64,
) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (select 1 from devices.operations where device_id = $1 and fencing_token = $2 and state = 'running')",
    )
    .bind(device)
    .bind(fence)
    .fetch_one(conn)
    .await
}

/// Asks whoever hosts a device to stop, and says whether somebody living does. With a fence only for as long as that
/// worker holds its operation.
pub async fn ask_to_stop(
    conn: &mut PgConnection,
    device: &DeviceId,
    fence: Option<i64>,
) -> sqlx::Result<bool> {
    // A host that fell silent cannot answer; its row goes, and with it its claim.
    let asked: Vec<bool> = sqlx::query_scalar(
        "-- hosts::ask_to_stop
        with gone as (
            delete from devices.hosts where device_id = $1 and until < clock_timestamp())
        update devices.hosts set stop_asked = true where device_id = $1 and until >= clock_timestamp()
            and ($2::bigint is null or exists (
                select 1 from devices.operations where device_id = $1 and fencing_token = $2 and state = 'running'))
        returning true",
    )
    .bind(device)
    .bind(fence)
    .fetch_all(conn)
    .await?;
    Ok(!asked.is_empty())
}

/// Whether a living host listens for a device.
pub async fn is_hosted(conn: &mut PgConnection, device: &DeviceId) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (select 1 from devices.hosts where device_id = $1 and until >= clock_timestamp())",
    )
    .bind(device)
    .fetch_one(conn)
    .await
}

/// What is on a device.
pub async fn contents(conn: &mut PgConnection, device: &DeviceId) -> sqlx::Result<Contents> {
    let contents: Option<Json<Contents>> =
        sqlx::query_scalar("select contents from devices.stub_contents where device_id = $1")
            .bind(device)
            .fetch_optional(conn)
            .await?;
    Ok(contents.unwrap_or_default().0)
}

/// Writes what is on a device, as long as this host has its lease, and that wishes up to `asked` are fulfilled.
pub async fn save(
    conn: &mut PgConnection,
    (device, host): (&DeviceId, &str),
    contents: &Contents,
    asked: Option<i64>,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- hosts::save
        with ours as (
            update devices.hosts set saved = greatest(saved, coalesce($4, saved))
            where device_id = $1 and host = $2 and until >= clock_timestamp() returning device_id)
        insert into devices.stub_contents (device_id, contents) select device_id, $3 from ours
        on conflict (device_id) do update set contents = excluded.contents, updated_at = clock_timestamp()",
    )
    .bind(device)
    .bind(host)
    .bind(Json(contents))
    .bind(asked)
    .execute(conn)
    .await?;
    Ok(())
}

/// Asks whoever hosts a device to write what is on it; the number of the wish, `None` where nobody living hosts it.
pub async fn ask_to_save(conn: &mut PgConnection, device: &DeviceId) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar(
        "update devices.hosts set save_asked = save_asked + 1
        where device_id = $1 and until >= clock_timestamp() returning save_asked",
    )
    .bind(device)
    .fetch_optional(conn)
    .await
}

/// Whether a wish is fulfilled, or nobody is left who could.
pub async fn is_saved(
    conn: &mut PgConnection,
    device: &DeviceId,
    asked: i64,
) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select not exists (
            select 1 from devices.hosts where device_id = $1 and until >= clock_timestamp() and saved < $2 and save_asked >= $2)",
    )
    .bind(device)
    .bind(asked)
    .fetch_one(conn)
    .await
}

/// Keeps what is on a device as a snapshot, as long as the worker holds its operation; its bytes.
pub async fn keep(
    conn: &mut PgConnection,
    device: &DeviceId,
    snapshot: &SnapshotId,
    fence: i64,
) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar(
        "-- hosts::keep
        insert into devices.stub_snapshots (snapshot_id, contents)
        select s.id, coalesce((select contents from devices.stub_contents where device_id = $1), $4)
        from devices.snapshots s where s.id = $2 and exists (
            select 1 from devices.operations where device_id = $1 and fencing_token = $3 and state = 'running')
        on conflict (snapshot_id) do update set contents = excluded.contents
        returning octet_length(contents::text)::bigint",
    )
    .bind(device)
    .bind(snapshot)
    .bind(fence)
    .bind(Json(Contents::default()))
    .fetch_optional(conn)
    .await
}

/// Puts on a device what a snapshot keeps, as long as the worker holds its operation; `false` where nothing is kept, or
/// another one holds it.
pub async fn put_back(
    conn: &mut PgConnection,
    device: &DeviceId,
    snapshot: &SnapshotId,
    fence: i64,
) -> sqlx::Result<bool> {
    let put = sqlx::query(
        "-- hosts::put_back
        insert into devices.stub_contents (device_id, contents)
        select $1, contents from devices.stub_snapshots where snapshot_id = $2 and exists (
            select 1 from devices.operations where device_id = $1 and fencing_token = $3 and state = 'running')
        on conflict (device_id) do update set contents = excluded.contents, updated_at = clock_timestamp()",
    );
    let done = put
        .bind(device)
        .bind(snapshot)
        .bind(fence)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Removes what is on a device.
pub async fn empty(conn: &mut PgConnection, device: &DeviceId) -> sqlx::Result<()> {
    sqlx::query("delete from devices.stub_contents where device_id = $1")
        .bind(device)
        .execute(conn)
        .await?;
    Ok(())
}

/// Removes what a snapshot keeps; `false` where it keeps nothing.
pub async fn forget(conn: &mut PgConnection, snapshot: &SnapshotId) -> sqlx::Result<bool> {
    let delete = sqlx::query("delete from devices.stub_snapshots where snapshot_id = $1");
    let done = delete.bind(snapshot).execute(conn).await?;
    Ok(done.rows_affected() == 1)
}
