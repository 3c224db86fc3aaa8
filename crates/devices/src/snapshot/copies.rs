//! Copies of snapshots on other nodes than that of their device, for when that one is gone. One replica at a time makes them;
//! two that do the same bring the same image twice.
//!
//! The node of a device keeps each of its snapshots, unless a row says that one is still to be copied there, as after a
//! failover. Rows follow what engines say that they keep.

use std::time::Duration;

use chrono::TimeDelta;
use contracts::{DeviceId, SnapshotId, Timestamp};
use platform::problem::causes;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::runtime::RuntimeError;
use crate::runtime::engines::Engine;
use crate::runtime::transfer::{self, Limits};
use crate::{Devices, device, metrics};

/// How many snapshots one run deals with.
const BATCH: i64 = 32;
/// How long a device has been where it is, and its snapshot is taken, before its node is held to keep it.
const SETTLED: TimeDelta = TimeDelta::seconds(60);
/// How long a snapshot that no node keeps is looked for.
const HOPE: TimeDelta = TimeDelta::minutes(10);

/// Makes the copies that are missing, and removes those that nobody needs any more.
pub async fn keep(state: &Devices, cancelled: &CancellationToken) -> anyhow::Result<()> {
    tidy(state).await?;
    let lacking = {
        let mut conn = state.platform.db.acquire().await?;
        lacking(&mut conn, state.config.snapshot_copies - 1).await?
    };
    for (snapshot, device) in &lacking {
        let mut tx = state.platform.db.begin().await?;
        // Under its lock nothing is noted as left behind that this would be among.
        if device::db::lock(&mut tx, device).await?.is_some() {
            plan(&mut tx, snapshot, device).await?;
        }
        tx.commit().await?;
    }
    let open = {
        let mut conn = state.platform.db.acquire().await?;
        open(&mut conn).await?
    };
    for (snapshot, node) in &open {
        if cancelled.is_cancelled() {
            break;
        }
        let brought = bring_to(state, snapshot, node, state.config.move_deadline).await;
        let mut conn = state.platform.db.acquire().await?;
        match brought {
            Ok(()) => {
                ready(&mut conn, snapshot, node).await?;
                info!("node {node} keeps a copy of snapshot {snapshot}");
            }
            Err(error) => {
                tried(&mut conn, snapshot, node).await?;
                warn!(
                    "node {node} has no copy of snapshot {snapshot} yet: {}",
                    causes(&error)
                );
            }
        }
    }
    Ok(())
}

