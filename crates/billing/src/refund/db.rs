//! Refunds in PostgreSQL.

use contracts::{Money, OrderId, Timestamp, TransactionId};
use platform::http::Slice;
use sqlx::PgConnection;

use super::{Destination, Refund, RefundState, Wanted};
use crate::order::Order;
use crate::payment::Payment;

macro_rules! columns {
    () => {
        "id, refund_no, order_id, payment_id, amount, reason, destination, state, provider, provider_reference,
        failure_reason, operator_id, decided_by, created_at, settled_at"
    };
}

/// Writes a refund: to the balance with its ledger entry, or to its source under the next number.
pub async fn insert(
    conn: &mut PgConnection,
    order: &Order,
    paid: &Payment,
    wanted: &Wanted,
    state: RefundState,
    transaction: Option<&TransactionId>,
    now: Timestamp,
) -> sqlx::Result<Refund> {
    let destination = match transaction {
        Some(_) => Destination::Balance,
        None => Destination::Source,
    };
    sqlx::query_as(concat!(
        "-- refund::insert
        insert into billing.refunds
            (id, order_id, payment_id, transaction_id, amount, reason, operator_id, destination, state, refund_no, provider,
             created_at, ask_at, settled_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9,
            case when $8 = 'source' then 'REF' || to_char($10 at time zone 'UTC', 'YYMMDDHH24MISS')
                || lpad((nextval('billing.refund_numbers') % 100000000)::text, 8, '0') end,
            case when $8 = 'source' then $11 end, $10, $10, case when $9 = 'succeeded' then $10 end)
        returning ",
        columns!()
    ))
    .bind(TransactionId::new().to_string())
    .bind(&order.id)
    .bind(&paid.id)
    .bind(transaction)
    .bind(wanted.amount)
    .bind(&wanted.reason)
    .bind(&wanted.operator_id)
    .bind(destination)
    .bind(state)
    .bind(now)
    .bind(&paid.provider)
    .fetch_one(conn)
    .await
}

/// A refund.
pub async fn find(conn: &mut PgConnection, id: &str) -> sqlx::Result<Option<Refund>> {
    sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from billing.refunds where id = $1"
    ))
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// The refunds of a payment, the newest first.
pub async fn of_payment(conn: &mut PgConnection, payment: &str) -> sqlx::Result<Vec<Refund>> {
    sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from billing.refunds where payment_id = $1 order by created_at desc, seq desc limit 500"
    ))
    .bind(payment)
    .fetch_all(conn)
    .await
}

/// A refund that a provider tells of, by our number or by the provider's name of it.
pub async fn find_told(
    conn: &mut PgConnection,
    provider: &str,
    number: Option<&str>,
    reference: Option<&str>,
) -> sqlx::Result<Option<Refund>> {
    sqlx::query_as(concat!(
        "-- refund::find_told
        select ",
        columns!(),
        " from billing.refunds
        where refund_no = $2 or (provider = $1 and destination = 'source' and provider_reference = $3)
        order by (refund_no = $2) desc nulls last limit 1"
    ))
    .bind(provider)
    .bind(number)
    .bind(reference)
    .fetch_optional(conn)
    .await
}

/// How much of a payment has gone back to where it came from.
pub async fn gone_back(conn: &mut PgConnection, payment: &str) -> sqlx::Result<Money> {
    sqlx::query_scalar(
        "select coalesce(sum(amount), 0)::bigint from billing.refunds
        where payment_id = $1 and destination = 'source' and state = 'succeeded'",
    )
    .bind(payment)
    .fetch_one(conn)
    .await
}

/// Of which order a refund is.
pub async fn order_of(conn: &mut PgConnection, id: &str) -> sqlx::Result<Option<OrderId>> {
    sqlx::query_scalar("select order_id from billing.refunds where id = $1")
        .bind(id)
        .fetch_optional(conn)
        .await
}

/// A refund that its provider has not settled, locked. The order is locked before it.
pub async fn lock_open(conn: &mut PgConnection, id: &str) -> sqlx::Result<Option<Refund>> {
    sqlx::query_as(concat!(
        "-- refund::lock_open
        select ",
        columns!(),
        " from billing.refunds where id = $1 and state in ('pending', 'processing') for no key update"
    ))
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// A refund that has gone to its source, locked. The order is locked before it.
pub async fn lock_gone(conn: &mut PgConnection, id: &str) -> sqlx::Result<Option<Refund>> {
    sqlx::query_as(concat!(
        "-- refund::lock_gone
        select ",
        columns!(),
        " from billing.refunds where id = $1 and state = 'succeeded' and destination = 'source' for no key update"
    ))
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// Ends a locked refund that had gone to its source and has come back, by the movement that says so.
pub async fn reverse(
    conn: &mut PgConnection,
    id: &str,
    reason: &str,
    reversal: &TransactionId,
    now: Timestamp,
) -> sqlx::Result<Refund> {
    sqlx::query_as(concat!(
        "-- refund::reverse
        update billing.refunds
        set state = 'failed', failure_reason = $2, reversal_id = $3, settled_at = $4
        where id = $1 and state = 'succeeded'
        returning ",
        columns!()
    ))
    .bind(id)
    .bind(reason)
    .bind(reversal)
    .bind(now)
    .fetch_one(conn)
    .await
}

/// Refunds that wait for an admin or their provider, the newest first.
pub async fn list_open(conn: &mut PgConnection, slice: Slice) -> sqlx::Result<Vec<Refund>> {
    sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from billing.refunds where state in ('requested', 'pending', 'processing')
        order by created_at desc, seq desc limit $1 offset $2"
    ))
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(conn)
    .await
}

