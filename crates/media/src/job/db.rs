//! Statements about jobs. Leases follow the clock of the database; due times and deadlines that of the service.

use std::time::Duration;

use contracts::{TaskId, Timestamp, UserId};
use platform::http::Slice;
use sqlx::PgConnection;
use sqlx::types::Json;

use super::api::{Ended as EndedTasks, JobState, JobStats, JobView};
use super::poll::Taken;
use super::{Lane, Work};
use crate::provider::{Report, Reported};
use crate::task::{self, Task, TaskType};

/// The bounds of a claim.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How many are claimed.
    pub most: i64,
    /// How many of one user are at work, those claimed included.
    pub a_user: i64,
    /// How long the claim holds.
    pub lease: Duration,
    /// Of what kind they are; without it, of any.
    pub lane: Option<Lane>,
}

/// A job whose task may have left objects behind.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Ended {
    /// The job.
    pub id: i64,
    /// Its task.
    pub task_id: TaskId,
    /// Whose task it was.
    pub user_id: UserId,
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
        "select (select count(*) from media.jobs where user_id = $1 and state = 'ready' and reference is null),
            (select count(*) from (select 1 from media.jobs where state = 'ready' and reference is null limit $2) as ready)",
    )
    .bind(user)
    .bind(most)
    .fetch_one(conn)
    .await
}

/// Writes the job of a task's first step, due at once.
pub async fn insert(conn: &mut PgConnection, task: &Task, deadline: Timestamp) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "insert into media.jobs (task_id, step_index, user_id, priority, state, due_at, deadline_at, type)
        values ($1, 0, $2, $3, 'ready', $4, $5, $6)",
    );
    let insert = insert
        .bind(&task.id)
        .bind(&task.user_id)
        .bind(task.priority);
    insert
        .bind(task.created_at)
        .bind(deadline)
        .bind(task.steps.first().map(|step| step.kind))
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
            select user_id, count(*) as jobs from media.jobs
            where state = 'leased' and lease_until > now() or state = 'ready' and reference is not null group by user_id
        ), due as (
            select j.id, j.priority, j.due_at, j.reference is not null as is_taken,
                coalesce(w.jobs, 0) + row_number() over (partition by j.user_id
                    order by j.reference is not null, j.priority desc, j.due_at, j.id) as place,
                coalesce(w.jobs, 0) + row_number() over (partition by j.user_id, j.priority order by j.due_at, j.id) as turn
            from media.jobs j left join at_work w on w.user_id = j.user_id
            where (j.state = 'ready' and j.due_at <= $1 or j.state = 'leased' and j.lease_until <= now()) and j.deadline_at > $1
                and (j.reference is null or j.reported is not null)
                and ($7::boolean is null or $7 = (coalesce(j.type, 'image_stitch') = any($6) and j.reported is null))
        ), picked as (
            select j.id from media.jobs j join due d on d.id = j.id
            where (d.place <= $2 or d.is_taken)
                and (j.state = 'ready' and j.due_at <= $1 or j.state = 'leased' and j.lease_until <= now())
                and (j.reference is null or j.reported is not null)
            order by d.priority desc, d.turn, d.due_at, d.id
            limit $3 for update of j skip locked
        ), claimed as (
            update media.jobs j set state = 'leased', lease_owner = $4, lease_until = now() + make_interval(secs => $5),
                attempt = attempt + 1, fence = fence + 1, known_fence = fence + 1
            from picked p where p.id = j.id
            returning j.*
        ), started_tasks as (
            update media.tasks t set status = 'running', updated_at = $1
            from claimed c where t.id = c.task_id and t.status in ('queued', 'submitted')
                and (c.step_index > 0 or c.reported is not null or coalesce(c.type, 'image_stitch') = any($6))
        ), started_steps as (
            update media.steps s set status = case
                    when c.reported is not null or coalesce(c.type, 'image_stitch') = any($6) then 'running' else s.status end,
                attempts = s.attempts + (c.reference is null)::integer, started_at = coalesce(s.started_at, $1)
            from claimed c where s.task_id = c.task_id and s.index = c.step_index and s.completed_at is null
        )
        select c.id, c.fence, c.attempt, c.task_id, c.step_index, s.type, c.user_id, s.params, s.inputs, c.provider, c.excluded,
            c.failures, c.reported, s.error
        from claimed c join media.steps s on s.task_id = c.task_id and s.index = c.step_index
        order by c.priority desc, c.due_at, c.id",
    )
    .bind(now)
    .bind(bounds.a_user)
    .bind(bounds.most)
    .bind(owner)
    .bind(bounds.lease.as_secs_f64())
    .bind(TaskType::LOCAL.map(TaskType::name))
    .bind(bounds.lane.map(|lane| lane == Lane::Here))
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
    let held = update.execute(&mut *conn).await?.rows_affected() == 1;
    if held {
        task::db::tell(conn, &work.task_id, now).await?;
    }
    Ok(held)
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

