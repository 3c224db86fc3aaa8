//! Devices in PostgreSQL.

use contracts::{DeviceId, SnapshotId, Timestamp, UserId};
use coordination::PortSet;
use platform::http::Slice;
use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::api::PatchDevice;
use super::browse::{Cursor, QuickDevice};
use super::list::{DeviceFilter, MySort};
use crate::node::{self, placement::Demand};
use crate::quota::Size;

use super::{Device, ProviderType, RuntimeKind, ShownStatus, Status, port_columns};

macro_rules! select_device {
    ($rest:literal) => {
        concat!(
            "select d.id, d.user_id, d.tenant_id, d.name, d.description, d.type, d.provider_type, d.runtime, d.status, d.wanted, d.error,
                (select o.kind from devices.operations o where o.device_id = d.id and o.state in ('queued', 'running')
                    order by o.kind = 'restore' desc, o.id limit 1) as doing,
                d.restored_from, d.cpu_cores, d.memory_mb, d.storage_mb, d.resolution, d.dpi, d.android_version, d.group_name, d.tags, d.metadata,
                d.node, n.address, n.bind, n.down_since is not null and d.runtime <> 'simulated' as node_down, d.adb_port, d.webrtc_port, d.scrcpy_port,
                (select greatest(r.taken_at, r.heartbeat_at) from devices.readings r where r.device_id = d.id) as last_heartbeat_at, d.last_started_at, d.last_stopped_at, d.expires_at,
                d.created_at, d.updated_at, d.seq
            from devices.devices d join devices.nodes n on n.name = d.node ",
            $rest
        )
    };
}

/// What a new device is made of, apart from its ports.
#[derive(Clone, Debug)]
pub struct NewDevice {
    /// Its id.
    pub id: DeviceId,
    /// Its owner.
    pub user_id: UserId,
    /// Its name.
    pub name: String,
    /// What its owner says about it.
    pub description: Option<String>,
    /// Its form.
    pub kind: super::DeviceType,
    /// What stands behind it.
    pub provider_type: ProviderType,
    /// Where its creation shall end.
    pub wanted: Status,
    /// Processor cores.
    pub cpu_cores: i32,
    /// Memory.
    pub memory_mb: i32,
    /// Storage.
    pub storage_mb: i32,
    /// Pixels.
    pub resolution: String,
    /// Dots per inch.
    pub dpi: i32,
    /// The version of Android.
    pub android_version: String,
    /// The group it is in.
    pub group_name: Option<String>,
    /// Marks of its owner.
    pub tags: Vec<String>,
    /// Whatever else.
    pub metadata: Map<String, Value>,
}

impl NewDevice {
    /// What it needs of a node. The labels that its node must have stand in `nodeSelector` of its metadata.
    pub fn demand(&self) -> Demand {
        let size = (self.cpu_cores, self.memory_mb);
        Demand::new(self.provider_type, size, node::selector(&self.metadata))
    }

    /// How large it is.
    pub fn sizes(&self) -> Size {
        Size {
            cpu_cores: self.cpu_cores,
            memory_mb: self.memory_mb,
            storage_mb: self.storage_mb,
        }
    }
}

/// Writes a new device with its node, what runs it there, and its ports. The unique constraints refuse ports that another device holds.
pub async fn insert(
    conn: &mut PgConnection,
    device: &NewDevice,
    (node, runtime): (&str, RuntimeKind),
    ports: PortSet,
    now: Timestamp,
) -> sqlx::Result<()> {
    let [adb, webrtc, scrcpy] = port_columns(ports);
    let insert = sqlx::query(
        "insert into devices.devices (id, user_id, name, description, type, provider_type, runtime, status, wanted,
            cpu_cores, memory_mb, storage_mb, resolution, dpi, android_version, group_name, tags, metadata,
            node, adb_port, webrtc_port, scrcpy_port, created_at, updated_at, tenant_id)
        values ($1, $2, $3, $4, $5, $6, $7, 'creating', $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $22,
            (select tenant_id from platform.accounts where id = $2))",
    );
    insert
        .bind(&device.id)
        .bind(&device.user_id)
        .bind(&device.name)
        .bind(&device.description)
        .bind(device.kind.as_str())
        .bind(device.provider_type.as_str())
        .bind(runtime.as_str())
        .bind(device.wanted.as_str())
        .bind(device.cpu_cores)
        .bind(device.memory_mb)
        .bind(device.storage_mb)
        .bind(&device.resolution)
        .bind(device.dpi)
        .bind(&device.android_version)
        .bind(&device.group_name)
        .bind(&device.tags)
        .bind(Json(&device.metadata))
        .bind(node)
        .bind(adb)
        .bind(webrtc)
        .bind(scrcpy)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}

