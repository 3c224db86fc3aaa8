//! Quotas in PostgreSQL.

use std::collections::HashMap;

use chrono::{Datelike, TimeZone, Utc};
use contracts::{DeviceId, PlanId, Timestamp, UserId};
use platform::http::Slice;
use sqlx::PgConnection;
use sqlx::types::Json;

use super::{Amounts, Limit, Limits, Quota, Quotas, Status, used};
use crate::error::Result;

/// How many quotas are read at once where all are looked through.
const LOOKED_THROUGH: i64 = 1_000;

/// A row of a quota.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Row {
    user_id: UserId,
    seq: i64,
    id: String,
    overrides: Json<Limits>,
    suspended: bool,
    valid_until: Option<Timestamp>,
    auto_renew: bool,
    extra_devices: i64,
    extra_cpu_cores: i64,
    extra_memory_mb: i64,
    extra_storage_mb: i64,
    created_at: Timestamp,
    updated_at: Timestamp,
}

/// What an order grants.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Grant {
    user_id: UserId,
    plan_id: PlanId,
    plan_name: String,
    limits: Json<Limits>,
    valid_from: Timestamp,
    valid_until: Timestamp,
}

macro_rules! select_quota {
    ($rest:literal) => {
        concat!(
            "select user_id, seq, id, overrides, suspended, valid_until, auto_renew, extra_devices, extra_cpu_cores,
                extra_memory_mb, extra_storage_mb, created_at, updated_at from devices.quotas ",
            $rest
        )
    };
}

/// The quota of a user, locked until the transaction ends: nobody else charges it meanwhile. The running devices are counted
/// without `apart`, which the caller charges anew.
pub async fn lock(
    tx: &mut PgConnection,
    quotas: &Quotas,
    user: &UserId,
    apart: Option<&DeviceId>,
    now: Timestamp,
) -> Result<Quota> {
    let locked = lock_row(tx, user).await?;
    let row = match locked {
        Some(row) => row,
        None => {
            ensure(tx, user, now).await?;
            // Two statements: the second one sees what another transaction wrote that the first one waited for.
            lock_row(tx, user).await?.ok_or(sqlx::Error::RowNotFound)?
        }
    };
    read(tx, quotas, row, apart, now).await
}

/// The quota of a user, as it is at the moment.
pub async fn find(
    conn: &mut PgConnection,
    quotas: &Quotas,
    user: &UserId,
    now: Timestamp,
) -> Result<Quota> {
    let found = find_all(conn, quotas, std::slice::from_ref(user), now).await?;
    Ok(found.into_iter().next().ok_or(sqlx::Error::RowNotFound)?)
}

/// The quotas of users as they are at the moment, in no order: as many statements, however many there are. Nothing is written
/// but for users who had none.
pub async fn find_all(
    conn: &mut PgConnection,
    quotas: &Quotas,
    users: &[UserId],
    now: Timestamp,
) -> Result<Vec<Quota>> {
    let mut rows = rows(conn, users).await?;
    let has_none = |user: &&UserId| !rows.iter().any(|row| row.user_id == **user);
    let without: Vec<UserId> = users.iter().filter(has_none).cloned().collect();
    if !without.is_empty() {
        for user in &without {
            ensure(conn, user, now).await?;
        }
        rows.extend(self::rows(conn, &without).await?);
    }
    read_all(conn, quotas, rows, now).await
}

async fn rows(conn: &mut PgConnection, users: &[UserId]) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as(select_quota!("where user_id = any($1)"))
        .bind(users)
        .fetch_all(conn)
        .await
}

/// Whose quota this is.
pub async fn owner(conn: &mut PgConnection, id: &str) -> sqlx::Result<Option<UserId>> {
    sqlx::query_scalar("select user_id from devices.quotas where id = $1")
        .bind(id)
        .fetch_optional(conn)
        .await
}