/// When and by whom a job is tried again.
#[derive(Clone, Debug)]
pub struct Again<'a> {
    /// When.
    pub due: Timestamp,
    /// Why.
    pub error: Option<&'a str>,
    /// Who may have taken it.
    pub provider: Option<&'a str>,
    /// Who surely did not and is not asked again.
    pub excluded: &'a [String],
    /// How often that failed.
    pub failures: i16,
}

/// Makes a job due again; `false` where it is no longer the worker's.
pub async fn retry(conn: &mut PgConnection, work: &Work, again: &Again<'_>) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "-- job::retry
        with mine as (
            update media.jobs set state = 'ready', lease_owner = null, lease_until = null, due_at = $3,
                provider = case when reference is null then $5 else provider end, excluded = $6, failures = $7
            where id = $1 and fence = $2 and state = 'leased'
            returning task_id, step_index
        )
        update media.steps s set error = coalesce($4, s.error) from mine where s.task_id = mine.task_id and s.index = mine.step_index",
    );
    let update = update
        .bind(work.id)
        .bind(work.fence)
        .bind(again.due)
        .bind(again.error)
        .bind(again.provider)
        .bind(again.excluded)
        .bind(again.failures);
    Ok(update.execute(conn).await?.rows_affected() == 1)
}

/// Writes down who is about to be asked, where that provider has room; `false` where it has none, or the job is no
/// longer the worker's. Assignments to one provider pass here one after the other.
pub async fn assign(
    conn: &mut PgConnection,
    work: &Work,
    provider: &str,
    limit: i64,
) -> sqlx::Result<bool> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('media.provider ' || $1, 0))")
        .bind(provider)
        .execute(&mut *conn)
        .await?;
    let update = sqlx::query(
        "-- job::assign
        with mine as (
            update media.jobs set provider = $3 where id = $1 and fence = $2 and state = 'leased'
                and (select count(*) from media.jobs where provider = $3 and state in ('ready', 'leased')) < $4
            returning task_id, step_index
        )
        update media.steps s set provider = $3 from mine where s.task_id = mine.task_id and s.index = mine.step_index",
    );
    let update = update
        .bind(work.id)
        .bind(work.fence)
        .bind(provider)
        .bind(limit);
    Ok(update.execute(conn).await?.rows_affected() == 1)
}

/// Writes down that a step is made here which a provider did not take.
pub async fn assign_here(conn: &mut PgConnection, work: &Work) -> sqlx::Result<()> {
    let update = sqlx::query(
        "update media.steps set provider = $3 where task_id = $1 and index = $2 and completed_at is null",
    );
    let update = update.bind(&work.task_id).bind(work.step_index);
    update.bind(task::LOCAL).execute(conn).await?;
    Ok(())
}

/// Writes down that a provider has taken a job, and when it is asked how it goes; `false` where the job is no longer the
/// worker's.
pub async fn accepted(
    conn: &mut PgConnection,
    work: &Work,
    reference: &str,
    due: Timestamp,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "-- job::accepted
        with mine as (
            update media.jobs set state = 'ready', lease_owner = null, lease_until = null, reference = $3, failures = 0,
                due_at = case when reported is null then $4 else $5 end
            where id = $1 and fence = $2 and state = 'leased'
            returning task_id, step_index
        ), task as (
            update media.tasks t set status = 'submitted', updated_at = $5 from mine where t.id = mine.task_id and t.status = 'queued'
        )
        update media.steps s set status = 'submitted', provider_ref = $3, error = null
        from mine where s.task_id = mine.task_id and s.index = mine.step_index and s.completed_at is null",
    );
    let update = update
        .bind(work.id)
        .bind(work.fence)
        .bind(reference)
        .bind(due)
        .bind(now);
    let held = update.execute(&mut *conn).await?.rows_affected() == 1;
    if held {
        task::db::tell(conn, &work.task_id, now).await?;
    }
    Ok(held)
}

