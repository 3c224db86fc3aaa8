//! What PostgreSQL knows about ports.

use std::time::Duration;

use contracts::{DeviceId, UserId};
use coordination::port_pool::RecordedRest;
use coordination::{PortKind, PortSet, RestReason};
use sqlx::PgConnection;

use crate::device::{port_columns, port_set};

/// Ports of a kind, counted over all nodes.
#[derive(Clone, Copy, Debug, sqlx::FromRow)]
pub struct PortCount {
    /// Nodes there are.
    pub nodes: i64,
    /// Sets that devices hold.
    pub held: i64,
    /// Ports that rest.
    pub resting_adb: i64,
    /// Ports that rest.
    pub resting_webrtc: i64,
    /// Ports that rest.
    pub resting_scrcpy: i64,
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

/// Ports of a node that came back with their devices less than a quarantine ago, by the clock of the database.
pub async fn returned(
    conn: &mut PgConnection,
    node: &str,
    quarantine: Duration,
) -> sqlx::Result<Vec<RecordedRest>> {
    let rows: Vec<(i32, i32, i32, f64)> = sqlx::query_as(
        "select adb_port, webrtc_port, scrcpy_port,
            greatest(extract(epoch from clock_timestamp() - released_at), 0)::float8
        from devices.devices where node = $1 and released_at > clock_timestamp() - make_interval(secs => $2)",
    )
    .bind(node)
    .bind(quarantine.as_secs_f64())
    .fetch_all(conn)
    .await?;
    let rests = rows.into_iter().flat_map(|(adb, webrtc, scrcpy, rested)| {
        let (ports, rested) = (port_set(adb, webrtc, scrcpy), seconds(rested));
        PortKind::ALL.map(|kind| RecordedRest {
            kind,
            port: ports.of(kind),
            reason: RestReason::Returned,
            rested,
            left: quarantine.saturating_sub(rested),
        })
    });
    Ok(rests.collect())
}

/// Ports of a node on which other programs were found.
pub async fn quarantined(conn: &mut PgConnection, node: &str) -> sqlx::Result<Vec<RecordedRest>> {
    let rows: Vec<(String, i32, String, f64, f64)> = sqlx::query_as(
        "select kind, port, reason, greatest(extract(epoch from clock_timestamp() - since), 0)::float8,
            greatest(extract(epoch from until - clock_timestamp()), 0)::float8
        from devices.port_quarantine where node = $1 and until > clock_timestamp()",
    )
    .bind(node)
    .fetch_all(conn)
    .await?;
    let rests = rows
        .into_iter()
        .filter_map(|(kind, port, reason, rested, left)| {
            Some(RecordedRest {
                kind: PortKind::parse(&kind)?,
                port: u16::try_from(port).ok()?,
                reason: RestReason::parse(&reason)?,
                rested: seconds(rested),
                left: seconds(left),
            })
        });
    Ok(rests.collect())
}

/// Notes that a port of a node cannot be used for a while.
pub async fn quarantine(
    conn: &mut PgConnection,
    node: &str,
    (kind, port): (PortKind, u16),
    reason: RestReason,
    rest: Duration,
) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "insert into devices.port_quarantine as q (node, kind, port, reason, since, until)
        select $1, $2, $3, $4, now, now + make_interval(secs => $5) from clock_timestamp() as now
        on conflict (node, kind, port) do update set reason = excluded.reason, since = excluded.since, until = excluded.until
        where q.until < excluded.until",
    );
    insert
        .bind(node)
        .bind(kind.as_str())
        .bind(i32::from(port))
        .bind(reason.as_str())
        .bind(rest.as_secs_f64())
        .execute(conn)
        .await?;
    Ok(())
}

/// Whether a device holds a port of a set.
pub async fn is_held(conn: &mut PgConnection, node: &str, ports: PortSet) -> sqlx::Result<bool> {
    let [adb, webrtc, scrcpy] = port_columns(ports);
    let select = sqlx::query_scalar(
        "select exists (select 1 from devices.devices where node = $1 and released_at is null
            and (adb_port = $2 or webrtc_port = $3 or scrcpy_port = $4))",
    );
    select
        .bind(node)
        .bind(adb)
        .bind(webrtc)
        .bind(scrcpy)
        .fetch_one(conn)
        .await
}

/// Forgets quarantines that are over, so many at a time.
pub async fn forget_quarantine(conn: &mut PgConnection, batch: i64) -> sqlx::Result<()> {
    let delete = sqlx::query(
        "delete from devices.port_quarantine where (node, kind, port) in (
            select node, kind, port from devices.port_quarantine where until <= clock_timestamp()
            order by until limit $1 for update skip locked)",
    );
    delete.bind(batch).execute(conn).await?;
    Ok(())
}

/// How many ports there are of each kind that devices hold, over all nodes: a set has one of each.
pub async fn count_held(conn: &mut PgConnection) -> sqlx::Result<i64> {
    let count = "select count(*) from devices.devices where released_at is null";
    sqlx::query_scalar(count).fetch_one(conn).await
}

/// Counts ports over all nodes. One that rests and is held again counts as held.
pub async fn count(conn: &mut PgConnection, quarantine: Duration) -> sqlx::Result<PortCount> {
    let count = sqlx::query_as(
        "-- port::count
        with ports as (
            select d.node, p.kind, p.port, d.released_at from devices.devices d
            cross join lateral (values ('adb', d.adb_port), ('webrtc', d.webrtc_port), ('scrcpy', d.scrcpy_port)) as p (kind, port)
            where d.released_at is null or d.released_at > clock_timestamp() - make_interval(secs => $1)),
        resting as (
            select node, kind, port from ports where released_at is not null
            union select node, kind, port from devices.port_quarantine where until > clock_timestamp()
            except select node, kind, port from ports where released_at is null)
        select (select count(*) from devices.nodes where removed_at is null) as nodes,
            (select count(*) from devices.devices where released_at is null) as held,
            count(*) filter (where kind = 'adb') as resting_adb,
            count(*) filter (where kind = 'webrtc') as resting_webrtc,
            count(*) filter (where kind = 'scrcpy') as resting_scrcpy
        from resting",
    );
    count.bind(quarantine.as_secs_f64()).fetch_one(conn).await
}

/// Whose the devices of these ids are, and how they are. Owners that are no device are left out.
pub async fn holders(
    conn: &mut PgConnection,
    owners: &[String],
) -> sqlx::Result<Vec<(String, UserId, String)>> {
    let select = "select id, user_id, status from devices.devices where id = any($1)";
    sqlx::query_as(select).bind(owners).fetch_all(conn).await
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

fn seconds(count: f64) -> Duration {
    Duration::try_from_secs_f64(count).unwrap_or_default()
}
