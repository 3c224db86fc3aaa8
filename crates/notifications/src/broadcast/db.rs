//! SQL of broadcasts.

use std::time::Duration;

use contracts::{BroadcastId, Timestamp, UserId};
use platform::http::Slice;
use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::Broadcast;
use crate::notification::{Channel, Kind, Priority};

/// A broadcast that is not stored yet.
#[derive(Clone, Debug)]
pub struct NewBroadcast {
    pub kind: Kind,
    pub title: String,
    pub message: String,
    pub priority: Priority,
    pub channels: Option<Vec<Channel>>,
    pub data: Option<Map<String, Value>>,
    pub role: Option<String>,
    pub user_ids: Option<Vec<UserId>>,
    /// How far it goes.
    pub upto: i64,
    /// How many there are to tell.
    pub recipients: i64,
}

/// Writes a broadcast; replicas begin to tell it once this is committed.
pub async fn insert(
    conn: &mut PgConnection,
    new: NewBroadcast,
    admin: &UserId,
    now: Timestamp,
) -> sqlx::Result<Broadcast> {
    sqlx::query_as(
        "-- broadcast::insert
        insert into notifications.broadcasts
            (id, kind, title, message, priority, channels, data, role, user_ids, upto, recipients, state, created_by, created_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'queued', $12, $13) returning *",
    )
    .bind(BroadcastId::new())
    .bind(new.kind)
    .bind(new.title)
    .bind(new.message)
    .bind(new.priority)
    .bind(new.channels.map(Json))
    .bind(new.data.map(Json))
    .bind(new.role)
    .bind(new.user_ids.map(Json))
    .bind(new.upto)
    .bind(new.recipients)
    .bind(admin)
    .bind(now)
    .fetch_one(conn)
    .await
}

/// Claims the next batch of a broadcast that is due, or of one whose worker fell silent.
pub async fn claim(conn: &mut PgConnection, lease: Duration) -> sqlx::Result<Option<Broadcast>> {
    sqlx::query_as(
        "-- broadcast::claim
        update notifications.broadcasts set state = 'running', fencing_token = nextval('notifications.fencing_tokens'),
            lease_until = clock_timestamp() + $1
        where id in (
            select id from notifications.broadcasts
            where (state = 'queued' and due_at <= clock_timestamp()) or (state = 'running' and lease_until < clock_timestamp())
            order by due_at, seq limit 1 for update skip locked)
        returning *",
    )
    .bind(lease)
    .fetch_optional(conn)
    .await
}

/// Locks a broadcast for its next batch; `false` where the worker is no longer the holder, or it was cancelled.
pub async fn hold(conn: &mut PgConnection, claimed: &Broadcast) -> sqlx::Result<bool> {
    let held = sqlx::query(
        "select 1 from notifications.broadcasts where id = $1 and fencing_token = $2 and state = 'running' for update",
    )
    .bind(&claimed.id)
    .bind(claimed.fencing_token)
    .execute(conn)
    .await?;
    Ok(held.rows_affected() == 1)
}

/// Takes users for a broadcast: those who were not taken before, in the order of their ids, which is the order in which
/// whoever needs the locks of several inboxes takes them.
pub async fn take(
    conn: &mut PgConnection,
    id: &BroadcastId,
    users: &[UserId],
) -> sqlx::Result<Vec<UserId>> {
    let mut taken: Vec<UserId> = sqlx::query_scalar(
        "-- broadcast::take
        insert into notifications.broadcast_receipts (broadcast_id, user_id) select $1, unnest($2::text[])
        on conflict do nothing returning user_id",
    )
    .bind(id)
    .bind(users)
    .fetch_all(conn)
    .await?;
    taken.sort_unstable();
    Ok(taken)
}

/// Moves a broadcast that is held: on to the next batch, or to its end.
pub async fn advance(
    conn: &mut PgConnection,
    claimed: &Broadcast,
    cursor: i64,
    (told, unwanted): (i64, i64),
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- broadcast::advance
        update notifications.broadcasts set cursor = $2, told = told + $3, unwanted = unwanted + $4, lease_until = null,
            state = case when $2 >= upto then 'done' else 'queued' end,
            finished_at = case when $2 >= upto then $5 end, due_at = clock_timestamp()
        where id = $1",
    )
    .bind(&claimed.id)
    .bind(cursor)
    .bind(told)
    .bind(unwanted)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Gives a batch back that could not be told; nothing where the worker is no longer the holder.
pub async fn give_back(
    conn: &mut PgConnection,
    claimed: &Broadcast,
    pause: Duration,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- broadcast::give_back
        update notifications.broadcasts set state = 'queued', lease_until = null, due_at = clock_timestamp() + $3
        where id = $1 and fencing_token = $2 and state = 'running'",
    )
    .bind(&claimed.id)
    .bind(claimed.fencing_token)
    .bind(pause)
    .execute(conn)
    .await?;
    Ok(())
}

/// Cancels a broadcast, after the batch that is being stored; `None` where it is not open.
pub async fn cancel(
    conn: &mut PgConnection,
    id: &BroadcastId,
    now: Timestamp,
) -> sqlx::Result<Option<Broadcast>> {
    sqlx::query_as(
        "-- broadcast::cancel
        update notifications.broadcasts set state = 'cancelled', lease_until = null, finished_at = $2
        where id = $1 and state in ('queued', 'running') returning *",
    )
    .bind(id)
    .bind(now)
    .fetch_optional(conn)
    .await
}

/// A broadcast.
pub async fn find(conn: &mut PgConnection, id: &BroadcastId) -> sqlx::Result<Option<Broadcast>> {
    sqlx::query_as("select * from notifications.broadcasts where id = $1")
        .bind(id)
        .fetch_optional(conn)
        .await
}

/// A page of broadcasts, newest first.
pub async fn list(conn: &mut PgConnection, slice: Slice) -> sqlx::Result<Vec<Broadcast>> {
    sqlx::query_as(
        "select * from notifications.broadcasts order by created_at desc, seq desc limit $1 offset $2",
    )
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(conn)
    .await
}

/// How many broadcasts there are.
pub async fn count(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar("select count(*) from notifications.broadcasts")
        .fetch_one(conn)
        .await
}

/// Deletes who was reached by broadcasts that were over before a time; how many.
pub async fn forget_receipts(
    conn: &mut PgConnection,
    before: Timestamp,
    batch: i64,
) -> sqlx::Result<u64> {
    let delete = sqlx::query(
        "-- broadcast::forget_receipts
        delete from notifications.broadcast_receipts where (broadcast_id, user_id) in (
            select r.broadcast_id, r.user_id from notifications.broadcasts b
            join notifications.broadcast_receipts r on r.broadcast_id = b.id
            where b.finished_at < $1 limit $2)",
    );
    let done = delete.bind(before).bind(batch).execute(conn).await?;
    Ok(done.rows_affected())
}

/// Deletes broadcasts that were over before a time, once their receivers are forgotten.
pub async fn delete_aged(
    conn: &mut PgConnection,
    before: Timestamp,
    batch: i64,
) -> sqlx::Result<()> {
    let delete = sqlx::query(
        "-- broadcast::delete_aged
        delete from notifications.broadcasts where id in (
            select b.id from notifications.broadcasts b
            where b.finished_at < $1 and not exists (
                select 1 from notifications.broadcast_receipts r where r.broadcast_id = b.id)
            limit $2)",
    );
    delete.bind(before).bind(batch).execute(conn).await?;
    Ok(())
}