/// Makes sure that a user has a quota.
pub async fn ensure(conn: &mut PgConnection, user: &UserId, now: Timestamp) -> sqlx::Result<()> {
    sqlx::query(
        "insert into devices.quotas (user_id, id, created_at, updated_at) values ($1, $2, $3, $3) on conflict (user_id) do nothing",
    )
    .bind(user)
    // Not a device's, but an id like all of ours.
    .bind(DeviceId::new())
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Holds a user's quota until the transaction ends: whoever makes a device of the user waits, or has made it.
pub async fn hold(tx: &mut PgConnection, user: &UserId, now: Timestamp) -> sqlx::Result<()> {
    ensure(tx, user, now).await?;
    lock_row(tx, user).await?;
    Ok(())
}

/// Whether the account of a user was switched off or deleted.
pub async fn is_switched_off(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (select from platform.accounts where id = $1 and not is_active)",
    )
    .bind(user)
    .fetch_one(conn)
    .await
}

async fn lock_row(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<Option<Row>> {
    sqlx::query_as(select_quota!("where user_id = $1 for update"))
        .bind(user)
        .fetch_optional(conn)
        .await
}

async fn read(
    conn: &mut PgConnection,
    quotas: &Quotas,
    row: Row,
    apart: Option<&DeviceId>,
    now: Timestamp,
) -> Result<Quota> {
    let mut grants = grants(conn, std::slice::from_ref(&row.user_id), now).await?;
    let grants = grants.remove(&row.user_id).unwrap_or_default();
    let used = count_used(conn, &row.user_id, apart, now).await?;
    Ok(compose(quotas, row, &grants, used, now))
}

/// Quotas of a page, newest first: three statements, however many there are.
pub async fn list(
    conn: &mut PgConnection,
    quotas: &Quotas,
    slice: Slice,
    now: Timestamp,
) -> Result<Vec<Quota>> {
    let rows: Vec<Row> = sqlx::query_as(select_quota!(
        "order by created_at desc, seq desc limit $1 offset $2"
    ))
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(&mut *conn)
    .await?;
    read_all(conn, quotas, rows, now).await
}

/// Quotas that were made before one, the newest first, and the number of the last of them: `None` where there are no more.
pub async fn list_before(
    conn: &mut PgConnection,
    quotas: &Quotas,
    before: i64,
    now: Timestamp,
) -> Result<(Vec<Quota>, Option<i64>)> {
    let rows: Vec<Row> = sqlx::query_as(select_quota!("where seq < $1 order by seq desc limit $2"))
        .bind(before)
        .bind(LOOKED_THROUGH)
        .fetch_all(&mut *conn)
        .await?;
    let next = rows.last().map(|row| row.seq);
    Ok((read_all(conn, quotas, rows, now).await?, next))
}

/// In the order of the rows.
async fn read_all(
    conn: &mut PgConnection,
    quotas: &Quotas,
    rows: Vec<Row>,
    now: Timestamp,
) -> Result<Vec<Quota>> {
    let users: Vec<UserId> = rows.iter().map(|row| row.user_id.clone()).collect();
    let mut grants = grants(conn, &users, now).await?;
    let used = count_all_used(conn, &users, now).await?;
    let quotas = rows.into_iter().map(|row| {
        let used = used.get(&row.user_id).copied().unwrap_or_default();
        let grants = grants.remove(&row.user_id).unwrap_or_default();
        compose(quotas, row, &grants, used, now)
    });
    Ok(quotas.collect())
}

/// How many quotas there are.
pub async fn count(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar("select count(*) from devices.quotas")
        .fetch_one(conn)
        .await
}

/// What holds for users, and of what has ended the last.
async fn grants(
    conn: &mut PgConnection,
    users: &[UserId],
    now: Timestamp,
) -> sqlx::Result<HashMap<UserId, Vec<Grant>>> {
    let grants: Vec<Grant> = sqlx::query_as(
        "-- quota::grants
        select user_id, plan_id, plan_name, limits, valid_from, valid_until from devices.quota_grants g
        where user_id = any($1) and revoked_at is null and (valid_until > $2 or order_id = (
            select l.order_id from devices.quota_grants l where l.user_id = g.user_id and l.revoked_at is null
            order by l.valid_until desc limit 1))
        order by valid_until",
    )
    .bind(users)
    .bind(now)
    .fetch_all(conn)
    .await?;
    let mut by_user: HashMap<UserId, Vec<Grant>> = HashMap::new();
    for grant in grants {
        by_user
            .entry(grant.user_id.clone())
            .or_default()
            .push(grant);
    }
    Ok(by_user)
}

/// What is used by a user's devices, and by those that others run and book. Those count as running that run, shall run, or
/// were told to in the queue.
async fn count_used(
    conn: &mut PgConnection,
    user: &UserId,
    apart: Option<&DeviceId>,
    now: Timestamp,
) -> sqlx::Result<Amounts> {
    let (today, month) = beginnings(now);
    sqlx::query_as(
        "-- quota::count_used
        with used as (
        select count(*) as devices, coalesce(sum(cpu_cores), 0)::bigint as cpu_cores,
            coalesce(sum(memory_mb), 0)::bigint as memory_mb, coalesce(sum(storage_mb), 0)::bigint as storage_mb,
            count(*) filter (where d.id is distinct from $2 and (status in ('starting', 'running')
                or (status in ('creating', 'rebooting') and wanted = 'running')
                or exists (select 1 from devices.operations o
                    where o.device_id = d.id and o.state in ('queued', 'running') and o.kind in ('start', 'restart')))) as running,
            (select coalesce(extract(epoch from sum(coalesce(ended_at, $5) - greatest(began_at, $3)) filter (where coalesce(ended_at, $5) > $3)) / 60, 0)::bigint
                from devices.runs where user_id = $1 and (ended_at > $4 or ended_at is null)) as minutes_today,
            (select coalesce(extract(epoch from sum(coalesce(ended_at, $5) - greatest(began_at, $4))) / 60, 0)::bigint
                from devices.runs where user_id = $1 and (ended_at > $4 or ended_at is null)) as minutes_of_month,
            coalesce((select bytes from devices.traffic where user_id = $1 and month = $4::date), 0) as traffic
        from devices.devices d where user_id = $1 and deleted_at is null),
        booked as (
        select count(*) as devices, coalesce(sum(cpu_cores), 0)::bigint as cpu_cores,
            coalesce(sum(memory_mb), 0)::bigint as memory_mb, coalesce(sum(storage_mb), 0)::bigint as storage_mb
        from devices.quota_bookings where user_id = $1 and returned_at is null)
        select u.devices + b.devices as devices, u.cpu_cores + b.cpu_cores as cpu_cores, u.memory_mb + b.memory_mb as memory_mb,
            u.storage_mb + b.storage_mb as storage_mb, u.running, u.minutes_today, u.minutes_of_month, u.traffic
        from used u cross join booked b",
    )
    .bind(user)
    .bind(apart)
    .bind(today)
    .bind(month)
    .bind(now)
    .fetch_one(conn)
    .await
}

#[derive(sqlx::FromRow)]
struct UsedBy {
    user_id: UserId,
    #[sqlx(flatten)]
    used: Amounts,
}

async fn count_all_used(
    conn: &mut PgConnection,
    users: &[UserId],
    now: Timestamp,
) -> sqlx::Result<HashMap<UserId, Amounts>> {
    let (today, month) = beginnings(now);
    let rows: Vec<UsedBy> = sqlx::query_as(
        "-- quota::count_all_used
        select u.user_id, coalesce(d.devices, 0) + coalesce(b.devices, 0) as devices,
            coalesce(d.cpu_cores, 0) + coalesce(b.cpu_cores, 0) as cpu_cores,
            coalesce(d.memory_mb, 0) + coalesce(b.memory_mb, 0) as memory_mb,
            coalesce(d.storage_mb, 0) + coalesce(b.storage_mb, 0) as storage_mb, coalesce(d.running, 0) as running,
            coalesce(m.today, 0) as minutes_today, coalesce(m.month, 0) as minutes_of_month, coalesce(t.bytes, 0) as traffic
        from unnest($1::text[]) as u (user_id)
        left join (
            select user_id, count(*) as devices, sum(cpu_cores)::bigint as cpu_cores, sum(memory_mb)::bigint as memory_mb,
                sum(storage_mb)::bigint as storage_mb,
                count(*) filter (where status in ('starting', 'running')
                    or (status in ('creating', 'rebooting') and wanted = 'running')
                    or exists (select 1 from devices.operations o
                        where o.device_id = d.id and o.state in ('queued', 'running') and o.kind in ('start', 'restart'))) as running
            from devices.devices d where user_id = any($1) and deleted_at is null group by user_id) d using (user_id)
        left join (
            select user_id, count(*) as devices, sum(cpu_cores)::bigint as cpu_cores, sum(memory_mb)::bigint as memory_mb,
                sum(storage_mb)::bigint as storage_mb
            from devices.quota_bookings where user_id = any($1) and returned_at is null group by user_id) b using (user_id)
        left join (
            select user_id,
                (extract(epoch from sum(coalesce(ended_at, $4) - greatest(began_at, $2)) filter (where coalesce(ended_at, $4) > $2)) / 60)::bigint as today,
                (extract(epoch from sum(coalesce(ended_at, $4) - greatest(began_at, $3))) / 60)::bigint as month
            from devices.runs where user_id = any($1) and (ended_at > $3 or ended_at is null) group by user_id) m using (user_id)
        left join devices.traffic t on t.user_id = u.user_id and t.month = $3::date",
    )
    .bind(users)
    .bind(today)
    .bind(month)
    .bind(now)
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.user_id, row.used))
        .collect())
}

