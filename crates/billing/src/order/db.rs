//! Orders in PostgreSQL.

use contracts::{Money, OrderId, Timestamp, UserId};
use sqlx::PgConnection;

use super::Order;
use super::reply::OrderQuery;
use crate::payment::Method;
use crate::times::Bound;

macro_rules! columns {
    () => {
        "id, order_no, user_id, plan_id, plan_name, terms, amount, discount_amount, final_amount, currency, state, payment_method,
        transaction_id, coupon_id, coupon_used_at, expires_at, paid_at, cancelled_at, refunded_at, refund_amount, remark, metadata, created_at,
        updated_at"
    };
}

macro_rules! matching {
    () => {
        " from billing.orders
        where ($1::text is null or user_id = $1) and ($2::text[] is null or state = any($2))
            and ($3::text is null or payment_method = $3)
            and ($4::text is null or strpos(lower(order_no || ' ' || plan_name || ' ' || id), lower($4)) > 0)
            and ($5::timestamptz is null or created_at >= $5) and ($6::timestamptz is null or created_at <= $6)"
    };
}

/// Writes a new order under the next number. The index `orders_coupon_once` refuses a coupon that another order uses.
pub async fn insert(conn: &mut PgConnection, order: &Order) -> sqlx::Result<Order> {
    sqlx::query_as(concat!(
        "-- order::insert
        insert into billing.orders
            (id, order_no, user_id, plan_id, plan_name, amount, final_amount, state, payment_method, expires_at, remark,
             created_at, updated_at, terms, discount_amount, coupon_id, coupon_used_at)
        values ($1, 'ORD' || to_char($2 at time zone 'UTC', 'YYYYMMDDHH24MISS')
                    || lpad((nextval('billing.order_numbers') % 100000000)::text, 8, '0'),
            $3, $4, $5, $6, $7, $8, $9, $10, $11, $2, $2, $12, $13, $14, $15)
        returning ",
        columns!()
    ))
    .bind(&order.id)
    .bind(order.created_at)
    .bind(&order.user_id)
    .bind(&order.plan_id)
    .bind(&order.plan_name)
    .bind(order.amount)
    .bind(order.final_amount)
    .bind(order.state)
    .bind(&order.payment_method)
    .bind(order.expires_at)
    .bind(&order.remark)
    .bind(&order.terms)
    .bind(order.discount_amount)
    .bind(&order.coupon_id)
    .bind(order.coupon_used_at)
    .fetch_one(conn)
    .await
}

/// An order.
pub async fn find(conn: &mut PgConnection, id: &str) -> sqlx::Result<Option<Order>> {
    sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from billing.orders where id = $1"
    ))
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// An order that nobody else changes until the end of the transaction.
pub async fn lock(conn: &mut PgConnection, id: &OrderId) -> sqlx::Result<Option<Order>> {
    sqlx::query_as(concat!(
        "-- order::lock
        select ",
        columns!(),
        " from billing.orders where id = $1 for no key update"
    ))
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// Orders that fit the query, newest first; of one user, or of all where none is named.
pub async fn list(
    conn: &mut PgConnection,
    user: Option<&UserId>,
    query: &OrderQuery,
) -> sqlx::Result<Vec<Order>> {
    let slice = query.page().slice();
    sqlx::query_as(concat!(
        "-- order::list
        select ",
        columns!(),
        matching!(),
        " order by created_at desc, seq desc limit $7 offset $8"
    ))
    .bind(user)
    .bind(states(query))
    .bind(query.payment_method.map(Method::name))
    .bind(&query.search)
    .bind(query.start_date.map(Bound::start))
    .bind(query.end_date.map(Bound::end))
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(conn)
    .await
}

/// How many orders fit the query.
pub async fn count(
    conn: &mut PgConnection,
    user: Option<&UserId>,
    query: &OrderQuery,
) -> sqlx::Result<i64> {
    sqlx::query_scalar(concat!("select count(*)", matching!()))
        .bind(user)
        .bind(states(query))
        .bind(query.payment_method.map(Method::name))
        .bind(&query.search)
        .bind(query.start_date.map(Bound::start))
        .bind(query.end_date.map(Bound::end))
        .fetch_one(conn)
        .await
}

fn states(query: &OrderQuery) -> Option<Vec<&'static str>> {
    let filter = query.status.as_ref()?;
    Some(filter.0.iter().map(|state| state.name()).collect())
}

