//! Statements about jobs. Leases follow the clock of the database; due times and deadlines that of the service.

use std::time::Duration;

use contracts::{TaskId, Timestamp, UserId};
use sqlx::PgConnection;

use super::Work;
use crate::task::Task;

/// The bounds of a claim.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How many are claimed.
    pub most: i64,
    /// How many of one user are at work, those claimed included.
    pub a_user: i64,
    /// How long the claim holds.
    pub lease: Duration,
}

/// Objects that workers may have left behind: of which task, and under which numbers.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Ended {
    /// The job.
    pub id: i64,
    /// Its task.
    pub task_id: TaskId,
    /// Whose task it was.
    pub user_id: UserId,
    /// The highest number given.
    pub fence: i64,
    /// The objects that stay.
    pub results: Vec<String>,
}

/// Counts the waiting jobs of a user and, up to a bound, of all. Until the transaction ends, others that ask for the
/// same user wait.
pub async fn waiting(
    conn: &mut PgConnection,
    user: &UserId,
    most: i64,
) -> sqlx::Result<(i64, i64)> {
    // A statement of its own: the next one sees what the former holder of the lock committed.
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('media.waiting ' || $1, 0))")
        .bind(user)
        .execute(&mut *conn)
        .await?;
    sqlx::query_as(
        "select (select count(*) from media.jobs where user_id = $1 and state = 'ready'),
            (select count(*) from (select 1 from media.jobs where state = 'ready' limit $2) as ready)",
    )
    .bind(user)
    .bind(most)
    .fetch_one(conn)
    .await
}

/// Writes the job of a task's first step, due at once.
pub async fn insert(conn: &mut PgConnection, task: &Task, deadline: Timestamp) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "insert into media.jobs (task_id, step_index, user_id, priority, state, due_at, deadline_at)
        values ($1, 0, $2, $3, 'ready', $4, $5)",
    );
    let insert = insert
        .bind(&task.id)
        .bind(&task.user_id)
        .bind(task.priority);
    insert
        .bind(task.created_at)
        .bind(deadline)
        .execute(conn)
        .await?;
    Ok(())
}

/// Claims due jobs and those whose lease is over, and marks their tasks as running.
pub async fn claim(
    conn: &mut PgConnection,
    owner: &str,
    bounds: &Bounds,
    now: Timestamp,
) -> sqlx::Result<Vec<Work>> {
    sqlx::query_as(
        "-- job::claim
        with at_work as (
            select user_id, count(*) as jobs from media.jobs where state = 'leased' and lease_until > now() group by user_id
        ), due as (
            select j.id, j.priority, j.due_at,
                coalesce(w.jobs, 0) + row_number() over (partition by j.user_id order by j.priority desc, j.due_at, j.id) as place,
                coalesce(w.jobs, 0) + row_number() over (partition by j.user_id, j.priority order by j.due_at, j.id) as turn
            from media.jobs j left join at_work w on w.user_id = j.user_id
            where (j.state = 'ready' and j.due_at <= $1 or j.state = 'leased' and j.lease_until <= now()) and j.deadline_at > $1
        ), picked as (
            select j.id from media.jobs j join due d on d.id = j.id
            where d.place <= $2
                and (j.state = 'ready' and j.due_at <= $1 or j.state = 'leased' and j.lease_until <= now())
            order by d.priority desc, d.turn, d.due_at, d.id
            limit $3 for update of j skip locked
        ), claimed as (
            update media.jobs j set state = 'leased', lease_owner = $4, lease_until = now() + make_interval(secs => $5),
                attempt = attempt + 1, fence = fence + 1
            from picked p where p.id = j.id
            returning j.id, j.fence, j.attempt, j.task_id, j.step_index, j.user_id, j.priority, j.due_at
        ), started_tasks as (
            update media.tasks t set status = 'running', updated_at = $1
            from claimed c where t.id = c.task_id and t.status in ('queued', 'submitted')
        ), started_steps as (
            update media.steps s set status = 'running', attempts = s.attempts + 1, started_at = coalesce(s.started_at, $1)
            from claimed c where s.task_id = c.task_id and s.index = c.step_index and s.completed_at is null
        )
        select c.id, c.fence, c.attempt, c.task_id, c.user_id, s.params, s.inputs
        from claimed c join media.steps s on s.task_id = c.task_id and s.index = c.step_index
        order by c.priority desc, c.due_at, c.id",
    )
    .bind(now)
    .bind(bounds.a_user)
    .bind(bounds.most)
    .bind(owner)
    .bind(bounds.lease.as_secs_f64())
    .fetch_all(conn)
    .await
}