/// Claims due questions by putting them off until `until`.
pub async fn claim_questions(
    conn: &mut PgConnection,
    now: Timestamp,
    until: Timestamp,
    batch: i64,
) -> sqlx::Result<Vec<Taken>> {
    sqlx::query_as(
        "-- job::claim_questions
        with due as (
            select id from media.jobs
            where state = 'ready' and reference is not null and reported is null and due_at <= $1 and deadline_at > $1
            order by due_at limit $3 for update skip locked
        )
        update media.jobs j set due_at = $2, polls = polls + 1
        from due, media.tasks t where due.id = j.id and t.id = j.task_id
        returning j.id, j.task_id, j.type, j.provider, j.reference, j.failures,
            extract(epoch from $1 - t.created_at)::float8 as age",
    )
    .bind(now)
    .bind(until)
    .bind(batch)
    .fetch_all(conn)
    .await
}

/// Puts the next question off, and tells how much is done; without a report, that there was no answer.
pub async fn goes_on(
    conn: &mut PgConnection,
    id: i64,
    report: Option<&Report>,
    due: Timestamp,
    now: Timestamp,
) -> sqlx::Result<()> {
    let update = sqlx::query(
        "update media.jobs set due_at = $2, failures = case when $3 then 0 else least(failures + 1, 100) end
        where id = $1 and state = 'ready' and reported is null",
    );
    update
        .bind(id)
        .bind(due)
        .bind(report.is_some())
        .execute(&mut *conn)
        .await?;
    match report {
        Some(report) => tell(conn, id, report, now).await.map(|_| ()),
        None => Ok(()),
    }
}

/// Tells how much is done at a provider; `false` where that is known, or the step has ended.
pub async fn tell(
    conn: &mut PgConnection,
    id: i64,
    report: &Report,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let is_running = report.status == Reported::Running;
    let update = sqlx::query_scalar(
        "-- job::tell
        with mine as (
            select task_id, step_index from media.jobs
            where id = $1 and state in ('ready', 'leased') and provider is not null and reported is null for update
        ), step as (
            update media.steps s set status = 'running' from mine
            where s.task_id = mine.task_id and s.index = mine.step_index and s.status in ('queued', 'submitted') and $2
        )
        update media.tasks t set progress = greatest(t.progress, $3), updated_at = $4,
            status = case when $2 then 'running' else t.status end
        from mine where t.id = mine.task_id and t.completed_at is null
            and (t.progress < $3 or $2 and t.status in ('queued', 'submitted'))
        returning t.id",
    );
    let update = update
        .bind(id)
        .bind(is_running)
        .bind(i16::from(report.progress.unwrap_or_default().min(90)))
        .bind(now);
    let told: Option<TaskId> = update.fetch_optional(&mut *conn).await?;
    if let Some(task) = &told {
        task::db::tell(conn, task, now).await?;
    }
    Ok(told.is_some())
}

/// Writes down how a step ended at its provider, so that a worker goes on with it; `false` where that was known, or the
/// step has ended here.
pub async fn report(
    conn: &mut PgConnection,
    id: i64,
    report: &Report,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update media.jobs set reported = $2, due_at = $3, failures = 0
        where id = $1 and state in ('ready', 'leased') and provider is not null and reported is null",
    );
    let update = update.bind(id).bind(Json(report)).bind(now);
    Ok(update.execute(conn).await?.rows_affected() == 1)
}

/// A step as its provider names it.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct AtProvider {
    /// The job.
    pub id: i64,
    /// Its task.
    pub task_id: TaskId,
    /// Its place in it.
    pub step_index: i16,
    /// Who has it, or may have.
    pub provider: String,
    /// How it is named there, once that is known.
    pub reference: Option<String>,
}

/// The job of a step: its number, and who was asked to do it.
pub async fn find_step(
    conn: &mut PgConnection,
    task: &TaskId,
    index: i16,
) -> sqlx::Result<Option<StepJob>> {
    sqlx::query_as("select id, provider from media.jobs where task_id = $1 and step_index = $2")
        .bind(task)
        .bind(index)
        .fetch_optional(conn)
        .await
}

