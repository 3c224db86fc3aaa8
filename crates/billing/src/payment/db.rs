//! Payments in PostgreSQL.

use contracts::{Money, OrderId, Timestamp, UserId};
use platform::http::Slice;
use sqlx::PgConnection;

use super::{Payment, PaymentStatus};

macro_rules! columns {
    () => {
        "id, payment_no, order_id, user_id, amount, currency, method, status, transaction_id, failure_reason,
        nullif(refund_amount, 0) as refund_amount, expires_at, paid_at, created_at"
    };
}

/// Writes a payment under the next number.
pub async fn insert(conn: &mut PgConnection, payment: &Payment) -> sqlx::Result<Payment> {
    sqlx::query_as(concat!(
        "-- payment::insert
        insert into billing.payments
            (id, payment_no, order_id, user_id, amount, method, status, expires_at, created_at, updated_at)
        values ($1, 'PAY' || to_char($2 at time zone 'UTC', 'YYMMDDHH24MISS')
                    || lpad((nextval('billing.payment_numbers') % 100000000)::text, 8, '0'),
            $3, $4, $5, $6, $7, $8, $2, $2)
        returning ",
        columns!()
    ))
    .bind(&payment.id)
    .bind(payment.created_at)
    .bind(&payment.order_id)
    .bind(&payment.user_id)
    .bind(payment.amount)
    .bind(payment.method)
    .bind(payment.status)
    .bind(payment.expires_at)
    .fetch_one(conn)
    .await
}

/// A payment by its id.
pub async fn find(conn: &mut PgConnection, id: &str) -> sqlx::Result<Option<Payment>> {
    sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from billing.payments where id = $1"
    ))
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// A payment by its number.
pub async fn find_by_number(
    conn: &mut PgConnection,
    number: &str,
) -> sqlx::Result<Option<Payment>> {
    sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from billing.payments where payment_no = $1"
    ))
    .bind(number)
    .fetch_optional(conn)
    .await
}

/// The payment that paid an order.
pub async fn applied(conn: &mut PgConnection, order: &OrderId) -> sqlx::Result<Option<Payment>> {
    sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from billing.payments where order_id = $1 and applied"
    ))
    .bind(order)
    .fetch_optional(conn)
    .await
}

/// Payments, newest first; of one user, or of all where none is named.
pub async fn list(
    conn: &mut PgConnection,
    user: Option<&UserId>,
    slice: Slice,
) -> sqlx::Result<Vec<Payment>> {
    sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from billing.payments where $1::text is null or user_id = $1
        order by created_at desc, seq desc limit $2 offset $3"
    ))
    .bind(user)
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(conn)
    .await
}

/// How many payments there are.
pub async fn count(conn: &mut PgConnection, user: Option<&UserId>) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "select count(*) from billing.payments where $1::text is null or user_id = $1",
    )
    .bind(user)
    .fetch_one(conn)
    .await
}

/// Marks a payment as the one that paid its order; a second one is refused by `payments_once_an_order`.
pub async fn succeed(
    conn: &mut PgConnection,
    id: &str,
    transaction_id: Option<&str>,
    now: Timestamp,
) -> sqlx::Result<Payment> {
    sqlx::query_as(concat!(
        "-- payment::succeed
        update billing.payments
        set status = 'success', applied = true, paid_at = $2, updated_at = $2, failure_reason = null,
            transaction_id = coalesce($3, transaction_id)
        where id = $1
        returning ",
        columns!()
    ))
    .bind(id)
    .bind(now)
    .bind(transaction_id)
    .fetch_one(conn)
    .await
}

/// Marks a payment as come and given back.
pub async fn give_back(
    conn: &mut PgConnection,
    id: &str,
    transaction_id: Option<&str>,
    now: Timestamp,
) -> sqlx::Result<Payment> {
    sqlx::query_as(concat!(
        "-- payment::give_back
        update billing.payments
        set status = 'refunded', paid_at = $2, updated_at = $2, refund_amount = amount, failure_reason = null,
            transaction_id = coalesce($3, transaction_id)
        where id = $1
        returning ",
        columns!()
    ))
    .bind(id)
    .bind(now)
    .bind(transaction_id)
    .fetch_one(conn)
    .await
}

/// Ends an attempt that did not succeed; one that is over stays as it is.
pub async fn end(
    conn: &mut PgConnection,
    id: &str,
    status: PaymentStatus,
    reason: &str,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- payment::end
        update billing.payments set status = $2, failure_reason = $3, updated_at = $4
        where id = $1 and status in ('pending', 'processing')",
    )
    .bind(id)
    .bind(status)
    .bind(reason)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Ends the open attempts of an order that needs none any more.
pub async fn cancel_open(
    conn: &mut PgConnection,
    order: &OrderId,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- payment::cancel_open
        update billing.payments set status = 'cancelled', updated_at = $2
        where order_id = $1 and status in ('pending', 'processing')",
    )
    .bind(order)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Adds to what was refunded of a payment whose order is locked.
pub async fn add_refund(
    conn: &mut PgConnection,
    id: &str,
    amount: Money,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- payment::add_refund
        update billing.payments
        set refund_amount = refund_amount + $2, updated_at = $3,
            status = case when refund_amount + $2 = amount then 'refunded' else status end
        where id = $1",
    )
    .bind(id)
    .bind(amount)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}
