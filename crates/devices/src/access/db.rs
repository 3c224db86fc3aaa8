//! Statements about tickets, and about the tunnels that were opened by them.

use std::time::Duration;

use contracts::{DeviceId, Timestamp, UserId};
use coordination::{PortKind, PortSet};
use sqlx::PgConnection;

use super::Ending;
use super::ticket::NewTicket;
use crate::device::port_set;

/// Where a device is reached, and whether it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The address of its node: a host name or an IP address.
    pub address: String,
    /// Its ports.
    pub ports: PortSet,
    /// Why access has ended.
    pub ended: Option<Ending>,
}

#[derive(sqlx::FromRow)]
struct StandingRow {
    address: String,
    adb_port: i32,
    webrtc_port: i32,
    scrcpy_port: i32,
    ended: Option<String>,
}

impl From<StandingRow> for Standing {
    fn from(row: StandingRow) -> Self {
        Self {
            ports: port_set(row.adb_port, row.webrtc_port, row.scrcpy_port),
            ended: row.ended.as_deref().map(Ending::told),
            address: row.address,
        }
    }
}

/// How a ticket stands, whatever it was used for.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Found {
    /// Its number.
    pub id: i64,
    /// Who asked for it.
    pub user_id: UserId,
    /// Its port, and of which device.
    pub device_id: DeviceId,
    /// To which port it leads.
    pub kind: String,
    /// Whether it was used.
    pub is_used: bool,
    /// Whether its time is over.
    pub is_expired: bool,
}

/// Counts the tickets of a user that wait to be used. Until the transaction ends, others that ask for the same user wait.
pub async fn count_waiting(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<i64> {
    sqlx::query(
        "select pg_advisory_xact_lock(hashtextextended('devices.access_tickets ' || $1, 0))",
    )
    .bind(user)
    .execute(&mut *conn)
    .await?;
    sqlx::query_scalar(
        "select count(*) from devices.access_tickets
        where user_id = $1 and used_at is null and revoked_at is null and expires_at > clock_timestamp()",
    )
    .bind(user)
    .fetch_one(conn)
    .await
}

/// Lets the oldest tickets expire that wait to be used at the same port of the same device, but for so many: a page that is
/// opened again and again leaves the earlier ones unused. The caller has counted those that wait.
pub async fn replace(
    conn: &mut PgConnection,
    ticket: &NewTicket,
    but_for: i64,
) -> sqlx::Result<u64> {
    let update = sqlx::query(
        "with old as (
            select id from devices.access_tickets
            where user_id = $1 and device_id = $2 and kind = $3 and used_at is null and revoked_at is null and expires_at > clock_timestamp()
            order by id desc offset $4),
        locked as (select id from devices.access_tickets where id in (select id from old) order by id for update)
        update devices.access_tickets t set expires_at = clock_timestamp() from locked where t.id = locked.id",
    );
    let done = update
        .bind(&ticket.user)
        .bind(&ticket.device)
        .bind(ticket.kind.as_str())
        .bind(but_for)
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}

/// Writes a ticket for a device that runs and may be reached, in its present generation; until when it is good, by the
/// clock of the database, which is that of all replicas.
pub async fn insert(
    conn: &mut PgConnection,
    ticket: &NewTicket,
    secret_hash: &[u8],
    valid: Duration,
) -> sqlx::Result<Option<Timestamp>> {
    let insert = sqlx::query_scalar(
        "-- access::insert
        insert into devices.access_tickets (secret_hash, kind, device_id, owner_id, access_generation, user_id, session_id,
            api_key_id, api_key_version, created_at, expires_at)
        select $1, $2, d.id, d.user_id, d.access_generation, $4, $5, $6,
            (select k.version from platform.api_keys k where k.id = $6), now, now + make_interval(secs => $7)
        from devices.devices d, clock_timestamp() as now
        where d.id = $3 and d.status = 'running' and d.deleted_at is null and (d.expires_at is null or d.expires_at > now) and ($2 <> 'adb' or d.adb_enabled)
        returning expires_at",
    );
    insert
        .bind(secret_hash)
        .bind(ticket.kind.as_str())
        .bind(&ticket.device)
        .bind(&ticket.user)
        .bind(&ticket.session)
        .bind(&ticket.key)
        .bind(valid.as_secs_f64())
        .fetch_optional(conn)
        .await
}

/// The ticket with this secret.
pub async fn find(conn: &mut PgConnection, secret_hash: &[u8]) -> sqlx::Result<Option<Found>> {
    let find = sqlx::query_as(
        "select id, user_id, device_id, kind, used_at is not null as is_used, expires_at <= clock_timestamp() as is_expired
        from devices.access_tickets where secret_hash = $1",
    );
    find.bind(secret_hash).fetch_optional(conn).await
}

/// How many tunnels lead to a device. Until the transaction ends, others that ask for the same device wait.
pub async fn count_tunnels(conn: &mut PgConnection, device: &DeviceId) -> sqlx::Result<i64> {
    sqlx::query(
        "select pg_advisory_xact_lock(hashtextextended('devices.access_tunnels ' || $1, 0))",
    )
    .bind(device)
    .execute(&mut *conn)
    .await?;
    sqlx::query_scalar(
        "select count(*) from devices.access_tickets where device_id = $1 and open_until > clock_timestamp()",
    )
    .bind(device)
    .fetch_one(conn)
    .await
}