/// Brings the image of a snapshot to a node, unless it is there, from whichever node keeps it.
///
/// # Errors
/// Where none does that can be reached, or it does not come whole in time.
pub async fn bring_to(
    state: &Devices,
    snapshot: &SnapshotId,
    node: &str,
    within: Duration,
) -> Result<(), RuntimeError> {
    let engines = &state.runtimes.engines;
    let to = engines.of(node)?;
    if to.has_image(snapshot).await? {
        return Ok(());
    }
    let limits = Limits {
        within,
        stall: state.config.move_stall,
    };
    let mut failed = RuntimeError::Engine {
        tried: "bring the image of a snapshot to a node",
        source: "no other node that is there keeps it".into(),
    };
    let holders = {
        let mut conn = state.platform.db.acquire().await?;
        holders(&mut conn, snapshot).await?
    };
    for holder in holders.iter().filter(|holder| *holder != node) {
        let brought = async {
            let from = engines.of(holder)?;
            transfer::bring(snapshot, (&*from, &*to), limits).await
        };
        match brought.await {
            Ok(bytes) => {
                metrics::brought(bytes);
                return Ok(());
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Removes the copies of a snapshot that is deleted from all nodes but the one of its device. The sweep removes what cannot
/// be removed now.
///
/// # Errors
/// Where the database does not answer.
pub async fn remove(state: &Devices, snapshot: &SnapshotId, home: &str) -> sqlx::Result<()> {
    let nodes: Vec<String> = {
        let mut conn = state.platform.db.acquire().await?;
        let select = "select c.node from devices.snapshot_copies c join devices.nodes n on n.name = c.node
            where c.snapshot_id = $1 and c.node <> $2 and n.down_since is null and n.removed_at is null";
        let select = sqlx::query_scalar(select).bind(snapshot).bind(home);
        select.fetch_all(&mut *conn).await?
    };
    for node in nodes {
        let removed = async {
            let engine = state.runtimes.engines.of(&node)?;
            engine.forget(snapshot).await
        };
        if let Err(error) = removed.await {
            warn!(
                "the copy of snapshot {snapshot} on node {node} is left to the sweep: {}",
                causes(&error)
            );
        }
    }
    Ok(())
}

/// Looks again at what the engine of a node keeps: a copy that is gone is to be made anew, and so is a snapshot that the node of
/// its device does not have. What was looked at too early is seen to be there before it is brought.
///
/// # Errors
/// Where the engine or the database does not answer.
pub async fn verify(state: &Devices, node: &str, engine: &dyn Engine) -> crate::error::Result<()> {
    let began = state.platform.clock.now();
    let kept = engine.snapshots().await?;
    let mut conn = state.platform.db.acquire().await?;
    let gone = missing(&mut conn, node, &kept).await?;
    for snapshot in &gone {
        warn!(
            "node {node} does not keep its copy of snapshot {snapshot} any more: it is made anew"
        );
    }
    let lacking = lacking_at_home(&mut conn, node, &kept, began - SETTLED).await?;
    for snapshot in &lacking {
        warn!(
            "node {node} does not keep snapshot {snapshot} of its device: it is to be copied there"
        );
    }
    Ok(())
}

/// Writes that the node that a device has come to keeps its snapshots only where it kept copies of them: the others are to
/// be copied there. The caller holds the lock of the device.
pub async fn expect_all(
    conn: &mut PgConnection,
    device: &DeviceId,
    node: &str,
) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "-- copies::expect_all
        insert into devices.snapshot_copies (snapshot_id, node)
        select id, $2 from devices.snapshots
        where device_id = $1 and status in ('ready', 'restoring') and taken_at is not null
        on conflict do nothing",
    );
    insert.bind(device).bind(node).execute(conn).await?;
    Ok(())
}

/// Forgets copies where the device itself is by now or where there is no node any more, and removes those of snapshots that
/// are deleted, and those on nodes that are drained once there are enough others, and one at least: after a failover the node
/// of the device has the snapshot alone that it was made of.
async fn tidy(state: &Devices) -> anyhow::Result<()> {
    let unneeded: Vec<(SnapshotId, String)> = {
        let mut conn = state.platform.db.acquire().await?;
        let delete = sqlx::query(
            "delete from devices.snapshot_copies c using devices.snapshots s, devices.devices d, devices.nodes n
            where s.id = c.snapshot_id and d.id = s.device_id and n.name = c.node
                and ((c.node = d.node and c.state = 'ready') or n.removed_at is not null)",
        );
        delete.execute(&mut *conn).await?;
        for snapshot in give_up_lost(&mut conn, HOPE).await? {
            warn!("no node keeps snapshot {snapshot} any more: it is in error");
        }
        let select = sqlx::query_as(
            "-- copies::unneeded
            select c.snapshot_id, c.node
            from devices.snapshot_copies c join devices.snapshots s on s.id = c.snapshot_id
                join devices.devices d on d.id = s.device_id join devices.nodes n on n.name = c.node
                cross join lateral (
                    select count(*) as others from devices.snapshot_copies o join devices.nodes m on m.name = o.node
                    where o.snapshot_id = s.id and o.state = 'ready' and o.node <> d.node and m.state <> 'draining'
                        and m.down_since is null and m.removed_at is null) k
                cross join lateral (
                    select h.down_since is null and not exists (
                        select 1 from devices.snapshot_copies o where o.snapshot_id = s.id and o.node = d.node and o.state = 'copying') as kept
                    from devices.nodes h where h.name = d.node) h
            where n.down_since is null and c.node <> d.node and (s.status in ('deleting', 'error')
                or (n.state = 'draining' and k.others >= $1 and (h.kept or k.others >= 1)))
            order by c.created_at limit $2",
        );
        let select = select.bind(state.config.snapshot_copies - 1).bind(BATCH);
        select.fetch_all(&mut *conn).await?
    };
    for (snapshot, node) in unneeded {
        let removed = async {
            let engine = state.runtimes.engines.of(&node)?;
            engine.forget(&snapshot).await
        };
        // What cannot be removed now is found by the next run.
        if let Err(error) = removed.await {
            warn!(
                "the copy of snapshot {snapshot} on node {node} was not removed yet: {}",
                causes(&error)
            );
            continue;
        }
        let mut conn = state.platform.db.acquire().await?;
        let delete = "delete from devices.snapshot_copies where snapshot_id = $1 and node = $2";
        let delete = sqlx::query(delete).bind(&snapshot).bind(&node);
        delete.execute(&mut *conn).await?;
    }
    Ok(())
}

/// Snapshots with fewer copies than there are to be, although a node could keep another one; the latest first.
async fn lacking(
    conn: &mut PgConnection,
    wanted: i64,
) -> sqlx::Result<Vec<(SnapshotId, DeviceId)>> {
    sqlx::query_as(
        "-- copies::lacking
        select s.id, s.device_id from devices.snapshots s join devices.devices d on d.id = s.device_id
        where $1 > 0 and s.status = 'ready' and s.taken_at is not null and d.runtime = 'docker' and d.deleted_at is null
            and $1 > (
                select count(*) from devices.snapshot_copies c join devices.nodes n on n.name = c.node
                where c.snapshot_id = s.id and c.node <> d.node and n.state <> 'draining' and n.down_since is null and n.removed_at is null)
            and exists (
                select 1 from devices.nodes n
                where n.runtime = 'docker' and n.state = 'ready' and n.down_since is null and n.removed_at is null and n.name <> d.node
                    and not exists (select 1 from devices.snapshot_copies c where c.snapshot_id = s.id and c.node = n.name)
                    and not exists (select 1 from devices.leftovers l where l.device_id = d.id and l.node = n.name))
        order by s.created_at desc, s.seq desc limit $2",
    )
    .bind(wanted)
    .bind(BATCH)
    .fetch_all(conn)
    .await
}

/// Writes where the next copy of a snapshot is to be: on the node that keeps fewest. The caller holds the lock of the device.
async fn plan(
    conn: &mut PgConnection,
    snapshot: &SnapshotId,
    device: &DeviceId,
) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "-- copies::plan
        insert into devices.snapshot_copies (snapshot_id, node)
        select s.id, n.name from devices.snapshots s join devices.devices d on d.id = s.device_id cross join devices.nodes n
        where s.id = $1 and d.id = $2 and s.status = 'ready'
            and n.runtime = 'docker' and n.state = 'ready' and n.down_since is null and n.removed_at is null and n.name <> d.node
            and not exists (select 1 from devices.snapshot_copies c where c.snapshot_id = s.id and c.node = n.name)
            and not exists (select 1 from devices.leftovers l where l.device_id = d.id and l.node = n.name)
        order by (select count(*) from devices.snapshot_copies c where c.node = n.name), n.name limit 1
        on conflict do nothing",
    );
    insert.bind(snapshot).bind(device).execute(conn).await?;
    Ok(())
}

