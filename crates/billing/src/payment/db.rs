//! Payments in PostgreSQL.

use contracts::{Money, OrderId, Timestamp, UserId};
use platform::http::Slice;
use sqlx::PgConnection;

use super::admin::{PaymentQuery, PaymentStatistics, PaymentSum};
use super::{Payment, PaymentStatus};
use crate::provider::Begun;
use crate::times::Bound;

macro_rules! columns {
    () => {
        "id, payment_no, order_id, user_id, amount, currency, method, status, transaction_id, payment_url, qr_code,
        failure_reason, nullif(refund_amount, 0) as refund_amount, expires_at, paid_at, created_at, provider,
        provider_reference, provider_open"
    };
}

/// Writes a payment under the next number.
pub async fn insert(conn: &mut PgConnection, payment: &Payment) -> sqlx::Result<Payment> {
    sqlx::query_as(concat!(
        "-- payment::insert
        insert into billing.payments
            (id, payment_no, order_id, user_id, amount, method, status, expires_at, created_at, updated_at, provider,
             provider_open, ask_at)
        values ($1, 'PAY' || to_char($2 at time zone 'UTC', 'YYMMDDHH24MISS')
                    || lpad((nextval('billing.payment_numbers') % 100000000)::text, 8, '0'),
            $3, $4, $5, $6, $7, $8, $2, $2, $9, $9 is not null, $2 + interval '1 minute')
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
    .bind(&payment.provider)
    .fetch_one(conn)
    .await
}

/// Keeps where the payer of an open payment goes on. Whatever became of it meanwhile stays.
pub async fn begun(conn: &mut PgConnection, id: &str, begun: &Begun) -> sqlx::Result<Payment> {
    sqlx::query_as(concat!(
        "-- payment::begun
        update billing.payments
        set provider_reference = coalesce($2, provider_reference), payment_url = $3, qr_code = $4
        where id = $1
        returning ",
        columns!()
    ))
    .bind(id)
    .bind(&begun.reference)
    .bind(&begun.payment_url)
    .bind(&begun.qr_code)
    .fetch_one(conn)
    .await
}

/// Takes payments by which money may still come and whose provider is to be asked, the most overdue first. Until it is
/// asked again, later each time, nobody else asks.
pub async fn take_open(
    conn: &mut PgConnection,
    now: Timestamp,
    batch: i64,
) -> sqlx::Result<Vec<Payment>> {
    sqlx::query_as(concat!(
        "-- payment::take_open
        update billing.payments
        set asked = asked + 1, ask_at = $1 + least(interval '1 minute' * power(2, least(asked, 10)), interval '1 hour')
        where id in (
            select id from billing.payments where provider_open and ask_at <= $1
            order by ask_at limit $2 for no key update skip locked
        )
        returning ",
        columns!()
    ))
    .bind(now)
    .bind(batch)
    .fetch_all(conn)
    .await
}

/// Keeps what a provider answered last, for those who look at it.
pub async fn answered(conn: &mut PgConnection, id: &str, answer: &str) -> sqlx::Result<()> {
    sqlx::query("update billing.payments set last_answer = $2 where id = $1")
        .bind(id)
        .bind(answer)
        .execute(conn)
        .await?;
    Ok(())
}

/// Whether money may still come by a payment, as far as its provider has said.
pub async fn is_open(conn: &mut PgConnection, id: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar("select provider_open from billing.payments where id = $1")
        .bind(id)
        .fetch_one(conn)
        .await
}

/// No money can come by it any more, or it has come and is known: its provider is asked no more.
pub async fn close(conn: &mut PgConnection, id: &str) -> sqlx::Result<()> {
    sqlx::query(
        "-- payment::close
        update billing.payments set provider_open = false where id = $1 and provider_open",
    )
    .bind(id)
    .execute(conn)
    .await?;
    Ok(())
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

/// The payment by a provider's name of it; the one that paid its order, where there are several.
pub async fn find_by_transaction(
    conn: &mut PgConnection,
    transaction_id: &str,
) -> sqlx::Result<Option<Payment>> {
    sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from billing.payments where transaction_id = $1 order by applied desc, seq desc limit 1"
    ))
    .bind(transaction_id)
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
    came: Option<Money>,
    now: Timestamp,
) -> sqlx::Result<Payment> {
    sqlx::query_as(concat!(
        "-- payment::give_back
        update billing.payments
        set status = 'refunded', paid_at = $2, updated_at = $2, failure_reason = null,
            amount = coalesce($4, amount), refund_amount = coalesce($4, amount),
            transaction_id = coalesce($3, transaction_id)
        where id = $1
        returning ",
        columns!()
    ))
    .bind(id)
    .bind(now)
    .bind(transaction_id)
    .bind(came)
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

/// Adds to what is or will be refunded of a payment whose order is locked; below zero takes a refund back that failed.
/// All of it makes it refunded, once none of that is on its way.
pub async fn add_refund(
    conn: &mut PgConnection,
    id: &str,
    amount: Money,
    now: Timestamp,
) -> sqlx::Result<Payment> {
    sqlx::query_as(concat!(
        "-- payment::add_refund
        update billing.payments p
        set refund_amount = refund_amount + $2, updated_at = $3,
            status = case
                when refund_amount + $2 < amount then 'success'
                when exists (select from billing.refunds r where r.payment_id = p.id
                    and r.state in ('requested', 'pending', 'processing')) then 'refunding'
                else 'refunded' end
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

/// What a provider said when it was last asked about a payment.
pub async fn last_answer(conn: &mut PgConnection, id: &str) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar("select last_answer from billing.payments where id = $1")
        .bind(id)
        .fetch_one(conn)
        .await
}

macro_rules! matching {
    () => {
        " from billing.payments
        where ($1::text is null or status = $1) and ($2::text is null or method = $2)
            and ($3::text is null or user_id = $3) and ($4::text is null or order_id = $4)
            and ($5::timestamptz is null or created_at >= $5) and ($6::timestamptz is null or created_at <= $6)"
    };
}

macro_rules! bound {
    ($sql:expr, $query:expr) => {
        $sql.bind($query.status)
            .bind($query.method)
            .bind(&$query.user_id)
            .bind(&$query.order_id)
            .bind($query.start_date.map(Bound::start))
            .bind($query.end_date.map(Bound::end))
    };
}

/// Everybody's payments that fit the query, newest first.
pub async fn search(
    conn: &mut PgConnection,
    query: &PaymentQuery,
    slice: Slice,
) -> sqlx::Result<Vec<Payment>> {
    let sql = sqlx::query_as(concat!(
        "select ",
        columns!(),
        matching!(),
        " order by created_at desc, seq desc limit $7 offset $8"
    ));
    bound!(sql, query)
        .bind(slice.limit)
        .bind(slice.offset)
        .fetch_all(conn)
        .await
}

/// How many payments fit the query.
pub async fn count_found(conn: &mut PgConnection, query: &PaymentQuery) -> sqlx::Result<i64> {
    let sql = sqlx::query_scalar(concat!("select count(*)", matching!()));
    bound!(sql, query).fetch_one(conn).await
}

/// The payments that fit the query, added up.
pub async fn statistics(
    conn: &mut PgConnection,
    query: &PaymentQuery,
) -> sqlx::Result<PaymentStatistics> {
    let by_status = sqlx::query_as(concat!(
        "-- payment::statistics
        select status as name, count(*) as count, sum(amount)::bigint as amount",
        matching!(),
        " group by status order by status"
    ));
    let by_status: Vec<PaymentSum> = bound!(by_status, query).fetch_all(&mut *conn).await?;
    let by_method = sqlx::query_as(concat!(
        "select method as name, count(*) as count, sum(amount)::bigint as amount",
        matching!(),
        " group by method order by method"
    ));
    let by_method: Vec<PaymentSum> = bound!(by_method, query).fetch_all(&mut *conn).await?;
    let sums = sqlx::query_as(concat!(
        "select coalesce(sum(amount) filter (where paid_at is not null), 0)::bigint,
            coalesce(sum(case when status = 'refunded' and not applied then refund_amount else (
                select sum(r.amount) from billing.refunds r where r.payment_id = payments.id and r.state = 'succeeded')
            end), 0)::bigint,
            count(*) filter (where provider_open)",
        matching!()
    ));
    let (came, refunded, in_flight): (Money, Money, i64) =
        bound!(sums, query).fetch_one(&mut *conn).await?;
    Ok(PaymentStatistics {
        total_payments: by_status.iter().map(|sum| sum.count).sum(),
        total_amount: came,
        net_amount: came - refunded,
        refunded_amount: refunded,
        in_flight,
        refunds_in_flight: crate::refund::db::count_open(conn).await?,
        by_status,
        by_method,
    })
}

/// How many payments and refunds their providers have not ended.
pub async fn in_flight(conn: &mut PgConnection) -> sqlx::Result<(i64, i64)> {
    sqlx::query_as(
        "select (select count(*) from billing.payments where provider_open),
            (select count(*) from billing.refunds where state in ('pending', 'processing'))",
    )
    .fetch_one(conn)
    .await
}
