//! Notices in PostgreSQL.

use std::collections::BTreeMap;

use contracts::{Money, OrderId, Timestamp};
use http::HeaderMap;
use platform::http::Slice;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::Outcome;
use super::kept::{Kept, KeptQuery};
use super::message::Said;
use super::notice::{Names, Told};
use crate::times::Bound;

/// A notice as it came.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// Whose event ids these are.
    pub provider: &'a str,
    /// What names the event at its provider.
    pub event_id: &'a str,
    /// Whether its signature was checked.
    pub signed: bool,
    /// The headers by which its signature was checked.
    pub headers: Option<&'a Json<KeptHeaders>>,
    /// The body.
    pub raw: &'a [u8],
    /// Whether it is one that was kept, and does not come from outside now.
    pub again: bool,
}

/// The headers of a notice that are kept with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct KeptHeaders(BTreeMap<String, String>);

impl KeptHeaders {
    /// Those of these names; one that is no text could not have been signed.
    pub fn of(headers: &HeaderMap, names: &[&str]) -> Json<Self> {
        let text = |name: &&str| {
            Some((
                (*name).to_owned(),
                headers.get(*name)?.to_str().ok()?.to_owned(),
            ))
        };
        Json(Self(names.iter().filter_map(text).collect()))
    }
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
    said: Option<&Said>,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let insert = sqlx::query(
        "-- webhook::insert
        insert into billing.webhook_events
            (provider, event_id, order_id, payment_no, transaction_id, status, amount, signed, raw, told, outcome,
             received_at, last_received_at, headers)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'received', $11, $11, $12)
        on conflict (provider, event_id) do nothing",
    )
    .bind(delivery.provider)
    .bind(delivery.event_id);
    let columns = Columns::of(said);
    let insert = insert
        .bind(columns.order_id)
        .bind(columns.payment_no)
        .bind(columns.transaction_id)
        .bind(columns.status)
        .bind(columns.amount)
        .bind(delivery.signed)
        .bind(delivery.raw)
        .bind(said.map(Json))
        .bind(now)
        .bind(delivery.headers);
    Ok(insert.execute(conn).await?.rows_affected() == 1)
}

/// What of a notice stands in columns of its own.
#[derive(Default)]
struct Columns<'a> {
    order_id: Option<&'a str>,
    payment_no: Option<&'a str>,
    transaction_id: Option<&'a str>,
    status: &'a str,
    amount: Option<Money>,
}

impl<'a> Columns<'a> {
    fn of(said: Option<&'a Said>) -> Self {
        let status = said.map_or("other", Said::status);
        match said {
            Some(Said::Payment { notice }) => Self {
                order_id: notice.order_id.as_deref(),
                payment_no: notice.payment_no.as_deref(),
                transaction_id: notice.transaction_id.as_deref(),
                status,
                amount: notice.amount,
            },
            Some(Said::Refund { refund }) => Self {
                order_id: None,
                payment_no: refund.payment_no.as_deref(),
                transaction_id: refund.transaction_id.as_deref(),
                status,
                amount: Some(refund.amount),
            },
            Some(Said::Other { .. } | Said::Foreign { .. }) | None => Self {
                status,
                ..Self::default()
            },
        }
    }
}

/// Counts one more delivery of an event and tells what was made of it. Other deliveries wait for the transaction's end.
pub async fn repeat(
    conn: &mut PgConnection,
    delivery: Delivery<'_>,
    now: Timestamp,
) -> sqlx::Result<Earlier> {
    sqlx::query_as(
        "-- webhook::repeat
        update billing.webhook_events
        set deliveries = deliveries + case when $4 then 0 else 1 end,
            last_received_at = case when $4 then last_received_at else $3 end
        where provider = $1 and event_id = $2
        returning outcome, order_id, order_state",
    )
    .bind(delivery.provider)
    .bind(delivery.event_id)
    .bind(now)
    .bind(delivery.again)
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
            and outcome in ('paid', 'refunded', 'failed', 'ignored') and status in ('paid', 'failed', 'cancelled')
        limit 1000",
    )
    .bind(order)
    .bind(delivery.provider)
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

