//! SQL of notifications. Whatever changes a user's notifications locks the user's inbox row first.

use contracts::{EventId, NotificationId, Timestamp, UserId};
use platform::http::Slice;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};

use super::{Channel, Draft, Kind, Status, Stored};

/// The state of a user's inbox.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Head {
    /// Whose it is.
    pub user_id: UserId,
    /// The number of the newest notification; 0 where there never was one.
    pub last_seq: i64,
    /// How many are unread.
    pub unread: i64,
    /// The highest number that was deleted for its age; 0 where none was.
    pub purged_seq: i64,
}

/// Which notifications of a user a list shows.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Whose.
    pub user_id: UserId,
    /// Only those of a status.
    pub status: Option<Status>,
    /// Only those of a kind.
    pub kind: Option<Kind>,
    /// Only those made at or after.
    pub from: Option<Timestamp>,
    /// Only those made at or before.
    pub until: Option<Timestamp>,
}

/// Notifications of a user that a socket waits for.
#[derive(Clone, Debug)]
pub struct Want {
    /// Whose.
    pub user_id: UserId,
    /// Those after this number …
    pub after: i64,
    /// … up to this one.
    pub upto: i64,
}

/// Stores a notification under the user's next number.
pub async fn insert(conn: &mut PgConnection, draft: Draft, now: Timestamp) -> sqlx::Result<Stored> {
    let seq: i64 = sqlx::query_scalar(
        "insert into notifications.inboxes (user_id, last_seq, unread, updated_at) values ($1, 1, 1, $2)
        on conflict (user_id) do update
            set last_seq = inboxes.last_seq + 1, unread = inboxes.unread + 1, updated_at = $2
        returning last_seq",
    )
    .bind(&draft.user_id)
    .bind(now)
    .fetch_one(&mut *conn)
    .await?;
    let delivery = draft.delivery_status();
    // Clients, and replicas of the version before, know no webhook: that one is called is told by its delivery.
    let mut channels = draft.channels;
    channels.retain(|channel| *channel != Channel::Webhook);
    sqlx::query_as(
        "insert into notifications.notifications
            (id, user_id, seq, kind, event, title, message, priority, status, delivery_status, channels, data, pushes,
             event_id, broadcast_id, created_at, expires_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, 'unread', $9, $10, $11, $12, $13, $14, $15, $16)
        returning *",
    )
    .bind(NotificationId::new())
    .bind(&draft.user_id)
    .bind(seq)
    .bind(draft.kind)
    .bind(draft.event)
    .bind(draft.title)
    .bind(draft.message)
    .bind(draft.priority)
    .bind(delivery)
    .bind(Json(channels))
    .bind(draft.data.map(Json))
    .bind(Json(draft.pushes))
    .bind(draft.event_id)
    .bind(draft.broadcast_id)
    .bind(now)
    .bind(draft.expires_at)
    .fetch_one(conn)
    .await
}

/// Whether a domain event has its notification.
pub async fn is_told(conn: &mut PgConnection, event: &EventId) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (select 1 from notifications.notifications where event_id = $1)",
    )
    .bind(event)
    .fetch_one(conn)
    .await
}

/// A notification.
pub async fn find(conn: &mut PgConnection, id: &NotificationId) -> sqlx::Result<Option<Stored>> {
    sqlx::query_as("select * from notifications.notifications where id = $1")
        .bind(id)
        .fetch_optional(conn)
        .await
}

/// A page of a user's notifications, newest first.
pub async fn list(
    conn: &mut PgConnection,
    filter: &Filter,
    slice: Slice,
) -> sqlx::Result<Vec<Stored>> {
    sqlx::query_as(
        "-- notification::list
        select * from notifications.notifications
        where user_id = $1 and ($2::text is null or status = $2) and ($3::text is null or kind = $3)
          and ($4::timestamptz is null or created_at >= $4) and ($5::timestamptz is null or created_at <= $5)
        order by created_at desc, seq desc limit $6 offset $7",
    )
    .bind(&filter.user_id)
    .bind(filter.status)
    .bind(filter.kind)
    .bind(filter.from)
    .bind(filter.until)
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(conn)
    .await
}

/// How many notifications the filter lets through.
pub async fn count(conn: &mut PgConnection, filter: &Filter) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "-- notification::count
        select count(*) from notifications.notifications
        where user_id = $1 and ($2::text is null or status = $2) and ($3::text is null or kind = $3)
          and ($4::timestamptz is null or created_at >= $4) and ($5::timestamptz is null or created_at <= $5)",
    )
    .bind(&filter.user_id)
    .bind(filter.status)
    .bind(filter.kind)
    .bind(filter.from)
    .bind(filter.until)
    .fetch_one(conn)
    .await
}

