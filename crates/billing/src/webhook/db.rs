//! Notices in PostgreSQL.

use contracts::{OrderId, Timestamp};
use sqlx::PgConnection;

use super::Outcome;
use super::notice::{Names, Notice, Told};

/// A notice as it came.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// What names the event at its provider.
    pub event_id: &'a str,
    /// What it says.
    pub notice: &'a Notice,
    /// Whether its signature was checked.
    pub signed: bool,
    /// The body.
    pub raw: &'a [u8],
}

/// What was made of an event when it was delivered before.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Earlier {
    pub outcome: Outcome,
    pub order_id: Option<String>,
    pub order_state: Option<String>,
}

/// Stores a notice before it is worked on; `false` where its event has come before. A second delivery at the same
/// moment waits here for the first one's end.
pub async fn insert(
    conn: &mut PgConnection,
    delivery: Delivery<'_>,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let notice = delivery.notice;
    let insert = sqlx::query(
        "-- webhook::insert
        insert into billing.webhook_events
            (provider, event_id, order_id, payment_no, transaction_id, status, amount, signed, raw, outcome, received_at,
             last_received_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'received', $10, $10)
        on conflict (provider, event_id) do nothing",
    )
    .bind(notice.provider())
    .bind(delivery.event_id)
    .bind(&notice.order_id)
    .bind(&notice.payment_no)
    .bind(&notice.transaction_id)
    .bind(notice.told())
    .bind(notice.amount)
    .bind(delivery.signed)
    .bind(delivery.raw)
    .bind(now);
    Ok(insert.execute(conn).await?.rows_affected() == 1)
}

/// Counts one more delivery of an event and tells what was made of it. Other deliveries wait for the transaction's end.
pub async fn repeat(
    conn: &mut PgConnection,
    delivery: Delivery<'_>,
    now: Timestamp,
) -> sqlx::Result<Earlier> {
    sqlx::query_as(
        "-- webhook::repeat
        update billing.webhook_events set deliveries = deliveries + 1, last_received_at = $3
        where provider = $1 and event_id = $2
        returning outcome, order_id, order_state",
    )
    .bind(delivery.notice.provider())
    .bind(delivery.event_id)
    .bind(now)
    .fetch_one(conn)
    .await
}

/// What earlier notices about an order told of, whoever sent them, where that had an effect or was passed over for good.
pub async fn earlier(
    conn: &mut PgConnection,
    order: &OrderId,
    delivery: Delivery<'_>,
) -> sqlx::Result<Vec<(Told, Names)>> {
    let rows: Vec<(Told, Option<String>, Option<String>)> = sqlx::query_as(
        "-- webhook::earlier
        select distinct status, transaction_id, payment_no from billing.webhook_events
        where order_id = $1 and (provider, event_id) <> ($2, $3)
            and outcome in ('paid', 'refunded', 'failed', 'ignored')
        limit 1000",
    )
    .bind(order)
    .bind(delivery.notice.provider())
    .bind(delivery.event_id)
    .fetch_all(conn)
    .await?;
    let names = |(told, transaction_id, payment_no)| {
        let names = Names {
            transaction_id,
            payment_no,
        };
        (told, names)
    };
    Ok(rows.into_iter().map(names).collect())
}

/// Keeps what was made of a notice, and what it said when that was decided.
pub async fn conclude(
    conn: &mut PgConnection,
    delivery: Delivery<'_>,
    outcome: Outcome,
    order: Option<(&OrderId, &str)>,
) -> sqlx::Result<()> {
    let notice = delivery.notice;
    sqlx::query(
        "-- webhook::conclude
        update billing.webhook_events
        set outcome = $3, order_id = coalesce($4, order_id), order_state = $5, payment_no = $6, transaction_id = $7,
            status = $8, amount = $9, signed = $10, raw = $11
        where provider = $1 and event_id = $2",
    )
    .bind(notice.provider())
    .bind(delivery.event_id)
    .bind(outcome)
    .bind(order.map(|(id, _)| id))
    .bind(order.map(|(_, state)| state))
    .bind(&notice.payment_no)
    .bind(&notice.transaction_id)
    .bind(notice.told())
    .bind(notice.amount)
    .bind(delivery.signed)
    .bind(delivery.raw)
    .execute(conn)
    .await?;
    Ok(())
}
