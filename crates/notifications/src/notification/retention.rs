//! Deleting what is too old: notifications with their deliveries, then broadcasts that are over with their receivers.

use contracts::{Timestamp, UserId};
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{Notifications, broadcast};

/// How many rows go in one transaction.
const BATCH: i64 = 500;

/// Deletes what is older than the configured time, batch by batch, until nothing is left or it is told to stop. What
/// is in use now waits for the next run.
///
/// # Errors
/// Where the database does not answer: batches that were committed stay deleted, the others stay.
pub async fn purge(state: &Notifications, cancelled: &CancellationToken) -> anyhow::Result<()> {
    let before = {
        let mut conn = state.platform.db.acquire().await?;
        let now = state.platform.clock.shared(&mut conn).await?;
        Timestamp::from(now.utc() - state.config.retention)
    };
    let mut total = 0;
    while !cancelled.is_cancelled() {
        let deleted = batch(state, before).await?;
        total += deleted;
        if deleted < BATCH {
            break;
        }
    }
    while !cancelled.is_cancelled() {
        let mut conn = state.platform.db.acquire().await?;
        if broadcast::db::forget_receipts(&mut conn, before, BATCH).await? < BATCH as u64 {
            broadcast::db::delete_aged(&mut conn, before, BATCH).await?;
            break;
        }
    }
    if total > 0 {
        info!("deleted {total} notifications that were too old");
    }
    Ok(())
}

async fn batch(state: &Notifications, before: Timestamp) -> sqlx::Result<i64> {
    let mut tx = state.platform.db.begin().await?;
    let users = lock_aged(&mut tx, before).await?;
    let deleted = delete_aged(&mut tx, &users, before, state.platform.clock.now()).await?;
    tx.commit().await?;
    Ok(deleted)
}

/// Locks the inboxes of the oldest notifications. Those that are held now are left out, so that this never waits for a
/// transaction that waits for it.
async fn lock_aged(conn: &mut PgConnection, before: Timestamp) -> sqlx::Result<Vec<UserId>> {
    sqlx::query_scalar(
        "-- retention::lock_aged
        select user_id from notifications.inboxes where user_id in (
            select n.user_id from notifications.notifications n
            where n.created_at < $1 and not exists (
                select 1 from notifications.deliveries d
                where d.notification_id = n.id and d.state in ('queued', 'running'))
            order by n.created_at limit $2)
        for update skip locked",
    )
    .bind(before)
    .bind(BATCH)
    .fetch_all(conn)
    .await
}

/// Deletes aged notifications of inboxes that are locked, and says in each up to which number it did. One that has yet to
/// leave the platform stays.
async fn delete_aged(
    conn: &mut PgConnection,
    users: &[UserId],
    before: Timestamp,
    now: Timestamp,
) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "-- retention::delete_aged
        with gone as (
            delete from notifications.notifications where id in (
                select n.id from notifications.notifications n
                where n.user_id = any($1) and n.created_at < $2 and not exists (
                    select 1 from notifications.deliveries d
                    where d.notification_id = n.id and d.state in ('queued', 'running'))
                order by n.created_at limit $3)
            returning user_id, seq, status),
        counted as (
            select user_id, max(seq) as upto, count(*) filter (where status = 'unread') as unread
            from gone group by user_id),
        told as (
            update notifications.inboxes i set unread = i.unread - counted.unread, updated_at = $4,
                purged_seq = greatest(i.purged_seq, counted.upto)
            from counted where i.user_id = counted.user_id)
        select count(*) from gone",
    )
    .bind(users)
    .bind(before)
    .bind(BATCH)
    .bind(now)
    .fetch_one(conn)
    .await
}