/// Copies that are to be made now, those that failed last.
async fn open(conn: &mut PgConnection) -> sqlx::Result<Vec<(SnapshotId, String)>> {
    sqlx::query_as(
        "select c.snapshot_id, c.node from devices.snapshot_copies c join devices.nodes n on n.name = c.node
            join devices.snapshots s on s.id = c.snapshot_id
        where c.state = 'copying' and s.status in ('ready', 'restoring') and n.down_since is null and n.state <> 'draining'
        order by c.tried_at nulls first, c.created_at limit $1",
    )
    .bind(BATCH)
    .fetch_all(conn)
    .await
}

/// Writes that the image of a snapshot is brought to a node, for it is no stray there. The caller holds the lock of the device.
pub async fn expect(
    conn: &mut PgConnection,
    snapshot: &SnapshotId,
    node: &str,
) -> sqlx::Result<()> {
    let insert = "insert into devices.snapshot_copies (snapshot_id, node) values ($1, $2) on conflict do nothing";
    let insert = sqlx::query(insert).bind(snapshot).bind(node);
    insert.execute(conn).await?;
    Ok(())
}

/// Forgets that a snapshot was to come to a node. One that came stays.
pub async fn no_longer_expect(
    conn: &mut PgConnection,
    snapshot: &SnapshotId,
    node: &str,
) -> sqlx::Result<()> {
    let delete = "delete from devices.snapshot_copies where snapshot_id = $1 and node = $2 and state = 'copying'";
    let delete = sqlx::query(delete).bind(snapshot).bind(node);
    delete.execute(conn).await?;
    Ok(())
}

