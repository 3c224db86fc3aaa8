//! Moves in PostgreSQL.

use std::time::Duration;

use contracts::{DeviceId, SnapshotId, Timestamp};
use coordination::PortSet;
use sqlx::PgConnection;

use super::{Drain, Stuck};
use crate::device::{Device, port_columns};
use crate::operation::Kind;
use crate::operation::db::{Claimed, insert_about};

/// How an operation goes that moves a device.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Move {
    /// The node that it leaves.
    pub source: String,
    /// The node that it comes to, once that is chosen.
    pub target: Option<String>,
    /// Whether it ran when it was stopped for this; `None` before that.
    pub ran: Option<bool>,
    /// Why it goes back to what it was.
    pub error: Option<String>,
    /// Whether its source is still drained, and there.
    pub drained: bool,
    /// For how many seconds it has been under way.
    pub seconds: f64,
}

/// How an operation goes.
pub async fn find(conn: &mut PgConnection, operation: i64) -> sqlx::Result<Option<Move>> {
    sqlx::query_as(
        "select m.source, m.target, m.ran, m.error,
            n.state = 'draining' and n.down_since is null and n.removed_at is null as drained,
            coalesce(extract(epoch from clock_timestamp() - o.begun_at), 0)::float8 as seconds
        from devices.moves m join devices.operations o on o.id = m.operation_id join devices.nodes n on n.name = m.source
        where m.operation_id = $1",
    )
    .bind(operation)
    .fetch_optional(conn)
    .await
}

/// Locks a node that is being drained until the transaction ends, and with it the choice of what leaves it next; how many
/// devices are leaving it. `None` where it is not being drained, or another replica has the lock.
pub async fn lock_draining(conn: &mut PgConnection, node: &str) -> sqlx::Result<Option<i64>> {
    let locked = sqlx::query(
        "select from devices.nodes where name = $1 and state = 'draining' and down_since is null and removed_at is null
        for no key update skip locked",
    );
    if locked.bind(node).execute(&mut *conn).await?.rows_affected() == 0 {
        return Ok(None);
    }
    let count =
        "select count(*) from devices.moves m join devices.operations o on o.id = m.operation_id
        where m.source = $1 and m.settled_at is null and o.state in ('queued', 'running')";
    let count = sqlx::query_scalar(count).bind(node).fetch_one(conn).await?;
    Ok(Some(count))
}

/// Devices that can leave a node now, locked: nothing else is to be done with them, and their last attempt, if it failed, is
/// long enough ago.
pub async fn due(
    conn: &mut PgConnection,
    node: &str,
    (attempts, pause): (i32, Duration),
    limit: i64,
) -> sqlx::Result<Vec<DeviceId>> {
    sqlx::query_scalar(
        "-- moving::due
        select d.id from devices.devices d join devices.nodes n on n.name = d.node
            cross join lateral (
                select count(*) filter (where o.state = 'failed') as failed, max(m.settled_at) as last
                from devices.moves m join devices.operations o on o.id = m.operation_id
                where m.device_id = d.id and m.source = n.name and m.queued_at >= n.since) t
        where d.node = $1 and d.released_at is null and d.status in ('running', 'stopped') and d.runtime <> 'kubernetes'
            and not exists (select 1 from devices.operations o where o.device_id = d.id and o.state in ('queued', 'running'))
            and not exists (select 1 from devices.moves m where m.device_id = d.id and m.settled_at is null)
            and t.failed < $2 and (t.last is null or t.last < clock_timestamp() - $3 * power(2, least(t.failed, 8)))
        order by t.failed, d.id limit $4 for update of d skip locked",
    )
    .bind(node)
    .bind(attempts)
    .bind(pause)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Queues the move of a device that the caller has locked. What is on it becomes a snapshot that nobody sees, where an image
/// holds that.
pub async fn insert(
    conn: &mut PgConnection,
    device: &Device,
    snapshot: &SnapshotId,
    now: Timestamp,
) -> sqlx::Result<()> {
    if device.runtime.has_engine() {
        let insert = sqlx::query(
            "insert into devices.snapshots (id, device_id, user_id, name, status, hidden, created_by, created_at, updated_at)
            values ($1, $2, $3, 'move', 'deleting', true, $3, $4, $4)",
        );
        let insert = insert.bind(snapshot).bind(&device.id);
        let insert = insert.bind(&device.user_id).bind(now);
        insert.execute(&mut *conn).await?;
    }
    let about = (&device.id, Some(snapshot));
    let saga_id = insert_about(&mut *conn, about, Kind::Move, true, now).await?;
    let insert = sqlx::query(
        "insert into devices.moves (operation_id, device_id, source) select id, device_id, $2 from devices.operations where saga_id = $1",
    );
    let insert = insert.bind(saga_id).bind(&device.node);
    insert.execute(conn).await?;
    Ok(())
}

/// Writes where the device is to come; `false` where something of it is still to be removed there. The caller holds the lock
/// of the device.
pub async fn aim(conn: &mut PgConnection, operation: i64, target: &str) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update devices.moves m set target = $2 where operation_id = $1
            and not exists (select 1 from devices.leftovers l where l.node = $2 and l.device_id = m.device_id)",
    );
    let done = update.bind(operation).bind(target).execute(conn).await?;
    Ok(done.rows_affected() == 1)
}