/// The job of a step.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct StepJob {
    /// Its number.
    pub id: i64,
    /// Who was asked to do it.
    pub provider: Option<String>,
}

/// Claims steps that providers have and nobody wants: each is put off, five times at most.
pub async fn claim_withdrawals(
    conn: &mut PgConnection,
    now: Timestamp,
    batch: i64,
) -> sqlx::Result<Vec<AtProvider>> {
    sqlx::query_as(
        "-- job::claim_withdrawals
        with due as (
            select id from media.jobs where withdraw_at <= $1 order by withdraw_at limit $2 for update skip locked
        )
        update media.jobs j set withdrawals = withdrawals + 1,
            withdraw_at = case when withdrawals < 4 then $1 + make_interval(secs => 10 * (1 << withdrawals)) end
        from due where due.id = j.id
        returning j.id, j.task_id, j.step_index, j.provider, j.reference",
    )
    .bind(now)
    .bind(batch)
    .fetch_all(conn)
    .await
}

/// Notes that a provider knows that nobody wants a step.
pub async fn withdrawn(conn: &mut PgConnection, id: i64) -> sqlx::Result<()> {
    let update = sqlx::query("update media.jobs set withdraw_at = null where id = $1");
    update.bind(id).execute(conn).await?;
    Ok(())
}

/// Writes an address at which one object may be fetched for a while.
pub async fn link(
    conn: &mut PgConnection,
    ticket: &[u8],
    key: &str,
    expires: Timestamp,
) -> sqlx::Result<()> {
    let insert =
        sqlx::query("insert into media.links (ticket, object_key, expires_at) values ($1, $2, $3)");
    insert
        .bind(ticket)
        .bind(key)
        .bind(expires)
        .execute(conn)
        .await?;
    Ok(())
}