/// The last midnight UTC, and the one that began the month.
fn beginnings(now: Timestamp) -> (Timestamp, Timestamp) {
    let now = now.utc();
    let at = |day: u32| {
        let midnight = Utc.with_ymd_and_hms(now.year(), now.month(), day, 0, 0, 0);
        Timestamp::from(midnight.single().unwrap_or(now))
    };
    (at(now.day()), at(1))
}

fn compose(
    quotas: &Quotas,
    row: Row,
    grants: &[Grant],
    mut used_now: Amounts,
    now: Timestamp,
) -> Quota {
    used_now.devices += row.extra_devices;
    used_now.cpu_cores += row.extra_cpu_cores;
    used_now.memory_mb += row.extra_memory_mb;
    used_now.storage_mb += row.extra_storage_mb;
    let (holding, ended): (Vec<_>, Vec<_>) = grants
        .iter()
        .filter(|grant| grant.valid_from <= now)
        .partition(|grant| grant.valid_until > now);
    let overrides_hold = row.valid_until.is_none_or(|until| until > now);
    let mut limits = holding
        .iter()
        .fold((*quotas.defaults).clone(), |limits, grant| {
            limits.raised_by(&grant.limits)
        });
    if overrides_hold {
        limits = limits.overridden_by(&row.overrides);
    }
    if row.suspended {
        limits = limits.closed();
    }
    let is_over = Limit::ALL.iter().any(|limit| {
        limits
            .of(*limit)
            .is_some_and(|allowed| used(&used_now, *limit) > allowed)
    });
    let has_ended = !overrides_hold || (holding.is_empty() && !ended.is_empty());
    let status = match (row.suspended, is_over, has_ended) {
        (true, _, _) => Status::Suspended,
        (_, true, _) => Status::Exceeded,
        (_, _, true) => Status::Expired,
        _ => Status::Active,
    };
    // Of several plans the one that holds longest.
    let last = holding.last().or(ended.last());
    Quota {
        id: row.id,
        user_id: row.user_id,
        plan: holding
            .last()
            .map(|grant| (grant.plan_id.clone(), grant.plan_name.clone())),
        limits,
        used: used_now,
        status,
        valid_from: holding
            .last()
            .map_or(row.created_at, |grant| grant.valid_from),
        valid_until: row.valid_until.or(last.map(|grant| grant.valid_until)),
        auto_renew: row.auto_renew,
        updated_at: row.updated_at,
    }
}