/// Writes whether the device ran, as it is stopped now.
pub async fn stopping(conn: &mut PgConnection, operation: i64, ran: bool) -> sqlx::Result<()> {
    let update = "update devices.moves set ran = $2 where operation_id = $1 and ran is null";
    let update = sqlx::query(update).bind(operation).bind(ran);
    update.execute(conn).await?;
    Ok(())
}

/// Writes that the device goes back to what it was, and why.
pub async fn turn_back(conn: &mut PgConnection, operation: i64, why: &str) -> sqlx::Result<()> {
    let update = "update devices.moves set error = coalesce(error, $2) where operation_id = $1";
    let update = sqlx::query(update).bind(operation).bind(why);
    update.execute(conn).await?;
    Ok(())
}

/// Whether no move of a device has failed before this one since its node is drained.
pub async fn is_first_failure(conn: &mut PgConnection, claimed: &Claimed) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "-- moving::is_first_failure
        select not exists (
            select 1 from devices.moves m join devices.moves p on p.device_id = m.device_id and p.source = m.source
                join devices.operations o on o.id = p.operation_id join devices.nodes n on n.name = m.source
            where m.operation_id = $1 and p.operation_id < $1 and p.queued_at >= n.since and o.state = 'failed')",
    )
    .bind(claimed.id)
    .fetch_one(conn)
    .await
}

/// The snapshots that go with a device: those that can be restored, and, with `made_of`, what its container is made of.
pub async fn snapshots(
    conn: &mut PgConnection,
    device: &DeviceId,
    made_of: bool,
) -> sqlx::Result<Vec<SnapshotId>> {
    sqlx::query_scalar(
        "select s.id from devices.snapshots s join devices.devices d on d.id = s.device_id
        where s.device_id = $1 and s.taken_at is not null and (s.status <> 'deleting' or ($2 and d.restored_from = s.id)
            or exists (select 1 from devices.operations o where o.snapshot_id = s.id and o.kind = 'restore' and o.state in ('queued', 'running')))
        order by s.seq",
    )
    .bind(device)
    .bind(made_of)
    .fetch_all(conn)
    .await
}

/// How many bytes are brought to a node with a device: its snapshots, but for those that the node keeps copies of, and what was
/// last found to be stored on the device.
pub async fn weight(conn: &mut PgConnection, device: &DeviceId, node: &str) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "-- moving::weight
        select (select coalesce(sum(s.size), 0) from devices.snapshots s
                where s.device_id = $1 and s.taken_at is not null and s.status <> 'deleting' and not exists (
                    select 1 from devices.snapshot_copies c where c.snapshot_id = s.id and c.node = $2 and c.state = 'ready'))::bigint
            + coalesce((select storage_mb * 1048576 from devices.readings where device_id = $1), 0)::bigint",
    )
    .bind(device)
    .bind(node)
    .fetch_one(conn)
    .await
}

/// Whether somebody wants something else of a device that is being moved: that it goes, or else anything.
pub async fn is_wanted(conn: &mut PgConnection, claimed: &Claimed) -> sqlx::Result<(bool, bool)> {
    sqlx::query_as(
        "select d.deleted_at is not null,
            exists (select 1 from devices.operations o where o.device_id = d.id and o.id > $2 and o.state = 'queued' and o.kind <> 'forget')
        from devices.devices d where d.id = $1",
    )
    .bind(&claimed.device_id)
    .bind(claimed.id)
    .fetch_one(conn)
    .await
}

/// Whether a node is being drained, which it stays until the transaction ends.
pub async fn stays_draining(conn: &mut PgConnection, node: &str) -> sqlx::Result<bool> {
    let select = sqlx::query(
        "select from devices.nodes where name = $1 and state = 'draining' and down_since is null for no key update",
    );
    let done = select.bind(node).execute(conn).await?;
    Ok(done.rows_affected() == 1)
}

/// Gives a device to another node, to be made there of what was kept of it last, where there is such. What it was made of
/// before and nobody else can see goes. The unique constraints refuse ports that another device holds.
pub async fn hand_over(
    conn: &mut PgConnection,
    claimed: &Claimed,
    (target, ports): (&str, PortSet),
    kept: Option<(&SnapshotId, i64)>,
    now: Timestamp,
) -> sqlx::Result<()> {
    let [adb, webrtc, scrcpy] = port_columns(ports);
    let update = sqlx::query(
        "-- moving::hand_over
        with kept as (
            update devices.snapshots set taken_at = $7, size = $8, updated_at = $7 where id = $6 returning id),
        moved as (
            update devices.moves set handed_over_at = $7 where operation_id = $9),
        unused as (
            delete from devices.snapshots s using devices.devices d
            where d.id = $1 and $6::text is not null and s.id = d.restored_from and s.status = 'deleting')
        update devices.devices set node = $2, adb_port = $3, webrtc_port = $4, scrcpy_port = $5, updated_at = $7,
            restored_from = coalesce((select id from kept), restored_from)
        where id = $1",
    );
    update
        .bind(&claimed.device_id)
        .bind(target)
        .bind(adb)
        .bind(webrtc)
        .bind(scrcpy)
        .bind(kept.map(|(id, _)| id))
        .bind(now)
        .bind(kept.map(|(_, size)| size))
        .bind(claimed.id)
        .execute(conn)
        .await?;
    Ok(())
}