/// How many a user has not read.
pub async fn count_unread(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<i64> {
    let unread: Option<i64> =
        sqlx::query_scalar("select unread from notifications.inboxes where user_id = $1")
            .bind(user)
            .fetch_optional(conn)
            .await?;
    Ok(unread.unwrap_or(0))
}

/// Locks a user's inbox, so that no notification comes or changes until the end of the transaction.
pub async fn lock_inbox(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<()> {
    sqlx::query("select 1 from notifications.inboxes where user_id = $1 for update")
        .bind(user)
        .execute(conn)
        .await?;
    Ok(())
}

/// Marks one as read; it keeps the time of its first reading. `None` where it is gone. Needs the lock of the inbox.
pub async fn mark_read(
    conn: &mut PgConnection,
    id: &NotificationId,
    now: Timestamp,
) -> sqlx::Result<Option<Stored>> {
    let update = sqlx::query(
        "with changed as (
            update notifications.notifications set status = 'read', read_at = $2
            where id = $1 and status = 'unread' returning user_id)
        update notifications.inboxes set unread = unread - 1, updated_at = $2
        where user_id in (select user_id from changed)",
    );
    update.bind(id).bind(now).execute(&mut *conn).await?;
    find(conn, id).await
}

/// Marks all of a user as read; how many were not. Needs the lock of the inbox.
pub async fn mark_all_read(
    conn: &mut PgConnection,
    user: &UserId,
    now: Timestamp,
) -> sqlx::Result<u64> {
    let update = sqlx::query(
        "update notifications.notifications set status = 'read', read_at = $2 where user_id = $1 and status = 'unread'",
    );
    let changed = update
        .bind(user)
        .bind(now)
        .execute(&mut *conn)
        .await?
        .rows_affected();
    sqlx::query("update notifications.inboxes set unread = 0, updated_at = $2 where user_id = $1")
        .bind(user)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(changed)
}

/// Deletes one; `false` where it is gone. Its number is not given out again. Needs the lock of the inbox.
pub async fn delete(
    conn: &mut PgConnection,
    id: &NotificationId,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let delete = sqlx::query_scalar(
        "with gone as (delete from notifications.notifications where id = $1 returning user_id, status),
        counted as (
            update notifications.inboxes set unread = unread - 1, updated_at = $2
            where user_id in (select user_id from gone where status = 'unread'))
        select count(*) from gone",
    );
    let gone: i64 = delete.bind(id).bind(now).fetch_one(conn).await?;
    Ok(gone == 1)
}

/// Deletes those of a user that are named; how many there were. Needs the lock of the inbox.
pub async fn delete_all(
    conn: &mut PgConnection,
    user: &UserId,
    ids: &[NotificationId],
    now: Timestamp,
) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "-- notification::delete_all
        with gone as (
            delete from notifications.notifications where user_id = $1 and id = any($2) returning status),
        counted as (
            update notifications.inboxes
            set unread = unread - (select count(*) from gone where status = 'unread'), updated_at = $3
            where user_id = $1 and exists (select 1 from gone))
        select count(*) from gone",
    )
    .bind(user)
    .bind(ids.iter().map(NotificationId::as_str).collect::<Vec<_>>())
    .bind(now)
    .fetch_one(conn)
    .await
}

/// The inboxes of users; that of one who never had a notification is empty.
pub async fn heads(db: &PgPool, users: &[UserId]) -> sqlx::Result<Vec<Head>> {
    sqlx::query_as(
        "-- notification::heads
        select u.user_id, coalesce(i.last_seq, 0) as last_seq, coalesce(i.unread, 0) as unread,
            coalesce(i.purged_seq, 0) as purged_seq
        from unnest($1::text[]) as u (user_id) left join notifications.inboxes i using (user_id)",
    )
    .bind(users)
    .fetch_all(db)
    .await
}

/// Every inbox that changed since a moment.
pub async fn heads_since(db: &PgPool, since: Timestamp) -> sqlx::Result<Vec<Head>> {
    sqlx::query_as(
        "select user_id, last_seq, unread, purged_seq from notifications.inboxes where updated_at >= $1",
    )
    .bind(since)
    .fetch_all(db)
    .await
}

/// Every inbox there is. Only for the sandbox, where a socket may watch them all.
pub async fn all_heads(db: &PgPool) -> sqlx::Result<Vec<Head>> {
    sqlx::query_as("select user_id, last_seq, unread, purged_seq from notifications.inboxes")
        .fetch_all(db)
        .await
}

/// What is wanted, in the order of its numbers, at most `page` of each want.
pub async fn pages(db: &PgPool, wants: &[Want], page: i64) -> sqlx::Result<Vec<Stored>> {
    let users: Vec<&str> = wants.iter().map(|want| want.user_id.as_str()).collect();
    let after: Vec<i64> = wants.iter().map(|want| want.after).collect();
    let upto: Vec<i64> = wants.iter().map(|want| want.upto).collect();
    sqlx::query_as(
        "-- notification::pages
        select n.* from unnest($1::text[], $2::bigint[], $3::bigint[]) as want (user_id, after, upto)
        cross join lateral (
            select * from notifications.notifications n
            where n.user_id = want.user_id and n.seq > want.after and n.seq <= want.upto
            order by n.seq limit $4) n
        order by n.user_id, n.seq",
    )
    .bind(users)
    .bind(after)
    .bind(upto)
    .bind(page)
    .fetch_all(db)
    .await
}