/// Changes what an admin may change; what is `None` stays.
pub async fn change(
    conn: &mut PgConnection,
    user: &UserId,
    change: &super::api::ChangeQuota,
    suspended: Option<bool>,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "update devices.quotas set overrides = overrides || coalesce($2, '{}'::jsonb), suspended = coalesce($3, suspended),
            valid_until = coalesce($4, valid_until), auto_renew = coalesce($5, auto_renew), updated_at = $6
        where user_id = $1",
    )
    .bind(user)
    .bind(change.limits.as_ref().map(Json))
    .bind(suspended)
    .bind(change.valid_until)
    .bind(change.auto_renew)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Takes back what admins set: the limits are those of the settings and the plans again.
pub async fn reset(conn: &mut PgConnection, user: &UserId, now: Timestamp) -> sqlx::Result<()> {
    sqlx::query(
        "update devices.quotas set overrides = '{}', suspended = false, valid_until = null, auto_renew = false, updated_at = $2
        where user_id = $1",
    )
    .bind(user)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Prolongs what was granted for a time: what an admin set, and the plan that holds longest.
pub async fn prolong(
    conn: &mut PgConnection,
    user: &UserId,
    days: i64,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "update devices.quotas set valid_until = greatest(valid_until, $3) + make_interval(days => $2::int), updated_at = $3
        where user_id = $1 and valid_until is not null",
    )
    .bind(user)
    .bind(days)
    .bind(now)
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "update devices.quota_grants set valid_until = greatest(valid_until, $3) + make_interval(days => $2::int),
            lasts = lasts + (greatest(valid_until, $3) - valid_until) + make_interval(days => $2::int)
        where order_id = (
            select order_id from devices.quota_grants where user_id = $1 and revoked_at is null order by valid_until desc limit 1)",
    )
    .bind(user)
    .bind(days)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Adds to what is used besides the devices there are, or takes from it, never below nothing.
