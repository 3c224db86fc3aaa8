//! The queue of deliveries in PostgreSQL.

use std::time::Duration;

use contracts::{NotificationId, Timestamp, UserId};
use platform::http::Slice;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::notification::{Channel, Stored};

/// The most notifications that one message carries.
const MOST_BUNDLED: i64 = 100;

/// Where a delivery stands.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum State {
    /// It waits to be carried, or to be carried again.
    Queued,
    /// Somebody carries it.
    Running,
    /// It arrived.
    Sent,
    /// It was given up.
    Failed,
}

/// What leaves the platform.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// Names it; its receiver is told it, too.
    pub id: String,
    /// What is delivered.
    pub notification_id: NotificationId,
    /// To whom.
    pub user_id: UserId,
    /// By which way.
    pub channel: Channel,
    /// Where it stands.
    pub state: State,
    /// Not before this, by the wish of the user.
    pub leaves_at: Timestamp,
    /// How often it was tried.
    pub attempts: i32,
    /// Why it failed, or did not arrive yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it was written.
    pub created_at: Timestamp,
    /// When it arrived or was given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

/// Which deliveries a list shows.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Only those to this user.
    pub user_id: Option<UserId>,
    /// Only those by this way.
    pub channel: Option<Channel>,
    /// Only those that stand here.
    pub state: Option<State>,
}

/// A delivery that a worker holds.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Claimed {
    /// Its name.
    pub id: String,
    /// To whom.
    pub user_id: UserId,
    /// By which way.
    pub channel: Channel,
    /// What it shares a message with.
    pub bundle: Option<String>,
    /// Whether it goes before those that are not.
    pub urgent: bool,
    /// Proves that this worker holds it, and those that share its message.
    pub fencing_token: i64,
    /// Which attempt this is, from 1.
    pub attempts: i32,
    /// For how long it has been tried, in seconds.
    pub age: f64,
}

/// When deliveries leave, and what they share a message with.
#[derive(Clone, Debug)]
pub struct Leave {
    /// Not before this.
    pub at: Timestamp,
    /// Whether those that leave then leave together.
    pub together: bool,
    /// Whether they go before those of others that are due.
    pub urgent: bool,
}

