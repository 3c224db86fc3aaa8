//! Usage in PostgreSQL.

use contracts::{DeviceId, Money, Timestamp, TransactionId, UserId};
use platform::http::Slice;
use sqlx::PgConnection;

use super::metering::{Interval, MeteredOne, MeteredSpan};
use super::price::UnitPrice;
use super::{ResourceType, ResourceUsage, Sum, UsageRecord};

/// Whose usage, and of when; what is `None` does not restrict.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    pub user: Option<&'a UserId>,
    pub device: Option<&'a DeviceId>,
    /// Hours that end after this.
    pub from: Option<Timestamp>,
    /// Hours that begin by this.
    pub to: Option<Timestamp>,
}

macro_rules! matching {
    () => {
        " from billing.usage where ($1::text is null or user_id = $1) and ($2::text is null or device_id = $2)
            and ($3::timestamptz is null or ended_at > $3) and ($4::timestamptz is null or began_at <= $4)"
    };
}

/// Lets nobody else bill minutes of a device until the end of the transaction.
pub async fn lock_device(conn: &mut PgConnection, device: &DeviceId) -> sqlx::Result<()> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('billing.usage:' || $1, 0))")
        .bind(device)
        .execute(conn)
        .await?;
    Ok(())
}

/// Minutes of a span that the hours told of a device have billed.
pub async fn minutes_within(
    conn: &mut PgConnection,
    device: &DeviceId,
    (from, to): (Timestamp, Timestamp),
) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "-- usage::minutes_within
        select coalesce(sum(least(minutes,
            ceil(extract(epoch from least(ended_at, $3) - greatest(began_at, $2)) / 60))), 0)::bigint
        from billing.device_usage
        where device_id = $1 and began_at < $3 and began_at > $2 - interval '1 day' and ended_at > $2",
    )
    .bind(device)
    .bind(from)
    .bind(to)
    .fetch_one(conn)
    .await
}

/// Stores how long a device ran in an hour and what that cost; `false` where that is known.
pub async fn insert(
    conn: &mut PgConnection,
    (user, device): (&UserId, &DeviceId),
    (began, ended, minutes): (Timestamp, Timestamp, i32),
    (price, cost): (UnitPrice, Money),
    now: Timestamp,
) -> sqlx::Result<bool> {
    let insert = sqlx::query(
        "-- usage::insert
        insert into billing.device_usage
            (device_id, began_at, ended_at, id, user_id, minutes, created_at, unit_price, total_cost)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict (device_id, began_at) do nothing",
    )
    .bind(device)
    .bind(began)
    .bind(ended)
    // Not a movement's, but an id like all of ours.
    .bind(TransactionId::new())
    .bind(user)
    .bind(minutes)
    .bind(now)
    .bind(price)
    .bind(cost);
    Ok(insert.execute(conn).await?.rows_affected() == 1)
}

/// What the plan that a user paid for last, and whose term the span touches, asks for one of a resource, where it says so. A
/// refund ends the term once it is made, not while it is on its way.
pub async fn price(
    conn: &mut PgConnection,
    user: &UserId,
    resource: ResourceType,
    (from, to): (Timestamp, Timestamp),
) -> sqlx::Result<Option<UnitPrice>> {
    let price: Option<Option<UnitPrice>> = sqlx::query_scalar(
        "-- usage::price
        select (p.usage_prices ->> $2)::bigint
        from billing.orders o join billing.plans p on p.id = o.plan_id
        where o.user_id = $1 and o.paid_at <= $4 and o.paid_at + make_interval(days => (o.terms ->> 'days')::integer) > $3
            and (o.state in ('PAID', 'COMPLETED', 'REFUNDING') or (o.state = 'REFUNDED' and o.refunded_at > $3))
        order by o.paid_at desc limit 1",
    )
    .bind(user)
    .bind(resource)
    .bind(from)
    .bind(to)
    .fetch_optional(conn)
    .await?;
    Ok(price.flatten())
}

