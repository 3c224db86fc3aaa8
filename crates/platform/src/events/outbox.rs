//! The outbox: events wait here until every consumer has handled them.

use contracts::{Event, EventId, Timestamp};
use sqlx::PgConnection;

/// Writes an event, in the transaction of the effect that it tells of.
///
/// # Errors
/// Where the database does not take it: roll back.
pub async fn emit(conn: &mut PgConnection, event: &Event) -> sqlx::Result<()> {
    let document =
        serde_json::to_value(event).map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query("insert into platform.outbox (id, kind, event, due_at) values ($1, $2, $3, $4)")
        .bind(&event.id)
        .bind(event.body.kind())
        .bind(document)
        .bind(event.occurred_at)
        .execute(conn)
        .await?;
    Ok(())
}

/// Ends the waiting of due events that every subscriber has handled or given up; how many.
pub async fn settle_due(conn: &mut PgConnection, now: Timestamp, batch: i64) -> sqlx::Result<u64> {
    let update = sqlx::query(
        "-- outbox::settle_due
        update platform.outbox set settled_at = $1
        where id in (
            select o.id from platform.outbox o
            where o.settled_at is null and o.due_at <= $1
              and not exists (
                select 1 from platform.subscriptions s
                where s.kind = o.kind and not exists (
                    select 1 from platform.consumed_events c where c.consumer = s.consumer and c.event_id = o.id)
                and not exists (
                    select 1 from platform.dead_letters d
                    where d.consumer = s.consumer and d.event_id = o.id and d.buried_at is not null))
            order by o.due_at limit $2 for update skip locked)",
    );
    Ok(update
        .bind(now)
        .bind(batch)
        .execute(conn)
        .await?
        .rows_affected())
}

/// Takes due events to publish, the longest due first; each is due again after a pause that grows from 5 s to a minute.
/// An event that a consumer is at work on is passed over: its handling locks the row.
pub async fn take_due(
    conn: &mut PgConnection,
    now: Timestamp,
    batch: i64,
) -> sqlx::Result<Vec<(EventId, serde_json::Value)>> {
    sqlx::query_as(
        "-- outbox::take_due
        update platform.outbox set attempts = attempts + 1, due_at = $1 + least(60, 5 * (attempts + 1)) * interval '1 second'
        where id in (
            select id from platform.outbox where settled_at is null and due_at <= $1
            order by due_at limit $2 for update skip locked)
        returning id, event",
    )
    .bind(now)
    .bind(batch)
    .fetch_all(conn)
    .await
}

/// Makes events due again that were taken and could not be published: the wait was not theirs.
pub async fn give_back(
    conn: &mut PgConnection,
    events: &[EventId],
    now: Timestamp,
) -> sqlx::Result<()> {
    let update = sqlx::query(
        "update platform.outbox set due_at = $2, attempts = attempts - 1
        where id = any($1) and settled_at is null and due_at > $2 and attempts > 0",
    );
    update.bind(events).bind(now).execute(conn).await?;
    Ok(())
}

/// Deletes settled events that are older than a week, and with them the records of their handling; how many. Those that a
/// consumer has given up stay until somebody decides about them.
///
/// # Errors
/// Where the database does not answer.
pub async fn purge(conn: &mut PgConnection, now: Timestamp, batch: i64) -> sqlx::Result<u64> {
    let delete = sqlx::query(
        "delete from platform.outbox where id in (
            select id from platform.outbox o where settled_at < $1 - interval '7 days' and not exists (
                select 1 from platform.dead_letters d where d.event_id = o.id and d.buried_at is not null)
            order by settled_at limit $2 for update of o skip locked)",
    );
    Ok(delete
        .bind(now)
        .bind(batch)
        .execute(conn)
        .await?
        .rows_affected())
}