/// Queues a notification for the ways that lead out of the platform, in the transaction that stores it.
pub async fn insert(
    conn: &mut PgConnection,
    (user, notification): (&UserId, &NotificationId),
    channels: &[Channel],
    leave: &Leave,
    now: Timestamp,
) -> sqlx::Result<()> {
    for channel in channels {
        let bundled = leave.together && matches!(channel, Channel::Email | Channel::Sms);
        let bundle = bundled.then(|| format!("{user} {channel:?} {}", leave.at));
        sqlx::query(
            "-- delivery::insert
            insert into notifications.deliveries
                (id, notification_id, user_id, channel, state, leaves_at, bundle, urgent, created_at)
            values ($1, $2, $3, $4, 'queued', $5, $6, $7, $8)",
        )
        .bind(NotificationId::new())
        .bind(notification)
        .bind(user)
        .bind(channel)
        .bind(leave.at)
        .bind(bundle)
        .bind(leave.urgent)
        .bind(now)
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

/// Claims deliveries by a way that are due, and those whose worker fell silent: of each user one at a time, so that a slow
/// receiver takes no more than one place (one more where an urgent one comes while an ordinary one is being claimed), and urgent
/// ones first. What is held is not read: it stands behind what is due in the
/// index. A row is due by two clocks, that of the database and the shared one of its user's wishes; only tests set them apart.
pub async fn claim(
    conn: &mut PgConnection,
    lease: Duration,
    now: Timestamp,
    (channel, limit): (Channel, i64),
) -> sqlx::Result<Vec<Claimed>> {
    sqlx::query_as(
        "-- delivery::claim
        update notifications.deliveries set state = 'running', fencing_token = nextval('notifications.fencing_tokens'),
            lease_until = clock_timestamp() + $1, attempts = attempts + 1,
            first_tried_at = coalesce(first_tried_at, clock_timestamp())
        where id = any((array(
            select d.id from notifications.deliveries d
            where d.channel = $3 and d.state = 'running' and d.lease_until < statement_timestamp()
                and (d.bundle is null or not exists (
                    select 1 from notifications.deliveries head
                    where head.bundle = d.bundle and head.seq < d.seq and head.state in ('queued', 'running')))
            order by d.lease_until limit $4 for update of d skip locked
        ) || array(
            select ripe.id from (values (true), (false)) as rank (urgent) cross join lateral (
                select d.id from notifications.deliveries d
                where d.channel = $3 and d.state = 'queued' and d.urgent = rank.urgent
                    and greatest(d.due_at, d.leaves_at) <= greatest($2, statement_timestamp())
                    and d.due_at <= statement_timestamp() and d.leaves_at <= $2
                    and (d.bundle is null or not exists (
                        select 1 from notifications.deliveries head
                        where head.bundle = d.bundle and head.seq < d.seq and head.state in ('queued', 'running')))
                    and not exists (
                        select 1 from notifications.deliveries o
                        where o.user_id = d.user_id and o.channel = d.channel and o.state = 'running')
                    and not exists (
                        select 1 from notifications.deliveries o
                        where o.user_id = d.user_id and o.channel = d.channel and o.state = 'queued'
                            and (o.urgent > d.urgent or o.urgent = d.urgent and o.seq < d.seq)
                            and o.due_at <= statement_timestamp() and o.leaves_at <= $2
                            and (o.bundle is null or not exists (
                                select 1 from notifications.deliveries head
                                where head.bundle = o.bundle and head.seq < o.seq and head.state in ('queued', 'running'))))
                order by greatest(d.due_at, d.leaves_at), d.seq limit $4 for update of d skip locked) ripe
            order by rank.urgent desc
        ))[1:$4::int])
        returning id, user_id, channel, bundle, urgent, fencing_token, attempts,
            extract(epoch from clock_timestamp() - first_tried_at)::float8 as age",
    )
    .bind(lease)
    .bind(now)
    .bind(channel)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Claims those that share the message of a delivery that is held, for as long as it is. Which they are is the same at
/// each attempt: nothing is added to a bundle once its time has come.
pub async fn join(conn: &mut PgConnection, claimed: &Claimed) -> sqlx::Result<()> {
    sqlx::query(
        "-- delivery::join
        update notifications.deliveries d set state = 'running', fencing_token = h.fencing_token, lease_until = h.lease_until,
            attempts = h.attempts, first_tried_at = h.first_tried_at
        from notifications.deliveries h
        where h.id = $1 and h.fencing_token = $2 and h.state = 'running' and d.id in (
            select id from notifications.deliveries
            where bundle = $3 and id <> $1 and state in ('queued', 'running') order by seq limit $4 for update)",
    )
    .bind(&claimed.id)
    .bind(claimed.fencing_token)
    .bind(&claimed.bundle)
    .bind(MOST_BUNDLED - 1)
    .execute(conn)
    .await?;
    Ok(())
}

/// What a worker carries by a delivery that it holds, in order; nothing where it is gone.
pub async fn carried(conn: &mut PgConnection, claimed: &Claimed) -> sqlx::Result<Vec<Stored>> {
    sqlx::query_as(
        "-- delivery::carried
        select n.* from notifications.deliveries d join notifications.notifications n on n.id = d.notification_id
        where d.user_id = $1 and d.channel = $2 and d.state = 'running' and d.fencing_token = $3 order by n.seq",
    )
    .bind(&claimed.user_id)
    .bind(claimed.channel)
    .bind(claimed.fencing_token)
    .fetch_all(conn)
    .await
}

/// Gives up some of what a worker holds, and says so on the notifications. Needs the lock of the inbox.
pub async fn give_up(
    conn: &mut PgConnection,
    claimed: &Claimed,
    notifications: &[NotificationId],
    why: &str,
    now: Timestamp,
) -> sqlx::Result<()> {
    let ended: Vec<NotificationId> = sqlx::query_scalar(
        "-- delivery::give_up
        update notifications.deliveries set state = 'failed', error = $5, finished_at = $6, lease_until = null
        where user_id = $1 and channel = $2 and fencing_token = $3 and state = 'running' and notification_id = any($4)
        returning notification_id",
    )
    .bind(&claimed.user_id)
    .bind(claimed.channel)
    .bind(claimed.fencing_token)
    .bind(notifications)
    .bind(why)
    .bind(now)
    .fetch_all(&mut *conn)
    .await?;
    tell(conn, &ended).await
}

/// Puts what a worker holds back until a moment, as if it had not been tried; nothing where it is no longer the holder.
pub async fn hold(
    conn: &mut PgConnection,
    claimed: &Claimed,
    until: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- delivery::hold
        update notifications.deliveries
        set state = 'queued', lease_until = null, leaves_at = $4, attempts = attempts - 1, first_tried_at = null
        where user_id = $1 and channel = $2 and fencing_token = $3 and state = 'running'",
    )
    .bind(&claimed.user_id)
    .bind(claimed.channel)
    .bind(claimed.fencing_token)
    .bind(until)
    .execute(conn)
    .await?;
    Ok(())
}

/// Ends what a worker holds, well or with an error, and says so on the notifications; `false` where it is no longer the
/// holder. Needs the lock of the inbox.
pub async fn finish(
    conn: &mut PgConnection,
    claimed: &Claimed,
    error: Option<&str>,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let ended: Vec<NotificationId> = sqlx::query_scalar(
        "-- delivery::finish
        update notifications.deliveries
        set state = case when $4::text is null then 'sent' else 'failed' end, error = $4, finished_at = $5, lease_until = null
        where user_id = $1 and channel = $2 and fencing_token = $3 and state = 'running' returning notification_id",
    )
    .bind(&claimed.user_id)
    .bind(claimed.channel)
    .bind(claimed.fencing_token)
    .bind(error)
    .bind(now)
    .fetch_all(&mut *conn)
    .await?;
    tell(conn, &ended).await?;
    Ok(!ended.is_empty())
}

/// Puts what a worker holds back into the queue; nothing where it is no longer the holder.
pub async fn requeue(
    conn: &mut PgConnection,
    claimed: &Claimed,
    pause: Duration,
    error: &str,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- delivery::requeue
        update notifications.deliveries
        set state = 'queued', lease_until = null, due_at = clock_timestamp() + $4, error = $5
        where user_id = $1 and channel = $2 and fencing_token = $3 and state = 'running'",
    )
    .bind(&claimed.user_id)
    .bind(claimed.channel)
    .bind(claimed.fencing_token)
    .bind(pause)
    .bind(error)
    .execute(conn)
    .await?;
    Ok(())
}

/// Tries one that failed again, from the beginning; `None` where it has not failed. Needs the lock of the inbox.
pub async fn retry(conn: &mut PgConnection, id: &str) -> sqlx::Result<Option<Delivery>> {
    let delivery: Option<Delivery> = sqlx::query_as(
        "-- delivery::retry
        update notifications.deliveries
        set state = 'queued', due_at = clock_timestamp(), first_tried_at = null, attempts = 0, bundle = null, finished_at = null
        where id = $1 and state = 'failed' returning *",
    )
    .bind(id)
    .fetch_optional(&mut *conn)
    .await?;
    if let Some(delivery) = &delivery {
        tell(conn, std::slice::from_ref(&delivery.notification_id)).await?;
    }
    Ok(delivery)
}

/// Brings the state of notifications in line with that of their deliveries.
async fn tell(conn: &mut PgConnection, notifications: &[NotificationId]) -> sqlx::Result<()> {
    sqlx::query(
        "-- delivery::tell
        update notifications.notifications n set delivery_status = coalesce((
            select case when bool_or(d.state in ('queued', 'running')) then 'pending'
                when bool_or(d.state = 'failed') then 'failed' else 'sent' end
            from notifications.deliveries d where d.notification_id = n.id), 'sent')
        where n.id = any($1)",
    )
    .bind(notifications)
    .execute(conn)
    .await?;
    Ok(())
}

/// A delivery.
pub async fn find(conn: &mut PgConnection, id: &str) -> sqlx::Result<Option<Delivery>> {
    sqlx::query_as("select * from notifications.deliveries where id = $1")
        .bind(id)
        .fetch_optional(conn)
        .await
}

/// The deliveries of a notification.
pub async fn of_notification(
    conn: &mut PgConnection,
    id: &NotificationId,
) -> sqlx::Result<Vec<Delivery>> {
    sqlx::query_as("select * from notifications.deliveries where notification_id = $1 order by seq")
        .bind(id)
        .fetch_all(conn)
        .await
}

/// A page of deliveries, newest first.
pub async fn list(
    conn: &mut PgConnection,
    filter: &Filter,
    slice: Slice,
) -> sqlx::Result<Vec<Delivery>> {
    sqlx::query_as(
        "-- delivery::list
        select * from notifications.deliveries
        where ($1::text is null or user_id = $1) and ($2::text is null or channel = $2) and ($3::text is null or state = $3)
        order by created_at desc, seq desc limit $4 offset $5",
    )
    .bind(&filter.user_id)
    .bind(filter.channel)
    .bind(filter.state)
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(conn)
    .await
}

/// How many deliveries the filter lets through.
pub async fn count(conn: &mut PgConnection, filter: &Filter) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "-- delivery::count
        select count(*) from notifications.deliveries
        where ($1::text is null or user_id = $1) and ($2::text is null or channel = $2) and ($3::text is null or state = $3)",
    )
    .bind(&filter.user_id)
    .bind(filter.channel)
    .bind(filter.state)
    .fetch_one(conn)
    .await
}