/// Uses a ticket that counts; `false` where it was used before, or no longer counts. Of any number of calls for the same
/// ticket one succeeds.
pub async fn use_up(conn: &mut PgConnection, id: i64, open: Duration) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "-- access::use_up
        update devices.access_tickets t
        set used_at = clock_timestamp(), open_until = clock_timestamp() + make_interval(secs => $2)
        from devices.access_standing a
        where t.id = $1 and a.ticket_id = t.id and a.ended is null and t.used_at is null and t.expires_at > clock_timestamp()",
    );
    let done = update
        .bind(id)
        .bind(open.as_secs_f64())
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Where the device of a ticket is reached now, and why it no longer may be.
pub async fn standing(conn: &mut PgConnection, id: i64) -> sqlx::Result<Option<Standing>> {
    let row: Option<StandingRow> = sqlx::query_as(
        "select address, adb_port, webrtc_port, scrcpy_port, ended from devices.access_standing where ticket_id = $1",
    )
    .bind(id)
    .fetch_optional(conn)
    .await?;
    Ok(row.map(Standing::from))
}

/// Those of some tunnels whose access has ended, and why.
pub async fn ended(conn: &mut PgConnection, ids: &[i64]) -> sqlx::Result<Vec<(i64, String)>> {
    sqlx::query_as(
        "-- access::ended
        select ticket_id, ended from devices.access_standing where ticket_id = any($1) and ended is not null",
    )
    .bind(ids)
    .fetch_all(conn)
    .await
}

/// Prolongs what says that tunnels are open.
pub async fn prolong(conn: &mut PgConnection, ids: &[i64], open: Duration) -> sqlx::Result<()> {
    let update = sqlx::query(
        // In the order in which whoever takes tickets back locks them, too.
        "with open as (
            select id from devices.access_tickets where id = any($1) and open_until is not null order by id for update)
        update devices.access_tickets t set open_until = clock_timestamp() + make_interval(secs => $2)
        from open where t.id = open.id",
    );
    update
        .bind(ids)
        .bind(open.as_secs_f64())
        .execute(conn)
        .await?;
    Ok(())
}

/// Notes that a tunnel was closed.
pub async fn close(conn: &mut PgConnection, id: i64) -> sqlx::Result<()> {
    sqlx::query("update devices.access_tickets set open_until = null where id = $1")
        .bind(id)
        .execute(conn)
        .await?;
    Ok(())
}

/// Allows or forbids ADB on a device, and in the second case takes back what was given for it.
pub async fn set_adb_enabled(
    conn: &mut PgConnection,
    device: &DeviceId,
    enabled: bool,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query("update devices.devices set adb_enabled = $2, updated_at = $3 where id = $1 and adb_enabled <> $2")
        .bind(device)
        .bind(enabled)
        .bind(now)
        .execute(&mut *conn)
        .await?;
    if !enabled {
        let revoke = sqlx::query(
            "with given as (
                select id from devices.access_tickets
                where device_id = $1 and kind = $2 and revoked_at is null and (open_until is not null or expires_at > clock_timestamp())
                order by id for update)
            update devices.access_tickets t set revoked_at = clock_timestamp() from given where t.id = given.id",
        );
        revoke
            .bind(device)
            .bind(PortKind::Adb.as_str())
            .execute(conn)
            .await?;
    }
    Ok(())
}

/// Where a device may be reached by ADB: its generation, whether it runs, whether its owner wants it.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Target {
    /// Its owner.
    pub user_id: UserId,
    /// The address of its node.
    pub address: String,
    /// Its ADB port.
    pub adb_port: i32,
    /// The generation of access to it.
    pub access_generation: i64,
    /// Whether its rent is over.
    pub is_over: bool,
    /// Whether it runs.
    pub is_running: bool,
    /// Whether its owner wants it to be reached by ADB.
    pub adb_enabled: bool,
}

/// Where a device that is not deleted may be reached by ADB.
pub async fn target(conn: &mut PgConnection, id: &DeviceId) -> sqlx::Result<Option<Target>> {
    let find = sqlx::query_as(
        "select d.user_id, n.address, d.adb_port, d.access_generation,
            coalesce(d.expires_at <= clock_timestamp(), false) as is_over, d.status = 'running' as is_running, d.adb_enabled
        from devices.devices d join devices.nodes n on n.name = d.node where d.id = $1 and d.deleted_at is null",
    );
    find.bind(id).fetch_optional(conn).await
}

/// Forgets tickets that expired an hour ago and have no tunnel, so many at a time; how many.
pub async fn purge(conn: &mut PgConnection, batch: i64) -> sqlx::Result<u64> {
    let delete = sqlx::query(
        "-- access::purge
        delete from devices.access_tickets where id in (
            select id from devices.access_tickets
            where expires_at < clock_timestamp() - interval '1 hour'
                and (open_until is null or open_until < clock_timestamp() - interval '1 hour')
            order by expires_at limit $1 for update skip locked)",
    );
    Ok(delete.bind(batch).execute(conn).await?.rows_affected())
}
