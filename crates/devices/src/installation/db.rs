//! The queue of installations in PostgreSQL.

use std::time::Duration;

use contracts::{AppId, DeviceId, Event, EventBody, TaskId, Timestamp, UserId};
use platform::events::emit;
use sqlx::PgConnection;

/// How many installations may be open for one device.
pub const MOST_OPEN: i64 = 8;
/// How often at most a user is told how far a batch is.
const STEPS: i32 = 10;

/// An installation that a worker holds.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Claimed {
    /// Its number.
    pub id: i64,
    /// On which device.
    pub device_id: DeviceId,
    /// Of which app.
    pub app_id: AppId,
    /// Who asked for it.
    pub user_id: UserId,
    /// Whether that one may see every app and device.
    pub sees_all: bool,
    /// Proves that this worker holds it.
    pub fencing_token: i64,
    /// Which attempt this is, from 1.
    pub attempts: i32,
    /// Whether it has waited for so long that this attempt is the last.
    pub is_last: bool,
}

/// A request to install an app.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Batch {
    /// Who asked.
    pub user_id: UserId,
    /// Which app.
    pub app_id: AppId,
    /// On how many devices.
    pub total: i32,
    /// When.
    pub created_at: Timestamp,
}

/// How the installation on one device goes.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Progress {
    /// The device.
    pub device_id: DeviceId,
    /// The name of the installation.
    pub saga_id: String,
    /// queued, running, done, failed or cancelled.
    pub state: String,
    /// Why it failed, or was not done yet.
    pub error: Option<String>,
}

/// Writes a request of a user; its installations follow in the same transaction.
pub async fn insert_batch(
    conn: &mut PgConnection,
    id: &TaskId,
    (user, app): (&UserId, &AppId),
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- installations::insert_batch
        insert into devices.installation_batches (id, user_id, app_id, total, created_at) values ($1, $2, $3, 0, $4)",
    )
    .bind(id)
    .bind(user)
    .bind(app)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// How many installations that a user asked for are open. Nobody else counts or queues any for that user until the transaction
