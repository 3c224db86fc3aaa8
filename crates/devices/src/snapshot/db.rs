//! Snapshots in PostgreSQL.

use contracts::{DeviceId, SnapshotId, Timestamp, UserId};
use platform::http::Slice;
use sqlx::PgConnection;

use super::api::{CreateSnapshot, SnapshotFilter};
use super::{Snapshot, Status};
use crate::device::Device;

macro_rules! select_snapshot {
    ($rest:literal) => {
        concat!(
            "select s.id, s.device_id, s.user_id, s.name, s.description, s.tags, s.status, s.size, s.error, s.created_by,
                s.created_at, s.updated_at
            from devices.snapshots s ",
            $rest
        )
    };
}

/// Writes a snapshot that is to be taken. The caller holds the lock of the device.
pub async fn insert(
    conn: &mut PgConnection,
    id: &SnapshotId,
    device: &Device,
    (body, created_by): (&CreateSnapshot, &UserId),
    now: Timestamp,
) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "insert into devices.snapshots (id, device_id, user_id, name, description, tags, status, created_by, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $6, 'creating', $7, $8, $8)",
    );
    insert
        .bind(id)
        .bind(&device.id)
        .bind(&device.user_id)
        .bind(&body.name)
        .bind(&body.description)
        .bind(body.tags.as_deref().unwrap_or_default())
        .bind(created_by)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}

/// Writes whose place a snapshot takes once it is taken.
pub async fn replace(
    conn: &mut PgConnection,
    id: &SnapshotId,
    replaced: &SnapshotId,
) -> sqlx::Result<()> {
    let update = sqlx::query("update devices.snapshots set replaces = $2 where id = $1");
    update.bind(id).bind(replaced).execute(conn).await?;
    Ok(())
}

/// The snapshot whose place a snapshot takes, where that was taken and is there.
pub async fn replaced(
    conn: &mut PgConnection,
    id: &SnapshotId,
) -> sqlx::Result<Option<SnapshotId>> {
    sqlx::query_scalar(
        "select r.id from devices.snapshots s join devices.snapshots r on r.id = s.replaces and r.device_id = s.device_id
        where s.id = $1 and s.status = 'ready' and s.taken_at is not null and r.status <> 'deleting'",
    )
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// How many snapshots a device has, and all devices of its owner, with deleted ones that devices are made of. Whoever asks for the same owner at the same time waits
/// until this transaction ends.
pub async fn count_locked(conn: &mut PgConnection, device: &Device) -> sqlx::Result<(i64, i64)> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('devices.snapshots:' || $1, 0))")
        .bind(&device.user_id)
        .execute(&mut *conn)
        .await?;
    sqlx::query_as(
        "select count(*) filter (where device_id = $1), count(*) from devices.snapshots s
        where user_id = $2 and not hidden and (status <> 'deleting' or exists (select 1 from devices.devices d where d.restored_from = s.id))",
    )
    .bind(&device.id)
    .bind(&device.user_id)
    .fetch_one(conn)
    .await
}

/// A snapshot that is not deleted.
pub async fn find(conn: &mut PgConnection, id: &SnapshotId) -> sqlx::Result<Option<Snapshot>> {
    sqlx::query_as(select_snapshot!(
        "where s.id = $1 and s.status <> 'deleting'"
    ))
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// The snapshots that a filter lets through, newest first.
pub async fn list(
    conn: &mut PgConnection,
    filter: &SnapshotFilter,
    user: Option<&UserId>,
    slice: Slice,
) -> sqlx::Result<Vec<Snapshot>> {
    let list = sqlx::query_as(select_snapshot!(
        "where s.status <> 'deleting' and ($1::text is null or s.user_id = $1)
            and ($2::text is null or s.device_id = $2) and ($3::text is null or s.status = $3)
        order by s.created_at desc, s.seq desc limit $4 offset $5"
    ));
    list.bind(user)
        .bind(&filter.device_id)
        .bind(filter.status.map(Status::as_str))
        .bind(slice.limit)
        .bind(slice.offset)
        .fetch_all(conn)
        .await
}

/// How many snapshots a filter lets through.
pub async fn count(
    conn: &mut PgConnection,
    filter: &SnapshotFilter,
    user: Option<&UserId>,
) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "select count(*) from devices.snapshots s
        where s.status <> 'deleting' and ($1::text is null or s.user_id = $1)
            and ($2::text is null or s.device_id = $2) and ($3::text is null or s.status = $3)",
    )
    .bind(user)
    .bind(&filter.device_id)
    .bind(filter.status.map(Status::as_str))
    .fetch_one(conn)
    .await
}

/// How many snapshots, and of how many bytes, are in each status: of a user, or of all.
pub async fn count_by_status(
    conn: &mut PgConnection,
    user: Option<&UserId>,
) -> sqlx::Result<Vec<(String, i64, i64)>> {
    sqlx::query_as(
        "select status, count(*), sum(size)::bigint from devices.snapshots
        where status <> 'deleting' and ($1::text is null or user_id = $1) group by status",
    )
    .bind(user)
    .fetch_all(conn)
    .await
}

/// Whether a snapshot was deleted, and something is still kept of it.
pub async fn is_deleted(conn: &mut PgConnection, id: &SnapshotId) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (select 1 from devices.snapshots where id = $1 and status = 'deleting')",
    )
    .bind(id)
    .fetch_one(conn)
    .await
}