/// Keeps what was made of a notice, and what it said when that was decided. What was not dealt with for good, and may be
/// later, is tried again by itself.
pub async fn conclude(
    conn: &mut PgConnection,
    delivery: Delivery<'_>,
    said: Option<&Said>,
    outcome: Outcome,
    order: Option<(&OrderId, &str)>,
    now: Timestamp,
) -> sqlx::Result<()> {
    let columns = Columns::of(said);
    sqlx::query(
        "-- webhook::conclude
        update billing.webhook_events
        set outcome = $3, order_id = coalesce($4, order_id), order_state = $5, payment_no = $6, transaction_id = $7,
            status = $8, amount = $9, signed = $10, raw = $11, told = $12, headers = $14,
            retry_at = case when $3 in ('unknown_order', 'held') and retries < 40
                then $13 + least(interval '5 minutes' * power(2, least(retries, 10)), interval '1 day') end
        where provider = $1 and event_id = $2",
    )
    .bind(delivery.provider)
    .bind(delivery.event_id)
    .bind(outcome)
    .bind(order.map(|(id, _)| id.as_str()).or(columns.order_id))
    .bind(order.map(|(_, state)| state))
    .bind(columns.payment_no)
    .bind(columns.transaction_id)
    .bind(columns.status)
    .bind(columns.amount)
    .bind(delivery.signed)
    .bind(delivery.raw)
    .bind(said.map(Json))
    .bind(now)
    .bind(delivery.headers)
    .execute(conn)
    .await?;
    Ok(())
}

/// Makes refunds due that wait for this payment. One that somebody works on now stays with its own time: waiting for it
/// here would be waiting for each other.
pub async fn wake(
    conn: &mut PgConnection,
    payment_no: &str,
    transaction_id: Option<&str>,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- webhook::wake
        update billing.webhook_events set retry_at = $3
        where seq in (
            select seq from billing.webhook_events
            where outcome = 'held' and (payment_no = $1 or transaction_id = $2)
            for no key update skip locked
        )",
    )
    .bind(payment_no)
    .bind(transaction_id)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// How many notices were not dealt with for good.
pub async fn unapplied(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "select count(*) from billing.webhook_events where outcome in
            ('amount_mismatch', 'currency_mismatch', 'merchant_mismatch', 'unknown_order', 'held', 'unreadable')",
    )
    .fetch_one(conn)
    .await
}

macro_rules! kept {
    () => {
        "seq, provider, event_id, status, outcome, order_id, order_state, payment_no, transaction_id, amount, signed, raw,
        headers, told, deliveries, retries, replayed_by, received_at, last_received_at, retry_at"
    };
}

macro_rules! matching {
    () => {
        " from billing.webhook_events
        where ($1::text is null or provider = $1) and ($2::text is null or outcome = $2)
            and ($3::text is null or order_id = $3) and ($4::text is null or payment_no = $4)
            and ($5::timestamptz is null or received_at >= $5) and ($6::timestamptz is null or received_at <= $6)"
    };
}

macro_rules! bound {
    ($sql:expr, $query:expr) => {
        $sql.bind(&$query.provider)
            .bind($query.outcome)
            .bind(&$query.order_id)
            .bind(&$query.payment_no)
            .bind($query.start_date.map(Bound::start))
            .bind($query.end_date.map(Bound::end))
    };
}

/// Notices that fit the query, newest first.
pub async fn search(
    conn: &mut PgConnection,
    query: &KeptQuery,
    slice: Slice,
) -> sqlx::Result<Vec<Kept>> {
    let sql = sqlx::query_as(concat!(
        "select ",
        kept!(),
        matching!(),
        " order by received_at desc, seq desc limit $7 offset $8"
    ));
    bound!(sql, query)
        .bind(slice.limit)
        .bind(slice.offset)
        .fetch_all(conn)
        .await
}

/// How many notices fit the query.
pub async fn count_found(conn: &mut PgConnection, query: &KeptQuery) -> sqlx::Result<i64> {
    let sql = sqlx::query_scalar(concat!("select count(*)", matching!()));
    bound!(sql, query).fetch_one(conn).await
}

/// A kept notice.
pub async fn find(conn: &mut PgConnection, seq: i64) -> sqlx::Result<Option<Kept>> {
    sqlx::query_as(concat!(
        "select ",
        kept!(),
        " from billing.webhook_events where seq = $1"
    ))
    .bind(seq)
    .fetch_optional(conn)
    .await
}

/// Notes who lets a notice be tried again.
pub async fn replayed(conn: &mut PgConnection, seq: i64, admin: &str) -> sqlx::Result<()> {
    sqlx::query("update billing.webhook_events set replayed_by = $2 where seq = $1")
        .bind(seq)
        .bind(admin)
        .execute(conn)
        .await?;
    Ok(())
}

/// Takes notices that are to be tried again, the most overdue first. Nobody else takes them until they are due again,
/// later each time.
pub async fn take_due(
    conn: &mut PgConnection,
    now: Timestamp,
    batch: i64,
) -> sqlx::Result<Vec<Kept>> {
    sqlx::query_as(concat!(
        "-- webhook::take_due
        update billing.webhook_events set retries = retries + 1, retry_at = $1 + interval '5 minutes'
        where seq in (
            select seq from billing.webhook_events
            where outcome in ('unknown_order', 'held') and retry_at <= $1
            order by retry_at limit $2 for no key update skip locked
        )
        returning ",
        kept!()
    ))
    .bind(now)
    .bind(batch)
    .fetch_all(conn)
    .await
}