/// ends; who does locks devices after this.
pub async fn count_locked(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<i64> {
    sqlx::query(
        "select pg_advisory_xact_lock(hashtextextended('devices.installations:' || $1, 0))",
    )
    .bind(user)
    .execute(&mut *conn)
    .await?;
    sqlx::query_scalar(
        "-- installations::count_locked
        select count(*) from devices.installations where user_id = $1 and state in ('queued', 'running')",
    )
    .bind(user)
    .fetch_one(conn)
    .await
}

/// Queues an installation of a batch; the name of its saga. `None` where as many are open for the device as may be: the caller
/// holds the lock of the device, so that the count is right.
pub async fn insert(
    conn: &mut PgConnection,
    batch: &TaskId,
    device: &DeviceId,
    sees_all: bool,
) -> sqlx::Result<Option<String>> {
    let saga_id = TaskId::new().to_string();
    sqlx::query_scalar(
        "-- installations::insert
        with batch as (
            update devices.installation_batches b set total = total + 1
            where b.id = $2 and $5 > (
                select count(*) from devices.installations i where i.device_id = $3 and i.state in ('queued', 'running'))
            returning id, user_id, app_id)
        insert into devices.installations (saga_id, batch_id, device_id, app_id, user_id, sees_all)
        select $1, id, $3, app_id, user_id, $4 from batch returning saga_id",
    )
    .bind(saga_id)
    .bind(batch)
    .bind(device)
    .bind(sees_all)
    .bind(MOST_OPEN)
    .fetch_optional(conn)
    .await
}

/// Claims installations that are due, one for each device that runs, and those whose worker fell silent. Those that have
/// waited longer than `patience` are due in any case, for the last time.
pub async fn claim(
    conn: &mut PgConnection,
    (lease, patience): (Duration, Duration),
    limit: i64,
) -> sqlx::Result<Vec<Claimed>> {
    sqlx::query_as(
        "-- installations::claim
        update devices.installations set state = 'running', fencing_token = nextval('devices.fencing_tokens'),
            lease_until = clock_timestamp() + $1, attempts = attempts + 1
        where id in (
            select i.id from devices.installations i join devices.devices d on d.id = i.device_id
            where (i.state = 'queued' and i.due_at <= clock_timestamp()
                    and (d.status = 'running' or i.created_at < clock_timestamp() - $2)
                    and not exists (
                        select 1 from devices.installations o where o.device_id = i.device_id
                            and (o.state = 'running' or (o.state = 'queued' and o.id < i.id))))
                or (i.state = 'running' and i.lease_until < clock_timestamp())
            order by i.due_at, i.id limit $3 for update of i skip locked)
        returning id, device_id, app_id, user_id, sees_all, fencing_token, attempts,
            created_at < clock_timestamp() - $2 as is_last",
    )
    .bind(lease)
    .bind(patience)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Prolongs the lease of a worker; `false` where it is no longer the holder.
pub async fn renew(
    conn: &mut PgConnection,
    claimed: &Claimed,
    lease: Duration,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "-- installations::renew
        update devices.installations set lease_until = clock_timestamp() + $3
        where id = $1 and fencing_token = $2 and state = 'running'",
    );
    let done = update
        .bind(claimed.id)
        .bind(claimed.fencing_token)
        .bind(lease)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Ends an installation, well or with an error, and tells its user how far the batch is; `false` where the worker is no longer
/// the holder.
pub async fn finish(
    tx: &mut PgConnection,
    claimed: &Claimed,
    error: Option<&str>,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let batch: Option<TaskId> = sqlx::query_scalar(
        "-- installations::finish
        update devices.installations set state = case when $3::text is null then 'done' else 'failed' end, error = $3,
            finished_at = $4, lease_until = null
        where id = $1 and fencing_token = $2 and state = 'running' returning batch_id",
    )
    .bind(claimed.id)
    .bind(claimed.fencing_token)
    .bind(error)
    .bind(now)
    .fetch_optional(&mut *tx)
    .await?;
    match batch {
        Some(batch) => tell(tx, &batch, now).await.map(|()| true),
        None => Ok(false),
    }
}

/// Puts an installation back into the queue; `false` where the worker is no longer the holder.
pub async fn requeue(
    conn: &mut PgConnection,
    claimed: &Claimed,
    (pause, counts): (Duration, bool),
    error: &str,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "-- installations::requeue
        update devices.installations set state = 'queued', lease_until = null, due_at = clock_timestamp() + $3,
            attempts = attempts - case when $4 then 0 else 1 end, error = $5
        where id = $1 and fencing_token = $2 and state = 'running'",
    );
    let done = update
        .bind(claimed.id)
        .bind(claimed.fencing_token)
        .bind(pause)
        .bind(counts)
        .bind(error)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Cancels what is to be installed on a device that was deleted, or is being: who works on it changes nothing any more. The
/// caller holds the lock of the device.
pub async fn cancel_all(
    tx: &mut PgConnection,
    device: &DeviceId,
    now: Timestamp,
) -> sqlx::Result<()> {
    let mut batches: Vec<TaskId> = sqlx::query_scalar(
        "-- installations::cancel_all
        update devices.installations set state = 'cancelled', error = 'the device was deleted', finished_at = $2, lease_until = null
        where device_id = $1 and state in ('queued', 'running') returning batch_id",
    )
    .bind(device)
    .bind(now)
    .fetch_all(&mut *tx)
    .await?;
    // In one order, so that two deletions wait for each other and never both.
    batches.sort_unstable();
    batches.dedup();
    for batch in &batches {
        tell(tx, batch, now).await?;
    }
    Ok(())
}

/// Tells the user of a batch how far it is, where a further tenth of it is over: in the transaction that ended one, under the
/// lock of the batch, so that no step is told twice or left out.
async fn tell(tx: &mut PgConnection, batch: &TaskId, now: Timestamp) -> sqlx::Result<()> {
    let (user, total, told): (UserId, i32, i32) = sqlx::query_as(
        "select user_id, total, told from devices.installation_batches where id = $1 for update",
    )
    .bind(batch)
    .fetch_one(&mut *tx)
    .await?;
    let (done, failed): (i32, i32) = sqlx::query_as(
        "-- installations::tell
        select count(*) filter (where finished_at is not null)::int, count(*) filter (where state in ('failed', 'cancelled'))::int
        from devices.installations where batch_id = $1",
    )
    .bind(batch)
    .fetch_one(&mut *tx)
    .await?;
    let step = (total + STEPS - 1) / STEPS;
    if done == told || (done < total && done / step.max(1) == told / step.max(1)) {
        return Ok(());
    }
    sqlx::query("update devices.installation_batches set told = $2 where id = $1")
        .bind(batch)
        .bind(done)
        .execute(&mut *tx)
        .await?;
    let count = |number: i32| usize::try_from(number).unwrap_or_default();
    let body = EventBody::BatchProgressed {
        batch_id: batch.clone(),
        operation: "install".to_owned(),
        total: count(total),
        done: count(done),
        failed: count(failed),
    };
    emit(tx, &Event::new(user, now, body)).await
}

/// A request.
pub async fn find_batch(conn: &mut PgConnection, id: &TaskId) -> sqlx::Result<Option<Batch>> {
    sqlx::query_as(
        "select user_id, app_id, total, created_at from devices.installation_batches where id = $1",
    )
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// How the installations of a request go, in its order.
pub async fn list(conn: &mut PgConnection, batch: &TaskId) -> sqlx::Result<Vec<Progress>> {
    sqlx::query_as(
        "select device_id, saga_id, state, error from devices.installations where batch_id = $1 order by id",
    )
    .bind(batch)
    .fetch_all(conn)
    .await
}

/// An installation as a saga.
pub async fn saga(
    conn: &mut PgConnection,
    saga_id: &str,
) -> sqlx::Result<Option<crate::operation::db::Saga>> {
    sqlx::query_as(
        "select i.saga_id, i.device_id, d.user_id, i.state,
            case i.state when 'queued' then 'queued' when 'running' then 'install' when 'done' then 'done' else 'install' end as step, i.error
        from devices.installations i join devices.devices d on d.id = i.device_id where i.saga_id = $1",
    )
    .bind(saga_id)
    .fetch_optional(conn)
    .await
}

/// Deletes requests of which nothing is open and that are older than a moment, with their installations; how many.
pub async fn clear(conn: &mut PgConnection, before: Timestamp, limit: i64) -> sqlx::Result<u64> {
    let delete = sqlx::query(
        "-- installations::clear
        delete from devices.installation_batches where id in (
            select b.id from devices.installation_batches b where b.created_at < $1
                and not exists (select 1 from devices.installations i where i.batch_id = b.id and i.state in ('queued', 'running'))
            order by b.created_at limit $2 for update skip locked)",
    );
    let done = delete.bind(before).bind(limit).execute(conn).await?;
    Ok(done.rows_affected())
}