/// A device that is not deleted.
pub async fn find(conn: &mut PgConnection, id: &DeviceId) -> sqlx::Result<Option<Device>> {
    sqlx::query_as(select_device!("where d.id = $1 and d.deleted_at is null"))
        .bind(id)
        .fetch_optional(conn)
        .await
}

/// A device in whatever state, locked until the transaction ends.
///
/// It is locked first and read then: a statement that waited for the lock while the device changed its node would join the
/// new row with the node of before, and find no device.
pub async fn lock(conn: &mut PgConnection, id: &DeviceId) -> sqlx::Result<Option<Device>> {
    sqlx::query("select from devices.devices where id = $1 for update")
        .bind(id)
        .execute(&mut *conn)
        .await?;
    sqlx::query_as(select_device!("where d.id = $1"))
        .bind(id)
        .fetch_optional(conn)
        .await
}

/// What ran a device that is gone, and where; `None` while it holds its ports.
pub async fn find_released(
    conn: &mut PgConnection,
    id: &DeviceId,
) -> sqlx::Result<Option<(RuntimeKind, String)>> {
    let found: Option<(String, String)> = sqlx::query_as(
        "select runtime, node from devices.devices where id = $1 and released_at is not null",
    )
    .bind(id)
    .fetch_optional(conn)
    .await?;
    Ok(found.and_then(|(runtime, node)| Some((runtime.parse().ok()?, node))))
}

/// The devices that a filter lets through, newest first.
///
/// As all statements with filters that may be absent it is planned each time, with the filters that are there: a plan for all
/// of them could not use the index of any. What a page skips is found in an index and not
/// read. It is an array, since the planner would join a page of many with the whole table.
pub async fn list(
    conn: &mut PgConnection,
    filter: &DeviceFilter,
    slice: Slice,
) -> sqlx::Result<Vec<Device>> {
    let list = sqlx::query_as(select_device!(
        "where d.id = any(array(
            select p.id from devices.devices p where p.deleted_at is null
                and ($1::text is null or p.user_id = $1) and ($2::text is null or p.status = $2)
                and ($3::text is null or p.tenant_id = $3) and ($4::text is null or p.group_name = $4)
                and ($5::text is null or p.provider_type = $5)
                and ($6::text is null or strpos(lower(p.name || ' ' || coalesce(p.description, '')), lower($6)) > 0 or p.id = $6)
            order by p.created_at desc, p.seq desc limit $7 offset $8))
        order by d.created_at desc, d.seq desc"
    ));
    list.bind(&filter.user_id)
        .bind(filter.status.map(ShownStatus::as_str))
        .bind(&filter.tenant_id)
        .bind(&filter.group_name)
        .bind(filter.provider_type.map(ProviderType::as_str))
        .bind(&filter.search)
        .bind(slice.limit)
        .bind(slice.offset)
        .persistent(false)
        .fetch_all(conn)
        .await
}

/// A device, and where in the list it stands.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Placed {
    /// The device.
    #[sqlx(flatten)]
    pub device: Device,
    /// Its number among all.
    pub seq: i64,
}

/// The devices that a filter lets through behind a cursor, newest first.
pub async fn list_after(
    conn: &mut PgConnection,
    filter: &DeviceFilter,
    cursor: Option<Cursor>,
    limit: i64,
) -> sqlx::Result<Vec<Placed>> {
    let list = sqlx::query_as(select_device!(
        "where d.deleted_at is null
            and ($1::text is null or d.user_id = $1) and ($2::text is null or d.status = $2)
            and ($3::text is null or d.tenant_id = $3) and ($4::text is null or d.group_name = $4)
            and ($5::text is null or d.provider_type = $5)
            and ($6::text is null or strpos(lower(d.name || ' ' || coalesce(d.description, '')), lower($6)) > 0 or d.id = $6)
            and ($7::timestamptz is null or (d.created_at, d.seq) < ($7, $8))
        order by d.created_at desc, d.seq desc limit $9"
    ));
    list.bind(&filter.user_id)
        .bind(filter.status.map(ShownStatus::as_str))
        .bind(&filter.tenant_id)
        .bind(&filter.group_name)
        .bind(filter.provider_type.map(ProviderType::as_str))
        .bind(&filter.search)
        .bind(cursor.map(|cursor| cursor.created_at))
        .bind(cursor.map(|cursor| cursor.seq))
        .bind(limit)
        .persistent(false)
        .fetch_all(conn)
        .await
}