/// How many bytes are brought to a node with a snapshot: none where it keeps a copy.
pub async fn weight(
    conn: &mut PgConnection,
    snapshot: &SnapshotId,
    node: &str,
) -> sqlx::Result<i64> {
    let select = "select coalesce(sum(s.size), 0)::bigint from devices.snapshots s where s.id = $1 and not exists (
            select 1 from devices.snapshot_copies c where c.snapshot_id = s.id and c.node = $2 and c.state = 'ready')";
    let select = sqlx::query_scalar(select).bind(snapshot).bind(node);
    select.fetch_one(conn).await
}

/// Whether a device can be made of a snapshot: it was taken, and nobody removes it. The caller holds the lock of the device.
pub async fn can_be_used(conn: &mut PgConnection, snapshot: &SnapshotId) -> sqlx::Result<bool> {
    let select = "select exists (select 1 from devices.snapshots where id = $1 and taken_at is not null and status in ('ready', 'restoring'))";
    let select = sqlx::query_scalar(select).bind(snapshot);
    select.fetch_one(conn).await
}

/// Whether a node keeps copies of snapshots of a device, or is to.
pub async fn are_on(conn: &mut PgConnection, device: &DeviceId, node: &str) -> sqlx::Result<bool> {
    let select = "select exists (select 1 from devices.snapshot_copies c join devices.snapshots s on s.id = c.snapshot_id
        where s.device_id = $1 and c.node = $2)";
    let select = sqlx::query_scalar(select).bind(device).bind(node);
    select.fetch_one(conn).await
}

/// Writes that a node keeps a snapshot that it was to get.
pub async fn ready(conn: &mut PgConnection, snapshot: &SnapshotId, node: &str) -> sqlx::Result<()> {
    let update = "update devices.snapshot_copies set state = 'ready', tried_at = null where snapshot_id = $1 and node = $2";
    let update = sqlx::query(update).bind(snapshot).bind(node);
    update.execute(conn).await?;
    Ok(())
}

/// Copies that are written down as kept by a node and are not, from now on to be made anew; which.
async fn missing(
    conn: &mut PgConnection,
    node: &str,
    kept: &[SnapshotId],
) -> sqlx::Result<Vec<SnapshotId>> {
    sqlx::query_scalar(
        "-- copies::missing
        update devices.snapshot_copies c set state = 'copying', tried_at = null, created_at = clock_timestamp()
        from devices.snapshots s
        where c.node = $1 and c.state = 'ready' and c.snapshot_id <> all($2) and s.id = c.snapshot_id and s.status in ('ready', 'restoring')
        returning c.snapshot_id",
    )
    .bind(node)
    .bind(kept)
    .fetch_all(conn)
    .await
}

/// Snapshots of devices at rest on a node that it does not keep, from now on to be copied there; which. Only those that were
/// taken, of devices that came, before a moment.
async fn lacking_at_home(
    conn: &mut PgConnection,
    node: &str,
    kept: &[SnapshotId],
    before: Timestamp,
) -> sqlx::Result<Vec<SnapshotId>> {
    sqlx::query_scalar(
        "-- copies::lacking_at_home
        insert into devices.snapshot_copies (snapshot_id, node)
        select s.id, d.node from devices.snapshots s join devices.devices d on d.id = s.device_id
        where d.node = $1 and d.runtime = 'docker' and d.deleted_at is null and d.updated_at < $3
            and s.status = 'ready' and s.taken_at < $3 and s.id <> all($2)
            and not exists (
                select 1 from devices.operations o where o.device_id = d.id and o.state in ('queued', 'running'))
        on conflict do nothing returning snapshot_id",
    )
    .bind(node)
    .bind(kept)
    .bind(before)
    .fetch_all(conn)
    .await
}

