//! Usage in PostgreSQL.

use contracts::{DeviceId, Timestamp, TransactionId, UserId};
use platform::http::Slice;
use sqlx::PgConnection;

use super::{ResourceUsage, UsageRecord};

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
        " from billing.device_usage where ($1::text is null or user_id = $1) and ($2::text is null or device_id = $2)
            and ($3::timestamptz is null or ended_at > $3) and ($4::timestamptz is null or began_at <= $4)"
    };
}

/// Stores how long a device ran in an hour, unless that is known.
pub async fn insert(
    conn: &mut PgConnection,
    (user, device): (&UserId, &DeviceId),
    (began, ended, minutes): (Timestamp, Timestamp, i32),
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- usage::insert
        insert into billing.device_usage (device_id, began_at, ended_at, id, user_id, minutes, created_at)
        values ($1, $2, $3, $4, $5, $6, $7) on conflict (device_id, began_at) do nothing",
    )
    .bind(device)
    .bind(began)
    .bind(ended)
    // Not a movement's, but an id like all of ours.
    .bind(TransactionId::new())
    .bind(user)
    .bind(minutes)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// The records that are wanted, newest first.
pub async fn list(
    conn: &mut PgConnection,
    wanted: Wanted<'_>,
    slice: Slice,
) -> sqlx::Result<Vec<UsageRecord>> {
    sqlx::query_as(concat!(
        "-- usage::list
        select id, user_id, device_id, 'device_time' as resource_type, minutes as quantity, 0::float8 as unit_price,
            0::bigint as total_cost, began_at as start_time, ended_at as end_time, created_at",
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
pub async fn sum(conn: &mut PgConnection, wanted: Wanted<'_>) -> sqlx::Result<ResourceUsage> {
    sqlx::query_as(concat!(
        "-- usage::sum
        select 'device_time' as resource_type, coalesce(sum(minutes), 0)::bigint as total_usage, 0::bigint as total_cost,
            count(*) as record_count, count(distinct user_id) as users, count(distinct device_id) as devices",
        matching!()
    ))
    .bind(wanted.user)
    .bind(wanted.device)
    .bind(wanted.from)
    .bind(wanted.to)
    .fetch_one(conn)
    .await
}