/// The devices that a filter lets through in short, newest first.
pub async fn list_quick(
    conn: &mut PgConnection,
    filter: &DeviceFilter,
    limit: i64,
) -> sqlx::Result<Vec<QuickDevice>> {
    sqlx::query_as(
        "select d.id, d.name, d.status from devices.devices d where d.deleted_at is null
            and ($1::text is null or d.user_id = $1) and ($2::text is null or d.status = $2)
            and ($3::text is null or strpos(lower(d.name || ' ' || coalesce(d.description, '')), lower($3)) > 0 or d.id = $3)
            and ($5::text is null or d.group_name = $5)
        order by d.created_at desc, d.seq desc limit $4",
    )
    .bind(&filter.user_id)
    .bind(filter.status.map(ShownStatus::as_str))
    .bind(&filter.search)
    .bind(limit)
    .bind(&filter.group_name)
    .persistent(false)
    .fetch_all(conn)
    .await
}

/// The devices with these ids, in the order of the list; of a user, or of all.
pub async fn list_by_id(
    conn: &mut PgConnection,
    ids: &[&str],
    user: Option<&UserId>,
) -> sqlx::Result<Vec<Device>> {
    sqlx::query_as(select_device!(
        "where d.id = any($1) and d.deleted_at is null and ($2::text is null or d.user_id = $2)
        order by d.created_at desc, d.seq desc"
    ))
    .bind(ids)
    .bind(user)
    .persistent(false)
    .fetch_all(conn)
    .await
}

/// The statuses of the devices with these ids; of a user, or of all.
pub async fn statuses(
    conn: &mut PgConnection,
    ids: &[&str],
    user: Option<&UserId>,
) -> sqlx::Result<Vec<(DeviceId, String)>> {
    sqlx::query_as(
        "select id, status from devices.devices where id = any($1) and deleted_at is null and ($2::text is null or user_id = $2)",
    )
    .bind(ids)
    .bind(user)
    .fetch_all(conn)
    .await
}

/// Puts devices into a group, of a user or of all; how many there were.
pub async fn set_group(
    conn: &mut PgConnection,
    (ids, user): (&[&str], Option<&UserId>),
    group: &str,
    now: Timestamp,
) -> sqlx::Result<u64> {
    let update = sqlx::query(
        "-- devices::set_group
        with theirs as (
            select id from devices.devices
            where id = any($1) and deleted_at is null and ($2::text is null or user_id = $2) order by id for update)
        update devices.devices set group_name = $3, updated_at = $4 where id in (select id from theirs)",
    );
    let done = update
        .bind(ids)
        .bind(user)
        .bind(group)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}

/// How many devices a filter lets through.
pub async fn count(conn: &mut PgConnection, filter: &DeviceFilter) -> sqlx::Result<i64> {
    let count = sqlx::query_scalar(
        "select count(*) from devices.devices d where d.deleted_at is null
            and ($1::text is null or d.user_id = $1) and ($2::text is null or d.status = $2)
            and ($3::text is null or d.tenant_id = $3) and ($4::text is null or d.group_name = $4)
            and ($5::text is null or d.provider_type = $5)
            and ($6::text is null or strpos(lower(d.name || ' ' || coalesce(d.description, '')), lower($6)) > 0 or d.id = $6)",
    );
    count
        .bind(&filter.user_id)
        .bind(filter.status.map(ShownStatus::as_str))
        .bind(&filter.tenant_id)
        .bind(&filter.group_name)
        .bind(filter.provider_type.map(ProviderType::as_str))
        .bind(&filter.search)
        .persistent(false)
        .fetch_one(conn)
        .await
}

/// A user's devices in the order asked for.
pub async fn list_sorted(
    conn: &mut PgConnection,
    user: &UserId,
    status: Option<ShownStatus>,
    (sort, ascending): (MySort, bool),
    slice: Slice,
) -> sqlx::Result<Vec<Device>> {
    let list = sqlx::query_as(select_device!(
        "where d.deleted_at is null and d.user_id = $1 and ($2::text is null or d.status = $2)
        order by
            case when $4 then case $3 when 'name' then d.name when 'status' then d.status when 'androidVersion' then d.android_version end end asc,
            case when not $4 then case $3 when 'name' then d.name when 'status' then d.status when 'androidVersion' then d.android_version end end desc nulls last,
            case when $4 then case $3 when 'createdAt' then d.created_at when 'lastStartedAt' then d.last_started_at end end asc,
            case when not $4 then case $3 when 'createdAt' then d.created_at when 'lastStartedAt' then d.last_started_at end end desc nulls last,
            case when $4 then d.seq end asc, d.seq desc
        limit $5 offset $6"
    ));
    list.bind(user)
        .bind(status.map(ShownStatus::as_str))
        .bind(sort.as_str())
        .bind(ascending)
        .bind(slice.limit)
        .bind(slice.offset)
        .persistent(false)
        .fetch_all(conn)
        .await
}