/// How many refunds wait.
pub async fn count_open(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "select count(*) from billing.refunds where state in ('requested', 'pending', 'processing')",
    )
    .fetch_one(conn)
    .await
}

/// Takes one open refund to be carried out, if nobody else has just taken it. The flag is whether it was taken before.
pub async fn take(
    conn: &mut PgConnection,
    id: &str,
    now: Timestamp,
) -> sqlx::Result<Option<Taken>> {
    sqlx::query_as(concat!(
        "-- refund::take
        update billing.refunds
        set asked = asked + 1, ask_at = $2 + least(interval '1 minute' * power(2, least(asked, 10)), interval '1 hour')
        where id = $1 and state in ('pending', 'processing') and ask_at <= $2
        returning asked > 1 as again, ",
        columns!()
    ))
    .bind(id)
    .bind(now)
    .fetch_optional(conn)
    .await
}

/// A refund taken to be carried out.
#[derive(Debug, sqlx::FromRow)]
pub struct Taken {
    /// Whether its provider may know of it from an earlier attempt.
    pub again: bool,
    #[sqlx(flatten)]
    pub refund: Refund,
}

/// Open refunds whose provider is to be asked, the most overdue first.
pub async fn due(conn: &mut PgConnection, now: Timestamp, batch: i64) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar(
        "-- refund::due
        select id from billing.refunds where state in ('pending', 'processing') and ask_at <= $1
        order by ask_at limit $2",
    )
    .bind(now)
    .bind(batch)
    .fetch_all(conn)
    .await
}

/// Lets a locked refund go on that a second admin has allowed.
pub async fn approve(
    conn: &mut PgConnection,
    id: &str,
    admin: &str,
    now: Timestamp,
) -> sqlx::Result<Refund> {
    sqlx::query_as(concat!(
        "-- refund::approve
        update billing.refunds set state = 'pending', decided_by = $2, ask_at = $3 where id = $1
        returning ",
        columns!()
    ))
    .bind(id)
    .bind(admin)
    .bind(now)
    .fetch_one(conn)
    .await
}

/// Keeps that the provider of a locked refund knows of it.
pub async fn processing(
    conn: &mut PgConnection,
    id: &str,
    reference: Option<&str>,
) -> sqlx::Result<Refund> {
    sqlx::query_as(concat!(
        "-- refund::processing
        update billing.refunds
        set state = 'processing', provider_reference = coalesce($2, provider_reference), failure_reason = null
        where id = $1
        returning ",
        columns!()
    ))
    .bind(id)
    .bind(reference)
    .fetch_one(conn)
    .await
}

/// Keeps why a refund has not gone on; it goes on later.
pub async fn hindered(conn: &mut PgConnection, id: &str, reason: &str) -> sqlx::Result<()> {
    sqlx::query(
        "update billing.refunds set failure_reason = $2 where id = $1 and state in ('pending', 'processing')",
    )
    .bind(id)
    .bind(reason)
    .execute(conn)
    .await?;
    Ok(())
}

/// Books a locked refund.
pub async fn succeed(
    conn: &mut PgConnection,
    id: &str,
    reference: Option<&str>,
    transaction: &TransactionId,
    now: Timestamp,
) -> sqlx::Result<Refund> {
    sqlx::query_as(concat!(
        "-- refund::succeed
        update billing.refunds
        set state = 'succeeded', provider_reference = coalesce($2, provider_reference), transaction_id = $3,
            failure_reason = null, settled_at = $4
        where id = $1
        returning ",
        columns!()
    ))
    .bind(id)
    .bind(reference)
    .bind(transaction)
    .bind(now)
    .fetch_one(conn)
    .await
}

/// Ends a locked refund by which nothing goes back.
pub async fn fail(
    conn: &mut PgConnection,
    id: &str,
    state: RefundState,
    reason: &str,
    decided_by: Option<&str>,
    now: Timestamp,
) -> sqlx::Result<Refund> {
    sqlx::query_as(concat!(
        "-- refund::fail
        update billing.refunds
        set state = $2, failure_reason = $3, decided_by = coalesce($4, decided_by), settled_at = $5
        where id = $1
        returning ",
        columns!()
    ))
    .bind(id)
    .bind(state)
    .bind(reason)
    .bind(decided_by)
    .bind(now)
    .fetch_one(conn)
    .await
}