/// Marks a pending order as paid; `None` where it is no longer pending.
pub async fn mark_paid(
    conn: &mut PgConnection,
    id: &OrderId,
    method: &str,
    transaction_id: Option<&str>,
    now: Timestamp,
) -> sqlx::Result<Option<Order>> {
    sqlx::query_as(concat!(
        "-- order::mark_paid
        update billing.orders
        set state = 'PAID', paid_at = $2, updated_at = $2, transaction_id = $4,
            payment_method = case when $3 = 'other' then payment_method else $3 end
        where id = $1 and state = 'PENDING'
        returning ",
        columns!()
    ))
    .bind(id)
    .bind(now)
    .bind(method)
    .bind(transaction_id)
    .fetch_optional(conn)
    .await
}

/// Cancels a pending order; `None` where it is no longer pending.
pub async fn cancel(
    conn: &mut PgConnection,
    id: &OrderId,
    reason: Option<&str>,
    now: Timestamp,
) -> sqlx::Result<Option<Order>> {
    sqlx::query_as(concat!(
        "-- order::cancel
        update billing.orders
        set state = 'CANCELLED', cancelled_at = $2, updated_at = $2, cancel_reason = $3
        where id = $1 and state = 'PENDING'
        returning ",
        columns!()
    ))
    .bind(id)
    .bind(now)
    .bind(reason)
    .fetch_optional(conn)
    .await
}

/// Keeps a remark on an order.
pub async fn remark(conn: &mut PgConnection, id: &OrderId, remark: &str) -> sqlx::Result<()> {
    sqlx::query("update billing.orders set remark = $2 where id = $1")
        .bind(id)
        .bind(remark)
        .execute(conn)
        .await?;
    Ok(())
}

/// Expires pending orders whose time is over, the longest overdue first; those that somebody works on wait for the
/// next time.
pub async fn expire_due(
    conn: &mut PgConnection,
    now: Timestamp,
    batch: i64,
) -> sqlx::Result<Vec<Order>> {
    sqlx::query_as(concat!(
        "-- order::expire_due
        with due as (
            select id from billing.orders where state = 'PENDING' and expires_at <= $1
            order by expires_at limit $2 for no key update skip locked
        )
        update billing.orders set state = 'EXPIRED', updated_at = $1
        where state = 'PENDING' and id in (select id from due)
        returning ",
        columns!()
    ))
    .bind(now)
    .bind(batch)
    .fetch_all(conn)
    .await
}

/// Completes paid orders whose term is over; those that somebody works on wait for the next time.
pub async fn complete_due(
    conn: &mut PgConnection,
    now: Timestamp,
    batch: i64,
) -> sqlx::Result<Vec<Order>> {
    sqlx::query_as(concat!(
        "-- order::complete_due
        with due as (
            select id from billing.orders
            where state = 'PAID' and paid_at <= $1 - make_interval(days => (terms ->> 'days')::integer)
            order by paid_at limit $2 for no key update skip locked
        )
        update billing.orders set state = 'COMPLETED', updated_at = $1
        where state = 'PAID' and id in (select id from due)
        returning ",
        columns!()
    ))
    .bind(now)
    .bind(batch)
    .fetch_all(conn)
    .await
}

/// Adds to what is or will be refunded of a locked order; below zero takes a refund back that failed, and the order is what it
/// was before. All of it makes the order refunded, once none of that is on its way.
pub async fn add_refund(
    conn: &mut PgConnection,
    id: &OrderId,
    amount: Money,
    now: Timestamp,
) -> sqlx::Result<Order> {
    sqlx::query_as(concat!(
        "-- order::add_refund
        update billing.orders o
        set refund_amount = refund_amount + $2, updated_at = $3,
            refunded_at = case when refund_amount + $2 = 0 then null when $2 < 0 then refunded_at else $3 end,
            refunding_from = case when state in ('PAID', 'COMPLETED') then state else refunding_from end,
            state = case
                when refund_amount + $2 < final_amount then
                    -- A replica of before knew no refunds on their way, and called the order refunded too early.
                    case when state in ('REFUNDING', 'REFUNDED') then coalesce(refunding_from, 'PAID') else state end
                when exists (select from billing.refunds r where r.order_id = o.id
                    and r.state in ('requested', 'pending', 'processing')) then 'REFUNDING'
                else 'REFUNDED' end
        where id = $1
        returning ",
        columns!()
    ))
    .bind(id)
    .bind(amount)
    .bind(now)
    .fetch_one(conn)
    .await
}