/// How many devices of a user, or of all, are in each status.
pub async fn count_by_status(
    conn: &mut PgConnection,
    user: Option<&UserId>,
) -> sqlx::Result<Vec<(String, i64)>> {
    sqlx::query_as(
        "select status, count(*) from devices.devices
        where deleted_at is null and ($1::text is null or user_id = $1) group by status",
    )
    .bind(user)
    .persistent(false)
    .fetch_all(conn)
    .await
}

/// Writes the status of a device and the times that go with it; a trigger writes from when to when it ran. The caller holds
/// its lock.
pub async fn set_status(
    conn: &mut PgConnection,
    id: &DeviceId,
    status: Status,
    error: Option<&str>,
    now: Timestamp,
) -> sqlx::Result<()> {
    let update = sqlx::query(
        "update devices.devices set status = $2, error = $3, updated_at = $4,
            wanted = case $2 when 'stopping' then 'stopped' when 'starting' then 'running' when 'rebooting' then 'running' else wanted end,
            last_started_at = case when $2 = 'running' then $4 else last_started_at end,
            last_stopped_at = case when $2 = 'stopped' then $4 else last_stopped_at end,
            deleted_at = case when $2 = 'deleting' then $4 else deleted_at end,
            released_at = case when $2 = 'deleted' then clock_timestamp() else released_at end, lost = lost and $2 = 'error'
        where id = $1",
    );
    update
        .bind(id)
        .bind(status.as_str())
        .bind(error)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}

/// Writes where an operation under way shall end. The caller holds the lock.
pub async fn set_wanted(
    conn: &mut PgConnection,
    id: &DeviceId,
    wanted: Status,
) -> sqlx::Result<()> {
    sqlx::query("update devices.devices set wanted = $2 where id = $1")
        .bind(id)
        .bind(wanted.as_str())
        .execute(conn)
        .await?;
    Ok(())
}

/// Writes of which snapshot the container of a device is made. The caller holds the lock.
pub async fn set_restored_from(
    conn: &mut PgConnection,
    id: &DeviceId,
    snapshot: &SnapshotId,
) -> sqlx::Result<()> {
    sqlx::query("update devices.devices set restored_from = $2 where id = $1")
        .bind(id)
        .bind(snapshot)
        .execute(conn)
        .await?;
    Ok(())
}

/// Writes other ports. The unique constraints refuse ports that another device holds. The caller holds the lock.
pub async fn set_ports(
    conn: &mut PgConnection,
    id: &DeviceId,
    ports: PortSet,
    now: Timestamp,
) -> sqlx::Result<()> {
    let [adb, webrtc, scrcpy] = port_columns(ports);
    let update = sqlx::query(
        "update devices.devices set adb_port = $2, webrtc_port = $3, scrcpy_port = $4, updated_at = $5 where id = $1",
    );
    update
        .bind(id)
        .bind(adb)
        .bind(webrtc)
        .bind(scrcpy)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}

/// Writes another node, what runs the device there, and other ports. The unique constraints refuse ports that another device
/// holds. The caller holds the lock.
pub async fn set_place(
    conn: &mut PgConnection,
    id: &DeviceId,
    (node, runtime, ports): (&str, RuntimeKind, PortSet),
    now: Timestamp,
) -> sqlx::Result<()> {
    let [adb, webrtc, scrcpy] = port_columns(ports);
    let update = sqlx::query(
        "with unused as (
            -- A snapshot that was deleted and stayed for this device alone; the sweep frees its space on the node that is left.
            delete from devices.snapshots s using devices.devices d
            where d.id = $1 and s.id = d.restored_from and s.status = 'deleting')
        update devices.devices set restored_from = null, node = $2, runtime = $3, adb_port = $4, webrtc_port = $5, scrcpy_port = $6, updated_at = $7 where id = $1",
    );
    update
        .bind(id)
        .bind(node)
        .bind(runtime.as_str())
        .bind(adb)
        .bind(webrtc)
        .bind(scrcpy)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}

/// Changes what the owner may change; `false` where the device is not there or not the owner's.
pub async fn patch(
    conn: &mut PgConnection,
    id: &DeviceId,
    patch: &PatchDevice,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update devices.devices set name = coalesce($2, name), description = coalesce($3, description), tags = coalesce($4, tags),
            group_name = coalesce($5, group_name), metadata = coalesce($6, metadata), cpu_cores = coalesce($7, cpu_cores),
            memory_mb = coalesce($8, memory_mb), storage_mb = coalesce($9, storage_mb), updated_at = $10
        where id = $1 and deleted_at is null",
    );
    let done = update
        .bind(id)
        .bind(&patch.name)
        .bind(&patch.description)
        .bind(&patch.tags)
        .bind(&patch.group_name)
        .bind(patch.metadata.as_ref().map(Json))
        .bind(patch.cpu_cores)
        .bind(patch.memory_m_b)
        .bind(patch.storage_m_b)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}
