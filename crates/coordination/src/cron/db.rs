//! SQL of cron runs. Every time here is the database's own.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgConnection, PgPool};

use crate::lease::Fence;

/// Attempts at one slot before it is left abandoned: a run that kills its process does not do so for ever.
pub const MOST_ATTEMPTS: i32 = 3;

/// What the decision whether a job is due is made from.
#[derive(Clone, Debug, FromRow)]
pub struct Situation {
    pub now: DateTime<Utc>,
    pub first_seen_at: DateTime<Utc>,
    /// The latest slot of the schedule that was begun, up to now: a clock that once stood too far ahead and was put
    /// back must not silence a job until that time comes again.
    pub last_slot: Option<DateTime<Utc>>,
}

/// A run that nobody works on: asked for, abandoned, or its holder is silent.
#[derive(Clone, Debug, FromRow)]
pub struct Open {
    pub slot: DateTime<Utc>,
    pub state: String,
    pub manual: bool,
    pub attempt: i32,
}

pub async fn announce(db: &PgPool, job: &str, schedule: &str, catch_up: &str) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "insert into coordination.cron_jobs (job, schedule, catch_up) values ($1, $2, $3)
        on conflict (job) do update
        set schedule = excluded.schedule, catch_up = excluded.catch_up, seen_at = clock_timestamp()",
    );
    insert
        .bind(job)
        .bind(schedule)
        .bind(catch_up)
        .execute(db)
        .await?;
    Ok(())
}

pub async fn now(db: &PgPool) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar("select clock_timestamp()")
        .fetch_one(db)
        .await
}

pub async fn situation(db: &PgPool, job: &str) -> sqlx::Result<Situation> {
    let query = sqlx::query_as(
        "-- cron::situation
        select clock_timestamp() as now, first_seen_at,
            (select max(slot) from coordination.cron_runs r where r.job = j.job and not manual and slot <= clock_timestamp()) as last_slot
        from coordination.cron_jobs j where job = $1",
    );
    query.bind(job).fetch_one(db).await
}

/// Runs of a job that wait for somebody, oldest first. `silence`: after that a running one has lost its holder.
pub async fn open_runs(db: &PgPool, job: &str, silence: Duration) -> sqlx::Result<Vec<Open>> {
    let query = sqlx::query_as(
        "-- cron::open_runs
        select slot, state, manual, attempt from coordination.cron_runs
        where job = $1 and state in ('requested', 'running', 'abandoned')
            and (state <> 'running' or alive_at < clock_timestamp() - make_interval(secs => $2))
            and (state <> 'abandoned' or attempt < $3)
        order by slot limit 100",
    );
    query
        .bind(job)
        .bind(silence.as_secs_f64())
        .bind(MOST_ATTEMPTS)
        .fetch_all(db)
        .await
}

/// Slots of the schedule in a span that were begun already.
pub async fn begun(
    db: &PgPool,
    job: &str,
    from: DateTime<Utc>,
) -> sqlx::Result<Vec<DateTime<Utc>>> {
    let query =
        sqlx::query_scalar("select slot from coordination.cron_runs where job = $1 and slot > $2");
    query.bind(job).bind(from).fetch_all(db).await
}

/// Begins a slot and answers its lag in milliseconds; `None` where it was begun before. The primary key decides.
pub async fn begin(
    conn: &mut PgConnection,
    job: &str,
    slot: DateTime<Utc>,
    token: Fence,
    instance: &str,
) -> sqlx::Result<Option<i64>> {
    let insert = sqlx::query_scalar(
        "-- cron::begin
        insert into coordination.cron_runs
            (job, slot, token, instance, state, scheduled_at, started_at, alive_at, lag_ms)
        select $1, $2, $3, $4, 'running', $2, now, now, greatest(0, extract(epoch from now - $2) * 1000)::bigint
        from clock_timestamp() now
        on conflict on constraint cron_runs_once_a_slot do nothing
        returning lag_ms",
    );
    insert
        .bind(job)
        .bind(slot)
        .bind(token.0)
        .bind(instance)
        .fetch_optional(conn)
        .await
}

/// Takes over a run that waits for somebody and answers which attempt this is, and its lag; `None` where another was faster.
pub async fn take_over(
    conn: &mut PgConnection,
    job: &str,
    slot: DateTime<Utc>,
    token: Fence,
    instance: &str,
    silence: Duration,
) -> sqlx::Result<Option<(i32, i64)>> {
    let update = sqlx::query_as(
        "-- cron::take_over
        update coordination.cron_runs
        set attempt = case when state = 'requested' then 1 else attempt + 1 end, state = 'running',
            token = $3, instance = $4, started_at = clock_timestamp(), alive_at = clock_timestamp(), finished_at = null,
            lag_ms = greatest(0, extract(epoch from clock_timestamp() - slot) * 1000)::bigint, error = null
        where job = $1 and slot = $2 and (token is null or token < $3)
            and (state in ('requested', 'abandoned')
                or (state = 'running' and alive_at < clock_timestamp() - make_interval(secs => $5)))
        returning attempt, lag_ms",
    );
    let update = update
        .bind(job)
        .bind(slot)
        .bind(token.0)
        .bind(instance)
        .bind(silence.as_secs_f64());
    update.fetch_optional(conn).await
}

/// Marks a silent run as abandoned for good; `false` where it is none any more.
pub async fn give_up(
    db: &PgPool,
    job: &str,
    slot: DateTime<Utc>,
    silence: Duration,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "-- cron::give_up
        update coordination.cron_runs
        set state = 'abandoned', attempt = greatest(attempt, $4), finished_at = clock_timestamp(),
            error = coalesce(error, 'its holder vanished')
        where job = $1 and slot = $2 and (state = 'abandoned'
            or (state = 'running' and alive_at < clock_timestamp() - make_interval(secs => $3)))",
    );
    let update = update
        .bind(job)
        .bind(slot)
        .bind(silence.as_secs_f64())
        .bind(MOST_ATTEMPTS);
    Ok(update.execute(db).await?.rows_affected() == 1)
}

/// Says that a run goes on; `false` where another has taken it over.
pub async fn keep_alive(
    db: &PgPool,
    job: &str,
    slot: DateTime<Utc>,
    token: Fence,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update coordination.cron_runs set alive_at = clock_timestamp()
        where job = $1 and slot = $2 and token = $3 and state = 'running'",
    );
    Ok(update
        .bind(job)
        .bind(slot)
        .bind(token.0)
        .execute(db)
        .await?
        .rows_affected()
        == 1)
}

/// Ends a run; `false` where another has taken it over. An attempt that does not count leaves its number to the next.
pub async fn finish(
    db: &PgPool,
    job: &str,
    slot: DateTime<Utc>,
    token: Fence,
    state: &str,
    error: Option<&str>,
    counts: bool,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "-- cron::finish
        update coordination.cron_runs
        set state = $4, error = $5, attempt = attempt - $6, finished_at = clock_timestamp()
        where job = $1 and slot = $2 and token = $3 and state = 'running'",
    );
    let update = update
        .bind(job)
        .bind(slot)
        .bind(token.0)
        .bind(state)
        .bind(error)
        .bind(i32::from(!counts));
    Ok(update.execute(db).await?.rows_affected() == 1)
}