pub async fn add_extra(
    conn: &mut PgConnection,
    user: &UserId,
    (amounts, sign): (&Amounts, i64),
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "update devices.quotas set extra_devices = greatest(0, extra_devices + $2), extra_cpu_cores = greatest(0, extra_cpu_cores + $3),
            extra_memory_mb = greatest(0, extra_memory_mb + $4), extra_storage_mb = greatest(0, extra_storage_mb + $5), updated_at = $6
        where user_id = $1",
    )
    .bind(user)
    .bind(sign * amounts.devices)
    .bind(sign * amounts.cpu_cores)
    .bind(sign * amounts.memory_mb)
    .bind(sign * amounts.storage_mb)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Notes that a device that others run is counted; `false` where it was before, or is one of ours.
pub async fn book(
    conn: &mut PgConnection,
    user: &UserId,
    (device, amounts): (&DeviceId, &Amounts),
    now: Timestamp,
) -> sqlx::Result<bool> {
    let insert = sqlx::query(
        "insert into devices.quota_bookings (user_id, device_id, cpu_cores, memory_mb, storage_mb, booked_at)
        select $1, $2, $3, $4, $5, $6 where not exists (select 1 from devices.devices where id = $2)
        on conflict do nothing",
    );
    let done = insert
        .bind(user)
        .bind(device)
        .bind(amounts.cpu_cores)
        .bind(amounts.memory_mb)
        .bind(amounts.storage_mb)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Notes that a device that others run is given back, also where it was never counted: whatever comes late then changes
/// nothing.
pub async fn unbook(
    conn: &mut PgConnection,
    user: &UserId,
    device: &DeviceId,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "insert into devices.quota_bookings as b (user_id, device_id, cpu_cores, memory_mb, storage_mb, booked_at, returned_at)
        values ($1, $2, 0, 0, 0, $3, $3)
        on conflict (user_id, device_id) do update set returned_at = excluded.returned_at where b.returned_at is null",
    )
    .bind(user)
    .bind(device)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}