/// The records that are wanted, newest first.
pub async fn list(
    conn: &mut PgConnection,
    wanted: Wanted<'_>,
    slice: Slice,
) -> sqlx::Result<Vec<UsageRecord>> {
    sqlx::query_as(concat!(
        "-- usage::list
        select id, user_id, device_id, resource_type, quantity, unit_price, total_cost, began_at as start_time,
            ended_at as end_time, created_at",
        matching!(),
        " order by began_at desc, seq desc limit $5 offset $6"
    ))
    .bind(wanted.user)
    .bind(wanted.device)
    .bind(wanted.from)
    .bind(wanted.to)
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(conn)
    .await
}

/// What the records that are wanted come to.
pub async fn sum(conn: &mut PgConnection, wanted: Wanted<'_>) -> sqlx::Result<Sum> {
    type Row = (Option<ResourceType>, f64, Money, i64, i64, i64);
    let rows: Vec<Row> = sqlx::query_as(concat!(
        "-- usage::sum
        select resource_type, coalesce(sum(quantity), 0), coalesce(sum(total_cost), 0)::bigint, count(*),
            count(distinct user_id), count(distinct device_id)",
        matching!(),
        " group by grouping sets ((resource_type), ()) order by resource_type"
    ))
    .bind(wanted.user)
    .bind(wanted.device)
    .bind(wanted.from)
    .bind(wanted.to)
    .fetch_all(conn)
    .await?;
    let mut sum = Sum::default();
    for (resource, total_usage, total_cost, record_count, users, devices) in rows {
        match resource {
            Some(resource_type) => sum.by_resource.push(ResourceUsage {
                resource_type,
                total_usage,
                total_cost,
            }),
            None => {
                sum.total_usage = total_usage;
                sum.total_cost = total_cost;
                sum.record_count = record_count;
                sum.users = users;
                sum.devices = devices;
            }
        }
    }
    Ok(sum)
}

macro_rules! by {
    ($name:literal, $column:literal) => {
        concat!(
            "-- usage::",
            $name,
            "
        select ",
            $column,
            " as id, sum(quantity) as total_usage, sum(total_cost)::bigint as total_cost, count(*) as record_count",
            matching!(),
            " group by 1 order by 3 desc, 2 desc, 1 limit $5 offset $6"
        )
    };
}

/// What each user used, the most expensive first.
pub async fn by_user(
    conn: &mut PgConnection,
    wanted: Wanted<'_>,
    slice: Slice,
) -> sqlx::Result<Vec<MeteredOne>> {
    by(conn, by!("by_user", "user_id"), wanted, slice).await
}

/// How each device was used, the most expensive first.
pub async fn by_device(
    conn: &mut PgConnection,
    wanted: Wanted<'_>,
    slice: Slice,
) -> sqlx::Result<Vec<MeteredOne>> {
    by(conn, by!("by_device", "device_id"), wanted, slice).await
}

async fn by(
    conn: &mut PgConnection,
    sql: &'static str,
    wanted: Wanted<'_>,
    slice: Slice,
) -> sqlx::Result<Vec<MeteredOne>> {
    sqlx::query_as(sql)
        .bind(wanted.user)
        .bind(wanted.device)
        .bind(wanted.from)
        .bind(wanted.to)
        .bind(slice.limit)
        .bind(slice.offset)
        .fetch_all(conn)
        .await
}

/// What was used span by span (UTC), the newest 500 at most, in the order of time.
pub async fn by_span(
    conn: &mut PgConnection,
    wanted: Wanted<'_>,
    interval: Interval,
) -> sqlx::Result<Vec<MeteredSpan>> {
    sqlx::query_as(concat!(
        "-- usage::by_span
        select * from (
            select date_trunc($5, began_at, 'UTC') as period, sum(quantity) as total_usage,
                sum(total_cost)::bigint as total_cost, count(*) as record_count",
        matching!(),
        " group by 1 order by 1 desc limit 500) spans order by period"
    ))
    .bind(wanted.user)
    .bind(wanted.device)
    .bind(wanted.from)
    .bind(wanted.to)
    .bind(interval)
    .fetch_all(conn)
    .await
}
