//! Dead letters: events that a consumer failed to handle again and again. Nobody waits for it any longer, until an admin
//! lets it try once more; other consumers of the event have nothing to do with it. A store that is away buries nothing.

use std::time::Duration;

use contracts::{EventId, Timestamp};
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;

use crate::Problem;
use crate::http::Slice;

/// An event has failed so often …
const FAILURES: i32 = 12;
/// … and for so long before it is given up, in seconds.
const FAILED_FOR: f64 = 900.0;
/// Characters of an error that are kept.
const MOST_KEPT: usize = 500;

/// An event that a consumer has given up.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    /// Who could not handle it.
    pub consumer: String,
    /// Names the event.
    pub event_id: EventId,
    /// What happened, as in `order.paid`.
    pub kind: String,
    /// The whole event.
    #[schema(value_type = Object)]
    pub event: Value,
    /// How often it failed.
    pub failures: i32,
    /// Why, the last time.
    pub error: String,
    /// When it failed first.
    pub first_failed_at: Timestamp,
    /// When it failed last.
    pub last_failed_at: Timestamp,
    /// When it was given up.
    pub buried_at: Timestamp,
}

/// The handling of an event was not over in time. What is slow is the store, or the machine.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the handling took longer than {0:?}")]
pub struct Late(pub Duration);

/// Whether a failure is the stores' and not the event's: it will pass.
pub fn passes(error: &anyhow::Error) -> bool {
    if error.is::<Late>() {
        return true;
    }
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref());
    causes.any(|error: &sqlx::Error| Problem::from_sqlx(error).status().as_u16() == 503)
}

/// Writes that a consumer could not handle an event; whether it is given up with this.
pub async fn record(
    conn: &mut PgConnection,
    consumer: &str,
    event: &EventId,
    error: &str,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let kept: String = error
        .chars()
        .filter(|letter| *letter != '\0')
        .take(MOST_KEPT)
        .collect();
    let buried: Option<bool> = sqlx::query_scalar(
        "-- dead_letter::record
        insert into platform.dead_letters as d (consumer, event_id, failures, error, first_failed_at, last_failed_at)
        select $1, o.id, 1, $3, $4, $4 from platform.outbox o
        where o.id = $2 and o.settled_at is null and not exists (
            select 1 from platform.consumed_events c where c.consumer = $1 and c.event_id = $2)
        on conflict (consumer, event_id) do update
            set failures = d.failures + 1, error = $3, last_failed_at = $4,
                buried_at = case when d.failures + 1 >= $5 and d.first_failed_at <= $4 - make_interval(secs => $6) then $4 end
            where d.buried_at is null
        returning buried_at is not null",
    )
    .bind(consumer)
    .bind(event)
    .bind(kept)
    .bind(now)
    .bind(FAILURES)
    .bind(FAILED_FOR)
    .fetch_optional(conn)
    .await?;
    Ok(buried.unwrap_or(false))
}

/// A page of what was given up, the latest first.
///
/// # Errors
/// Where the database does not answer.
pub async fn list(
    conn: &mut PgConnection,
    consumer: Option<&str>,
    slice: Slice,
) -> sqlx::Result<Vec<DeadLetter>> {
    sqlx::query_as(
        "-- dead_letter::list
        select d.*, o.kind, o.event from platform.dead_letters d join platform.outbox o on o.id = d.event_id
        where d.buried_at is not null and ($1::text is null or d.consumer = $1)
        order by d.buried_at desc, d.event_id limit $2 offset $3",
    )
    .bind(consumer)
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(conn)
    .await
}

/// How much was given up.
///
/// # Errors
/// Where the database does not answer.
pub async fn count(conn: &mut PgConnection, consumer: Option<&str>) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "-- dead_letter::count
        select count(*) from platform.dead_letters where buried_at is not null and ($1::text is null or consumer = $1)",
    )
    .bind(consumer)
    .fetch_one(conn)
    .await
}

/// Locks in the order in which handling does: the event before what is written of it.
async fn lock(tx: &mut PgConnection, event: &EventId) -> sqlx::Result<()> {
    let lock = sqlx::query("select 1 from platform.outbox where id = $1 for update");
    lock.bind(event).execute(tx).await?;
    Ok(())
}

/// Lets a consumer try again what it has given up, at once and as often as at first; `false` where it has not given it up.
/// Whoever subscribed after the event had settled hears nothing of it.
///
/// # Errors
/// Where the database does not answer: roll back.
pub async fn replay(
    tx: &mut PgConnection,
    consumer: &str,
    event: &EventId,
    now: Timestamp,
) -> sqlx::Result<bool> {
    lock(&mut *tx, event).await?;
    let raised = sqlx::query(
        "delete from platform.dead_letters where consumer = $1 and event_id = $2 and buried_at is not null",
    )
    .bind(consumer)
    .bind(event)
    .execute(&mut *tx)
    .await?;
    if raised.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query(
        "-- dead_letter::replay_for_one
        insert into platform.consumed_events (consumer, event_id, consumed_at)
        select s.consumer, o.id, $3 from platform.outbox o join platform.subscriptions s on s.kind = o.kind
        where o.id = $2 and o.settled_at is not null and s.consumer <> $1 and not exists (
            select 1 from platform.dead_letters d where d.consumer = s.consumer and d.event_id = o.id)
        on conflict do nothing",
    )
    .bind(consumer)
    .bind(event)
    .bind(now)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "update platform.outbox set settled_at = null, attempts = 0, due_at = $2 where id = $1",
    )
    .bind(event)
    .bind(now)
    .execute(tx)
    .await?;
    Ok(true)
}

/// Forgets what a consumer has given up: it will never handle it. `false` where it has not given it up.
///
/// # Errors
/// Where the database does not answer: roll back.
pub async fn discard(
    tx: &mut PgConnection,
    consumer: &str,
    event: &EventId,
    now: Timestamp,
) -> sqlx::Result<bool> {
    lock(&mut *tx, event).await?;
    let discarded = sqlx::query(
        "-- dead_letter::discard
        with gone as (
            delete from platform.dead_letters where consumer = $1 and event_id = $2 and buried_at is not null returning *)
        insert into platform.consumed_events (consumer, event_id, consumed_at)
        select consumer, event_id, $3 from gone on conflict do nothing",
    );
    let discarded = discarded.bind(consumer).bind(event).bind(now);
    Ok(discarded.execute(tx).await?.rows_affected() == 1)
}