/// Holds a job for longer; `false` where it is no longer the worker's.
pub async fn renew(conn: &mut PgConnection, work: &Work, lease: Duration) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update media.jobs set lease_until = now() + make_interval(secs => $3)
        where id = $1 and fence = $2 and state = 'leased'",
    );
    let update = update
        .bind(work.id)
        .bind(work.fence)
        .bind(lease.as_secs_f64());
    Ok(update.execute(conn).await?.rows_affected() == 1)
}

/// Tells how much is done; `false` where the job is no longer the worker's.
pub async fn progress(
    conn: &mut PgConnection,
    work: &Work,
    percent: i16,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "-- job::progress
        with mine as (
            select task_id from media.jobs where id = $1 and fence = $2 and state = 'leased' for update
        )
        update media.tasks t set progress = greatest(t.progress, $3), updated_at = $4
        from mine where t.id = mine.task_id and t.completed_at is null",
    );
    let update = update
        .bind(work.id)
        .bind(work.fence)
        .bind(percent)
        .bind(now);
    Ok(update.execute(conn).await?.rows_affected() == 1)
}

/// Ends a job for good; `false` where it is no longer the worker's or its deadline passed.
pub async fn finish(conn: &mut PgConnection, work: &Work, now: Timestamp) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update media.jobs set state = 'done', lease_owner = null, lease_until = null, ended_at = $3
        where id = $1 and fence = $2 and state = 'leased' and deadline_at > $3",
    );
    let update = update.bind(work.id).bind(work.fence).bind(now);
    Ok(update.execute(conn).await?.rows_affected() == 1)
}

/// Makes a job due again later and notes why; `false` where it is no longer the worker's.
pub async fn retry(
    conn: &mut PgConnection,
    work: &Work,
    due: Timestamp,
    error: &str,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "-- job::retry
        with mine as (
            update media.jobs set state = 'ready', lease_owner = null, lease_until = null, due_at = $3
            where id = $1 and fence = $2 and state = 'leased'
            returning task_id, step_index
        )
        update media.steps s set error = $4 from mine where s.task_id = mine.task_id and s.index = mine.step_index",
    );
    let update = update.bind(work.id).bind(work.fence).bind(due).bind(error);
    Ok(update.execute(conn).await?.rows_affected() == 1)
}

/// Gives a job back as if it had not been claimed, but for its number; `false` where it is no longer the worker's.
pub async fn give_back(conn: &mut PgConnection, work: &Work) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update media.jobs set state = 'ready', lease_owner = null, lease_until = null, attempt = attempt - 1
        where id = $1 and fence = $2 and state = 'leased'",
    );
    let update = update.bind(work.id).bind(work.fence);
    Ok(update.execute(conn).await?.rows_affected() == 1)
}

/// Takes the job of a task from whoever has it, for good; `false` where it had ended.
pub async fn kill(conn: &mut PgConnection, task: &TaskId, now: Timestamp) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update media.jobs set state = 'dead', lease_owner = null, lease_until = null, fence = fence + 1, ended_at = $2
        where task_id = $1 and state in ('ready', 'leased')",
    );
    Ok(update
        .bind(task)
        .bind(now)
        .execute(conn)
        .await?
        .rows_affected()
        > 0)
}

/// Takes jobs whose deadline passed from whoever has them, for good; their tasks.
pub async fn kill_late(
    conn: &mut PgConnection,
    now: Timestamp,
    batch: i64,
) -> sqlx::Result<Vec<TaskId>> {
    sqlx::query_scalar(
        "-- job::kill_late
        with late as (
            select id from media.jobs where state in ('ready', 'leased') and deadline_at <= $1
            order by deadline_at limit $2 for update skip locked
        )
        update media.jobs j set state = 'dead', lease_owner = null, lease_until = null, fence = fence + 1, ended_at = $1
        from late where late.id = j.id
        returning j.task_id",
    )
    .bind(now)
    .bind(batch)
    .fetch_all(conn)
    .await
}

/// Ended jobs whose objects were not looked over since.
pub async fn unswept(
    conn: &mut PgConnection,
    before: Timestamp,
    batch: i64,
) -> sqlx::Result<Vec<Ended>> {
    sqlx::query_as(
        "select j.id, j.task_id, j.user_id, j.fence, t.results from media.jobs j join media.tasks t on t.id = j.task_id
        where not j.swept and j.ended_at < $1 order by j.ended_at limit $2",
    )
    .bind(before)
    .bind(batch)
    .fetch_all(conn)
    .await
}

/// Notes that the objects of ended jobs were looked over.
pub async fn set_swept(conn: &mut PgConnection, ids: &[i64]) -> sqlx::Result<()> {
    let update = sqlx::query("update media.jobs set swept = true where id = any($1)");
    update.bind(ids).execute(conn).await?;
    Ok(())
}