/// Puts snapshots in error that the node of their device has not had for so long, and no other one either, whether it is there
/// or not; which. A copy that was missed of late is looked for first.
async fn give_up_lost(conn: &mut PgConnection, hope: TimeDelta) -> sqlx::Result<Vec<SnapshotId>> {
    sqlx::query_scalar(
        "-- copies::give_up_lost
        update devices.snapshots s set status = 'error', error = 'no node keeps it any more', taken_at = null, updated_at = clock_timestamp()
        from devices.devices d
        where d.id = s.device_id and s.status = 'ready' and exists (
                select 1 from devices.snapshot_copies c where c.snapshot_id = s.id and c.node = d.node and c.state = 'copying'
                    and c.tried_at is not null and c.created_at < clock_timestamp() - $1)
            and not exists (
                select 1 from devices.snapshot_copies c join devices.nodes n on n.name = c.node
                where c.snapshot_id = s.id and n.removed_at is null and (c.state = 'ready'
                    -- One that is only doubted, and can still be found; nobody looks for it on a node that is drained.
                    or (n.down_since is null and (c.created_at >= clock_timestamp() - $1 or (c.tried_at is null and n.state <> 'draining')))))
            and not exists (
                select 1 from devices.operations o where o.device_id = d.id and o.state in ('queued', 'running'))
        returning s.id",
    )
    .bind(hope)
    .fetch_all(conn)
    .await
}

async fn tried(conn: &mut PgConnection, snapshot: &SnapshotId, node: &str) -> sqlx::Result<()> {
    let update = "update devices.snapshot_copies set tried_at = clock_timestamp() where snapshot_id = $1 and node = $2";
    let update = sqlx::query(update).bind(snapshot).bind(node);
    update.execute(conn).await?;
    Ok(())
}

/// The nodes that are there and keep the image of a snapshot: that of its device first.
async fn holders(conn: &mut PgConnection, snapshot: &SnapshotId) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar(
        "select n.name from devices.snapshots s join devices.devices d on d.id = s.device_id cross join devices.nodes n
            left join devices.snapshot_copies c on c.snapshot_id = s.id and c.node = n.name
        where s.id = $1 and n.down_since is null and n.removed_at is null
            and coalesce(c.state = 'ready', n.name = d.node)
        order by n.name = d.node desc, n.name",
    )
    .bind(snapshot)
    .fetch_all(conn)
    .await
}

/// The latest snapshot of a device that another node keeps, which is there.
pub async fn latest(
    conn: &mut PgConnection,
    device: &DeviceId,
) -> sqlx::Result<Option<SnapshotId>> {
    sqlx::query_scalar(
        "-- copies::latest
        select s.id from devices.snapshots s join devices.devices d on d.id = s.device_id
        where s.device_id = $1 and s.status in ('ready', 'restoring') and s.taken_at is not null and exists (
            select 1 from devices.snapshot_copies c join devices.nodes n on n.name = c.node
            where c.snapshot_id = s.id and c.state = 'ready' and c.node <> d.node and n.down_since is null and n.removed_at is null)
        order by s.taken_at desc, s.seq desc limit 1",
    )
    .bind(device)
    .fetch_optional(conn)
    .await
}

/// Forgets the copies that a node keeps of a device whose images are removed from it. The caller holds the lock of the device.
pub async fn forget_on(conn: &mut PgConnection, device: &DeviceId, node: &str) -> sqlx::Result<()> {
    let delete = sqlx::query(
        "delete from devices.snapshot_copies where node = $2 and snapshot_id in (
            select id from devices.snapshots where device_id = $1)",
    );
    delete.bind(device).bind(node).execute(conn).await?;
    Ok(())
}