/// Whether there is something to restore, also of one that was deleted since.
pub async fn was_taken(conn: &mut PgConnection, id: &SnapshotId) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (select 1 from devices.snapshots where id = $1 and taken_at is not null)",
    )
    .bind(id)
    .fetch_one(conn)
    .await
}

/// Writes that a snapshot was taken, also where it was deleted meanwhile.
pub async fn taken(
    conn: &mut PgConnection,
    id: &SnapshotId,
    size: i64,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "update devices.snapshots set taken_at = $3, size = $2, error = null, updated_at = $3,
            status = case status when 'creating' then 'ready' else status end
        where id = $1 and taken_at is null",
    )
    .bind(id)
    .bind(size)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes that the device is being made of it.
pub async fn restoring(
    conn: &mut PgConnection,
    id: &SnapshotId,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "update devices.snapshots set status = 'restoring', updated_at = $2 where id = $1 and status = 'ready'",
    )
    .bind(id)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes that the device is made of it, where it was one that an operation was about.
pub async fn restored(
    conn: &mut PgConnection,
    id: Option<&SnapshotId>,
    now: Timestamp,
) -> sqlx::Result<()> {
    let Some(id) = id else { return Ok(()) };
    sqlx::query(
        "update devices.snapshots set status = 'ready', updated_at = $2 where id = $1 and status = 'restoring'",
    )
    .bind(id)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes that an operation failed: what was not taken is in error, what was not restored is as it was.
pub async fn failed(
    conn: &mut PgConnection,
    id: &SnapshotId,
    error: &str,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "update devices.snapshots set updated_at = $3, error = case status when 'creating' then $2 end,
            status = case status when 'creating' then 'error' else 'ready' end
        where id = $1 and status in ('creating', 'restoring')",
    )
    .bind(id)
    .bind(error)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes of which snapshots of a device nothing is left: it leaves the node that keeps them, and no other one has a copy.
pub async fn lost(
    conn: &mut PgConnection,
    device: &DeviceId,
    reason: &str,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "update devices.snapshots set status = 'error', error = $2, taken_at = null, updated_at = $3
        where device_id = $1 and status <> 'deleting' and not exists (
            select 1 from devices.snapshot_copies c join devices.nodes n on n.name = c.node
            where c.snapshot_id = snapshots.id and c.state = 'ready' and n.removed_at is null)",
    )
    .bind(device)
    .bind(reason)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Hides a snapshot; `false` where somebody did already.
pub async fn give_up(
    conn: &mut PgConnection,
    id: &SnapshotId,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update devices.snapshots set status = 'deleting', updated_at = $2 where id = $1 and status <> 'deleting'",
    );
    let done = update.bind(id).bind(now).execute(conn).await?;
    Ok(done.rows_affected() == 1)
}

/// Hides all snapshots of a device.
pub async fn give_up_all(
    conn: &mut PgConnection,
    device: &DeviceId,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "update devices.snapshots set status = 'deleting', updated_at = $2 where device_id = $1 and status <> 'deleting'",
    )
    .bind(device)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Removes a snapshot that nothing is kept of any more.
pub async fn remove(conn: &mut PgConnection, id: &SnapshotId) -> sqlx::Result<()> {
    sqlx::query("delete from devices.snapshots where id = $1 and status = 'deleting'")
        .bind(id)
        .execute(conn)
        .await?;
    Ok(())
}

/// Removes all snapshots of a device that nothing is left of.
pub async fn remove_all(conn: &mut PgConnection, device: &DeviceId) -> sqlx::Result<()> {
    sqlx::query("delete from devices.snapshots where device_id = $1")
        .bind(device)
        .execute(conn)
        .await?;
    Ok(())
}

/// Which of these there are not.
pub async fn unknown(conn: &mut PgConnection, ids: &[SnapshotId]) -> sqlx::Result<Vec<SnapshotId>> {
    sqlx::query_scalar(
        "select k.id from unnest($1::text[]) as k (id)
        where not exists (select 1 from devices.snapshots s where s.id = k.id)",
    )
    .bind(ids)
    .fetch_all(conn)
    .await
}

/// A snapshot that is older than snapshots become.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Aged {
    /// Which.
    pub id: SnapshotId,
    /// Of which device.
    pub device_id: DeviceId,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// Parts those of one moment.
    pub seq: i64,
}

/// Snapshots at rest of living devices that are older than a moment, the oldest first, from behind one on.
pub async fn aged(
    conn: &mut PgConnection,
    before: Timestamp,
    behind: Option<&Aged>,
    limit: i64,
) -> sqlx::Result<Vec<Aged>> {
    sqlx::query_as(
        "select s.id, s.device_id, s.created_at, s.seq from devices.snapshots s join devices.devices d on d.id = s.device_id
        where s.status in ('ready', 'error') and s.created_at < $1 and d.deleted_at is null and d.status <> 'deleting'
            and ($2::timestamptz is null or (s.created_at, s.seq) > ($2, $3))
        order by s.created_at, s.seq limit $4",
    )
    .bind(before)
    .bind(behind.map(|behind| behind.created_at))
    .bind(behind.map(|behind| behind.seq))
    .bind(limit)
    .fetch_all(conn)
    .await
}