/// A move that ended, with what it may have left.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Ended {
    /// Its operation.
    pub operation_id: i64,
    /// Which device.
    pub device_id: DeviceId,
    /// Where the device was to come.
    pub target: Option<String>,
    /// The snapshot that nobody sees.
    pub snapshot_id: SnapshotId,
    /// done, failed or cancelled.
    pub state: String,
}

/// Moves that ended and may have left something.
pub async fn ended(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<Ended>> {
    sqlx::query_as(
        "select m.operation_id, m.device_id, m.target, o.snapshot_id, o.state
        from devices.moves m join devices.operations o on o.id = m.operation_id
        where m.settled_at is null and o.state in ('done', 'failed', 'cancelled') order by m.operation_id limit $1",
    )
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Writes that everybody knows what a move has left; `false` where somebody did already.
pub async fn settle(conn: &mut PgConnection, operation: i64) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update devices.moves set settled_at = clock_timestamp() where operation_id = $1 and settled_at is null",
    );
    let done = update.bind(operation).execute(conn).await?;
    Ok(done.rows_affected() == 1)
}

/// Whether a snapshot is there that only a move has made.
pub async fn is_hidden(conn: &mut PgConnection, snapshot: &SnapshotId) -> sqlx::Result<bool> {
    let select = "select exists (select 1 from devices.snapshots where id = $1 and hidden)";
    let select = sqlx::query_scalar(select).bind(snapshot);
    select.fetch_one(conn).await
}

/// Whether a device comes to a node, or was to until a moment ago.
pub async fn is_coming(
    conn: &mut PgConnection,
    device: &DeviceId,
    node: &str,
) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (select 1 from devices.moves where device_id = $1 and target = $2 and settled_at is null)",
    )
    .bind(device)
    .bind(node)
    .fetch_one(conn)
    .await
}

/// Devices of which a node keeps snapshots although they are elsewhere, none of them as a copy, and neither come to it nor are
/// to be removed from it.
pub async fn strays(
    conn: &mut PgConnection,
    node: &str,
    kept: &[SnapshotId],
) -> sqlx::Result<Vec<DeviceId>> {
    sqlx::query_scalar(
        "select distinct d.id from devices.snapshots s join devices.devices d on d.id = s.device_id
        where s.id = any($2) and d.node <> $1
            and not exists (select 1 from devices.leftovers l where l.node = $1 and l.device_id = d.id)
            and not exists (
                select 1 from devices.snapshot_copies c join devices.snapshots o on o.id = c.snapshot_id
                where c.node = $1 and o.device_id = d.id)
            and not exists (select 1 from devices.moves m where m.target = $1 and m.device_id = d.id and m.settled_at is null)",
    )
    .bind(node)
    .bind(kept)
    .fetch_all(conn)
    .await
}

/// How far the draining of a node is.
pub async fn progress(conn: &mut PgConnection, node: &str) -> sqlx::Result<Drain> {
    let (left, moving) = sqlx::query_as(
        "select (select count(*) from devices.devices where node = $1 and released_at is null),
            (select count(*) from devices.moves m join devices.operations o on o.id = m.operation_id
            where m.source = $1 and m.settled_at is null and o.state in ('queued', 'running'))",
    )
    .bind(node)
    .fetch_one(&mut *conn)
    .await?;
    let failed: Vec<Stuck> = sqlx::query_as(
        "-- moving::progress
        with tried as (
            select d.id as device_id, d.status, d.runtime, d.error as fault,
                count(*) filter (where o.state = 'failed') as attempts,
                (array_agg(coalesce(m.error, o.error) order by m.operation_id desc) filter (where o.state = 'failed'))[1] as reason
            from devices.devices d join devices.nodes n on n.name = d.node
                left join devices.moves m on m.device_id = d.id and m.source = n.name and m.queued_at >= n.since
                left join devices.operations o on o.id = m.operation_id
            where d.node = $1 and d.released_at is null group by d.id)
        select device_id, attempts, case
                when runtime = 'kubernetes' then 'nothing can be kept of a device in kubernetes, whose cluster drains its own machines: delete it'
                when status = 'error' then 'it is in error: ' || coalesce(fault, 'no reason is known') || '; restore a snapshot of it, or delete it'
                else coalesce(reason, 'no reason is known') end as reason
        from tried where attempts > 0 or status = 'error' or runtime = 'kubernetes' order by device_id limit 100",
    )
    .bind(node)
    .fetch_all(conn)
    .await?;
    Ok(Drain {
        left,
        moving,
        failed,
    })
}
