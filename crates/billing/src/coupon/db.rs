//! Coupons in PostgreSQL.

use contracts::{Money, OrderId, Timestamp, UserId};
use platform::http::Slice;
use sqlx::PgConnection;

use super::{Coupon, Kind, Status};
use crate::order::Order;

macro_rules! coupons_at {
    () => {
        " from (select *, end_time as expires_at,
                case when order_id is not null then 'used' when end_time <= $1 then 'expired' else 'unused' end as status
            from billing.coupon_uses) coupons"
    };
}

/// A coupon about to be given to a user.
#[derive(Clone, Debug)]
pub struct NewCoupon<'a> {
    pub id: &'a str,
    pub campaign_id: Option<&'a str>,
    pub user_id: &'a UserId,
    pub name: &'a str,
    pub kind: Kind,
    pub value: Money,
    pub min_amount: Option<Money>,
    pub start_time: Timestamp,
    pub end_time: Timestamp,
    pub operator_id: Option<&'a str>,
    pub created_at: Timestamp,
}

/// How many coupons of a user stand where.
#[derive(Clone, Copy, Debug, serde::Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct CouponStats {
    pub total: i64,
    pub unused: i64,
    pub used: i64,
    pub expired: i64,
}

/// Writes a coupon under a code of its own.
pub async fn insert(conn: &mut PgConnection, coupon: &NewCoupon<'_>) -> sqlx::Result<()> {
    sqlx::query(
        "-- coupon::insert
        insert into billing.coupons
            (id, code, campaign_id, user_id, name, type, value, min_amount, start_time, end_time, operator_id, created_at)
        values ($1, 'CP' || upper(translate(gen_random_uuid()::text, '-', '')), $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(coupon.id)
    .bind(coupon.campaign_id)
    .bind(coupon.user_id)
    .bind(coupon.name)
    .bind(coupon.kind)
    .bind(coupon.value)
    .bind(coupon.min_amount)
    .bind(coupon.start_time)
    .bind(coupon.end_time)
    .bind(coupon.operator_id)
    .bind(coupon.created_at)
    .execute(conn)
    .await?;
    Ok(())
}

/// A coupon as it stands at a moment.
pub async fn find(
    conn: &mut PgConnection,
    id: &str,
    now: Timestamp,
) -> sqlx::Result<Option<Coupon>> {
    sqlx::query_as(concat!(
        "-- coupon::find
        select *",
        coupons_at!(),
        " where id = $2"
    ))
    .bind(now)
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// A user's coupons, newest first.
pub async fn list(
    conn: &mut PgConnection,
    user: &UserId,
    status: Option<Status>,
    slice: Slice,
    now: Timestamp,
) -> sqlx::Result<Vec<Coupon>> {
    sqlx::query_as(concat!(
        "-- coupon::list
        select *",
        coupons_at!(),
        " where user_id = $2 and ($3::text is null or status = $3)
        order by created_at desc, seq desc limit $4 offset $5"
    ))
    .bind(now)
    .bind(user)
    .bind(status)
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(conn)
    .await
}

/// How many coupons of a user stand where.
pub async fn stats(
    conn: &mut PgConnection,
    user: &UserId,
    now: Timestamp,
) -> sqlx::Result<CouponStats> {
    sqlx::query_as(concat!(
        "-- coupon::stats
        select count(*) as total, count(*) filter (where status = 'unused') as unused,
            count(*) filter (where status = 'used') as used, count(*) filter (where status = 'expired') as expired",
        coupons_at!(),
        " where user_id = $2"
    ))
    .bind(now)
    .bind(user)
    .fetch_one(conn)
    .await
}

/// Whether a provider has been asked for the money of a locked order and may still bring it.
pub async fn is_being_paid(conn: &mut PgConnection, order: &OrderId) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "-- coupon::is_being_paid
        select exists (select 1 from billing.payments
            where order_id = $1 and (status in ('pending', 'processing') or provider_open))",
    )
    .bind(order)
    .fetch_one(conn)
    .await
}

/// Keeps what a coupon made of a locked order. The index `orders_coupon_once` refuses a coupon that another order uses.
pub async fn lower(conn: &mut PgConnection, order: &Order) -> sqlx::Result<()> {
    sqlx::query(
        "-- coupon::lower
        update billing.orders
        set coupon_id = $2, coupon_used_at = $3, discount_amount = $4, final_amount = $5, terms = $6, updated_at = $3
        where id = $1 and state = 'PENDING' and coupon_id is null",
    )
    .bind(&order.id)
    .bind(&order.coupon_id)
    .bind(order.coupon_used_at)
    .bind(order.discount_amount)
    .bind(order.final_amount)
    .bind(&order.terms)
    .execute(conn)
    .await?;
    Ok(())
}