/// Passes the outputs of a step on to the next one, whose job is due at once; `false` where there is none.
pub async fn advance(
    conn: &mut PgConnection,
    work: &Work,
    outputs: &[String],
    now: Timestamp,
) -> sqlx::Result<bool> {
    let next = sqlx::query(
        "-- job::advance
        with next as (
            update media.steps set inputs = $3 where task_id = $1 and index = $2 + 1 and completed_at is null returning type
        ), done as (
            update media.steps set status = 'succeeded', outputs = $3, error = null, completed_at = $4
            where task_id = $1 and index = $2 and exists (select from next)
        ), kept as (
            -- Its outputs are needed until the task ends; then all of them are looked over.
            update media.jobs set swept = true where id = $5 and exists (select from next)
        ), steps as (
            select count(*) as many from media.steps where task_id = $1
        ), told as (
            update media.tasks t set progress = greatest(progress, ($2 + 1) * 100 / steps.many), updated_at = $4,
                status = 'running'
            from steps where t.id = $1 and t.completed_at is null and exists (select from next)
        )
        insert into media.jobs (task_id, step_index, user_id, priority, state, due_at, deadline_at, type)
        select j.task_id, $2 + 1, j.user_id, j.priority, 'ready', $4, j.deadline_at, next.type
        from media.jobs j, next where j.id = $5",
    );
    let next = next
        .bind(&work.task_id)
        .bind(work.step_index)
        .bind(outputs)
        .bind(now)
        .bind(work.id);
    let went_on = next.execute(&mut *conn).await?.rows_affected() == 1;
    if went_on {
        task::db::tell(conn, &work.task_id, now).await?;
    }
    Ok(went_on)
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
        "update media.jobs set state = 'dead', lease_owner = null, lease_until = null, fence = fence + 1, ended_at = $2,
            withdraw_at = case when provider is not null and reported is null then $2 end
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
        update media.jobs j set state = 'dead', lease_owner = null, lease_until = null, fence = fence + 1, ended_at = $1,
            withdraw_at = case when provider is not null and reported is null then $1 end
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
        "select j.id, j.task_id, j.user_id, t.results from media.jobs j join media.tasks t on t.id = j.task_id
        where not j.swept and j.ended_at < $1 and t.completed_at is not null order by j.ended_at limit $2",
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

/// Jobs that stand as asked, the latest first, and how many there are on all pages.
pub async fn list(
    conn: &mut PgConnection,
    state: Option<JobState>,
    slice: Slice,
) -> sqlx::Result<(Vec<JobView>, i64)> {
    let jobs = sqlx::query_as(
        "-- job::list
        select * from media.jobs where $1::text is null or state = $1 order by id desc limit $2 offset $3",
    );
    let jobs = jobs.bind(state).bind(slice.limit).bind(slice.offset);
    let jobs = jobs.fetch_all(&mut *conn).await?;
    let total =
        sqlx::query_scalar("select count(*) from media.jobs where $1::text is null or state = $1");
    Ok((jobs, total.bind(state).fetch_one(conn).await?))
}

/// Counts what is to be done.
pub async fn stats(conn: &mut PgConnection, now: Timestamp) -> sqlx::Result<JobStats> {
    sqlx::query_as(
        "-- job::stats
        select count(*) filter (where state = 'ready' and reference is null) as ready,
            count(*) filter (where state = 'leased') as leased,
            count(*) filter (where state = 'ready' and reference is not null) as submitted,
            min(due_at) filter (where state = 'ready' and reference is null and due_at <= $1) as oldest_waiting
        from media.jobs where state in ('ready', 'leased')",
    )
    .bind(now)
    .fetch_one(conn)
    .await
}

/// What ended in the last 24 hours, as it was written up.
pub async fn last_day(conn: &mut PgConnection, now: Timestamp) -> sqlx::Result<Vec<EndedTasks>> {
    sqlx::query_as(
        "-- job::last_day
        select type, provider, status, sum(tasks)::bigint as tasks, (sum(seconds) / sum(tasks))::float8 as mean_seconds
        from media.task_hours where hour > $1::timestamptz - interval '24 hours'
        group by type, provider, status order by type, provider, status",
    )
    .bind(now)
    .fetch_all(conn)
    .await
}

/// Writes up by the hour what ended since three hours ago; it may be done again.
pub async fn roll_up(conn: &mut PgConnection, now: Timestamp) -> sqlx::Result<()> {
    sqlx::query(
        "-- job::roll_up
        insert into media.task_hours (hour, type, provider, status, tasks, seconds)
        select date_trunc('hour', t.completed_at), t.type, s.provider, t.status, count(*),
            sum(extract(epoch from t.completed_at - t.created_at))::float8
        from media.tasks t join lateral (
            select provider from media.steps where task_id = t.id order by index desc limit 1
        ) s on true
        where t.completed_at >= date_trunc('hour', $1::timestamptz - interval '3 hours')
        group by 1, 2, 3, 4
        on conflict (hour, type, provider, status) do update set tasks = excluded.tasks, seconds = excluded.seconds",
    )
    .bind(now)
    .execute(&mut *conn)
    .await?;
    sqlx::query("delete from media.task_hours where hour < $1::timestamptz - interval '90 days'")
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}

/// Tasks that wait since before then and that nobody has begun, or that nobody can end any more: their jobs are taken
/// from whoever has them, for good.
pub async fn kill_stale(
    conn: &mut PgConnection,
    before: Timestamp,
    now: Timestamp,
    batch: i64,
) -> sqlx::Result<Vec<TaskId>> {
    sqlx::query_scalar(
        "-- job::kill_stale
        with stale as (
            select t.id from media.tasks t
            where t.completed_at is null and t.created_at < $1
                and (t.status = 'queued' or not exists (select from media.jobs j where j.task_id = t.id and j.state in ('ready', 'leased')))
                and not exists (select from media.jobs j where j.task_id = t.id and j.state = 'leased')
            order by t.created_at limit $3
        ), locked as (
            select j.id from media.jobs j join stale on stale.id = j.task_id where j.state = 'ready' for update of j skip locked
        ), killed as (
            update media.jobs j set state = 'dead', lease_owner = null, lease_until = null, fence = fence + 1, ended_at = $2,
                withdraw_at = case when provider is not null and reported is null then $2 end
            from locked where locked.id = j.id and j.state = 'ready' returning j.task_id
        )
        select task_id from killed union
        select id from stale where not exists (select from media.jobs j where j.task_id = stale.id and j.state in ('ready', 'leased'))",
    )
    .bind(before)
    .bind(now)
    .bind(batch)
    .fetch_all(conn)
    .await
}
