//! SQL of cron runs. Every time here is the database's own.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{FromRow, PgConnection, PgExecutor, PgPool};

use super::job::{Job, Overlap};
use crate::lease::Fence;

/// Attempts at one slot before it is left abandoned: a run that kills its process does not do so for ever.
pub const MOST_ATTEMPTS: i32 = 3;

/// A run asked for by hand that nobody took within this is not wanted any more.
pub const ASKED_FOR: TimeDelta = TimeDelta::hours(1);

/// What one look says of all jobs.
#[derive(Clone, Debug, FromRow)]
pub struct Look {
    pub now: DateTime<Utc>,
    /// Jobs that are paused.
    pub paused: Vec<String>,
    /// Jobs with a run that nobody works on.
    pub waiting: Vec<String>,
}

/// What the decision whether a job is due is made from.
#[derive(Clone, Debug, FromRow)]
pub struct Situation {
    pub job: String,
    pub now: DateTime<Utc>,
    pub owes_since: DateTime<Utc>,
    pub paused: bool,
    /// The latest slot of the schedule that was begun, up to now: a clock that once stood too far ahead and was put
    /// back must not silence a job until that time comes again.
    pub last_slot: Option<DateTime<Utc>>,
    /// How many runs have a holder that is alive.
    pub running: i64,
}

/// A run that nobody works on: asked for, abandoned, or its holder is silent.
#[derive(Clone, Debug, FromRow)]
pub struct Open {
    pub slot: DateTime<Utc>,
    pub state: String,
    pub manual: bool,
    pub attempt: i32,
}

/// How a run is written down.
pub struct Ended<'a> {
    pub state: &'static str,
    pub error: Option<&'a str>,
    /// While the run has had fewer holders than this the attempt does not count, and leaves its number to the next.
    pub free_holders: i64,
    /// After how many failures in a row the job pauses itself; 0 for never.
    pub pause_after: i32,
}

/// What became of an end.
#[derive(Clone, Debug, FromRow)]
pub struct Recorded {
    /// Whether this holder was still the one to tell.
    pub accepted: bool,
    /// Whether this failure paused the job.
    pub paused: bool,
}

/// Writes down which jobs this replica runs, and answers since when it does.
pub async fn announce(db: &PgPool, jobs: &[(&Job, String)]) -> sqlx::Result<DateTime<Utc>> {
    let mut jobs: Vec<_> = jobs.iter().collect();
    // Replicas that start together lock the rows in one order.
    jobs.sort_by_key(|(job, _)| job.name);
    let text = |of: fn(&Job) -> String| jobs.iter().map(|(job, _)| of(job)).collect::<Vec<_>>();
    let millis = |of: fn(&Job) -> Duration| {
        let millis = |job| i64::try_from(of(job).as_millis()).unwrap_or(i64::MAX);
        jobs.iter().map(|(job, _)| millis(job)).collect::<Vec<_>>()
    };
    let zones: Vec<&str> = jobs.iter().map(|(_, zone)| zone.as_str()).collect();
    let pause_after: Vec<i32> = jobs.iter().map(|(job, _)| pause_after(job)).collect();
    let insert = sqlx::query_scalar(
        "-- cron::announce
        with told as (
            insert into coordination.cron_jobs as j
                (job, schedule, time_zone, catch_up, overlap, jitter_ms, timeout_ms, pause_after)
            select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::int[])
            on conflict (job) do update
            set schedule = excluded.schedule, time_zone = excluded.time_zone, catch_up = excluded.catch_up,
                overlap = excluded.overlap, jitter_ms = excluded.jitter_ms, timeout_ms = excluded.timeout_ms,
                pause_after = excluded.pause_after, seen_at = clock_timestamp(),
                owes_since = case when (j.schedule, j.time_zone, j.catch_up)
                        = (excluded.schedule, excluded.time_zone, excluded.catch_up)
                    then j.owes_since else clock_timestamp() end
        )
        select clock_timestamp()",
    );
    insert
        .bind(text(|job| job.name.to_owned()))
        .bind(text(|job| job.schedule.clone()))
        .bind(zones)
        .bind(text(|job| job.catch_up.to_string()))
        .bind(text(|job| job.overlap.to_string()))
        .bind(millis(|job| job.jitter))
        .bind(millis(|job| job.timeout))
        .bind(pause_after)
        .fetch_one(db)
        .await
}

/// The setting as the database keeps it.
pub fn pause_after(job: &Job) -> i32 {
    let after = job.pause_after.unwrap_or(0);
    i32::try_from(after).unwrap_or(i32::MAX)
}

/// Says that somebody runs these jobs; rows that another replica has just touched are left alone.
pub async fn still_here(db: &PgPool, jobs: &[&str]) -> sqlx::Result<()> {
    let update = sqlx::query(
        "-- cron::still_here
        update coordination.cron_jobs set seen_at = clock_timestamp() where job in (
            select job from coordination.cron_jobs
            where job = any($1) and seen_at < clock_timestamp() - interval '20 seconds'
            order by job for update skip locked
        )",
    );
    update.bind(jobs).execute(db).await?;
    Ok(())
}

/// Looks at all jobs at once; its cost grows with what is open and paused, not with the jobs. `silence`: after that a
/// running one has lost its holder.
pub async fn look(db: &PgPool, silence: Duration) -> sqlx::Result<Look> {
    let query = sqlx::query_as(
        "-- cron::look
        select clock_timestamp() as now,
            array(select job from coordination.cron_jobs where paused_at is not null) as paused,
            array(select distinct job from coordination.cron_runs
                where state in ('requested', 'running', 'abandoned')
                    and (state <> 'running' or alive_at < clock_timestamp() - make_interval(secs => $1))
                    and (state <> 'abandoned' or attempt < $2)) as waiting",
    );
    query
        .bind(silence.as_secs_f64())
        .bind(MOST_ATTEMPTS)
        .fetch_one(db)
        .await
}

/// How some jobs stand; those that nobody announced are missing.
pub async fn situations(
    db: impl PgExecutor<'_>,
    jobs: &[&str],
    silence: Duration,
) -> sqlx::Result<Vec<Situation>> {
    let query = sqlx::query_as(
        "-- cron::situations
        select job, clock_timestamp() as now, owes_since, paused_at is not null as paused,
            (select max(slot) from coordination.cron_runs r
                where r.job = j.job and not manual and slot <= clock_timestamp()) as last_slot,
            (select count(*) from coordination.cron_runs r where r.job = j.job and state = 'running'
                and alive_at >= clock_timestamp() - make_interval(secs => $2)) as running
        from coordination.cron_jobs j where job = any($1)",
    );
    query
        .bind(jobs)
        .bind(silence.as_secs_f64())
        .fetch_all(db)
        .await
}

/// Runs of a job that wait for somebody, oldest first.
pub async fn open_runs(
    conn: &mut PgConnection,
    job: &str,
    silence: Duration,
) -> sqlx::Result<Vec<Open>> {
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
        .fetch_all(conn)
        .await
}

/// Locks the row of a job, which everything that begins a run, pauses or resumes does first: until the transaction ends
/// what it reads of these stays true.
pub async fn hold(conn: &mut PgConnection, job: &str) -> sqlx::Result<()> {
    let query = sqlx::query(
        "-- cron::hold
        select from coordination.cron_jobs where job = $1 for update",
    );
    query.bind(job).execute(conn).await?;
    Ok(())
}

/// Slots of the schedule after `from` up to `to` that were begun or skipped already.
pub async fn begun(
    conn: &mut PgConnection,
    job: &str,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
) -> sqlx::Result<Vec<DateTime<Utc>>> {
    let query = sqlx::query_scalar(
        "-- cron::begun
        select slot from coordination.cron_runs where job = $1 and slot > $2 and slot <= $3 and not manual",
    );
    let query = query.bind(job).bind(from).bind(to);
    query.fetch_all(conn).await
}

/// Takes the token for a run: higher than every one of its key, and than that of an earlier attempt at the slot, whose
/// key another overlap policy may have chosen; that one is made late, too.
pub async fn token(conn: &mut PgConnection, job: &Job, slot: DateTime<Utc>) -> sqlx::Result<Fence> {
    let own = job.fence_key(slot);
    let other = match job.overlap {
        Overlap::Allow => Job::key_of_all(job.name),
        Overlap::Skip | Overlap::QueueOne | Overlap::CancelOther => Job::key_of_one(job.name, slot),
    };
    let query = sqlx::query_scalar(
        "-- cron::token
        with earlier as (
            select coalesce(max(token), 0) as token from coordination.cron_runs where job = $1 and slot = $2
        ), other as (
            update coordination.fences f set token = f.token + 1
            from earlier where f.key = $4 and f.token = earlier.token
        )
        insert into coordination.fences as f (key, token) select $3, token + 1 from earlier
        on conflict (key) do update set token = greatest(f.token + 1, excluded.token) returning token",
    );
    let query = query.bind(job.name).bind(slot).bind(own).bind(other);
    query.fetch_one(conn).await.map(Fence)
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
        with run as (
            insert into coordination.cron_runs
                (job, slot, token, instance, state, scheduled_at, started_at, alive_at, lag_ms)
            select $1, $2, $3, $4, 'running', $2, now, now, greatest(0, extract(epoch from now - $2) * 1000)::bigint
            from clock_timestamp() now
            on conflict on constraint cron_runs_once_a_slot do nothing
            returning lag_ms
        ), attempt as (
            insert into coordination.cron_attempts (job, slot, token, instance) select $1, $2, $3, $4 from run
        )
        select lag_ms from run",
    );
    insert
        .bind(job)
        .bind(slot)
        .bind(token.0)
        .bind(instance)
        .fetch_optional(conn)
        .await
}

/// Marks a slot as skipped, where an earlier run went on when it fell due; `false` where none did, or it was begun.
pub async fn skip(
    conn: &mut PgConnection,
    job: &str,
    slot: DateTime<Utc>,
    due: DateTime<Utc>,
    silence: Duration,
) -> sqlx::Result<bool> {
    let insert = sqlx::query(
        "-- cron::skip
        insert into coordination.cron_runs (job, slot, state, scheduled_at, finished_at, error)
        select $1, $2, 'skipped', $2, clock_timestamp(), 'the run of ' || to_char(slot at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') || ' was still going on'
        from (
            select slot, started_at from coordination.cron_runs where job = $1 and finished_at > $3
            union all
            select slot, started_at from coordination.cron_runs
            where job = $1 and state = 'running' and alive_at >= clock_timestamp() - make_interval(secs => $4)
        ) other
        where slot <> $2 and started_at <= $3 order by started_at desc limit 1
        on conflict on constraint cron_runs_once_a_slot do nothing",
    );
    let insert = insert
        .bind(job)
        .bind(slot)
        .bind(due)
        .bind(silence.as_secs_f64());
    Ok(insert.execute(conn).await?.rows_affected() == 1)
}

/// Asks the holders of earlier runs of a job to cancel them.
pub async fn ask_stop(conn: &mut PgConnection, job: &str, slot: DateTime<Utc>) -> sqlx::Result<()> {
    let update = sqlx::query(
        "-- cron::ask_stop
        update coordination.cron_runs set stop_asked = true
        where job = $1 and slot < $2 and state = 'running' and not stop_asked",
    );
    update.bind(job).bind(slot).execute(conn).await?;
    Ok(())
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
        with run as (
            update coordination.cron_runs
            set attempt = case when state = 'requested' then 1 else attempt + 1 end, state = 'running',
                token = $3, instance = $4, started_at = clock_timestamp(), alive_at = clock_timestamp(), finished_at = null,
                lag_ms = greatest(0, extract(epoch from clock_timestamp() - slot) * 1000)::bigint, error = null,
                stop_asked = false
            where job = $1 and slot = $2
                and (state in ('requested', 'abandoned')
                    or (state = 'running' and alive_at < clock_timestamp() - make_interval(secs => $5)))
            returning attempt, lag_ms
        ), attempt as (
            insert into coordination.cron_attempts (job, slot, token, instance) select $1, $2, $3, $4 from run
        )
        select attempt, lag_ms from run",
    );
    let update = update
        .bind(job)
        .bind(slot)
        .bind(token.0)
        .bind(instance)
        .bind(silence.as_secs_f64());
    update.fetch_optional(conn).await
}

/// Gives an open run up for good and answers its state: `abandoned` where its attempts are used up, `cancelled` where it
/// is not wanted any more, `skipped` where it was only asked for. `None` where it is open no more.
pub async fn give_up(
    conn: &mut PgConnection,
    job: &str,
    slot: DateTime<Utc>,
    wanted: bool,
    silence: Duration,
) -> sqlx::Result<Option<String>> {
    let update = sqlx::query_scalar(
        "-- cron::give_up
        update coordination.cron_runs
        set state = case when state = 'requested' then 'skipped' when $5 then 'abandoned' else 'cancelled' end,
            attempt = case when $5 then greatest(attempt, $4) else attempt end, finished_at = clock_timestamp(),
            error = coalesce(error, case when state = 'requested' then 'nobody took it in time' else 'its holder vanished' end)
        where job = $1 and slot = $2 and (state in ('requested', 'abandoned')
            or (state = 'running' and alive_at < clock_timestamp() - make_interval(secs => $3)))
        returning state",
    );
    let update = update
        .bind(job)
        .bind(slot)
        .bind(silence.as_secs_f64())
        .bind(MOST_ATTEMPTS)
        .bind(wanted);
    update.fetch_optional(conn).await
}

/// Says that a run goes on, and answers whether it was asked to stop; `None` where another has taken it over.
pub async fn keep_alive(
    db: &PgPool,
    job: &str,
    slot: DateTime<Utc>,
    token: Fence,
) -> sqlx::Result<Option<bool>> {
    let update = sqlx::query_scalar(
        "update coordination.cron_runs set alive_at = clock_timestamp()
        where job = $1 and slot = $2 and token = $3 and state in ('running', 'succeeded') returning stop_asked",
    );
    update
        .bind(job)
        .bind(slot)
        .bind(token.0)
        .fetch_optional(db)
        .await
}

/// Marks a run as succeeded and answers the highest token known of it, that of another where it was taken over.
pub async fn complete(
    conn: &mut PgConnection,
    job: &str,
    slot: DateTime<Utc>,
    token: Fence,
) -> sqlx::Result<Fence> {
    let update = sqlx::query_scalar(
        "-- cron::complete
        with run as (
            update coordination.cron_runs set state = 'succeeded', error = null, finished_at = clock_timestamp()
            where job = $1 and slot = $2 and token = $3 and state in ('running', 'succeeded') returning token
        )
        select coalesce((select token from run),
            (select token from coordination.cron_runs where job = $1 and slot = $2 and token > $3), 0)",
    );
    let highest = update.bind(job).bind(slot).bind(token.0);
    highest.fetch_one(conn).await.map(Fence)
}

/// Ends a run, counts failures in a row, and pauses a job that had too many; bears being sent again. The account of
/// the attempt is kept whether the end is accepted or not.
pub async fn finish(
    db: &PgPool,
    job: &str,
    slot: DateTime<Utc>,
    token: Fence,
    ended: &Ended<'_>,
) -> sqlx::Result<Recorded> {
    // The row of the job first, as everybody who needs it and the run's does; what is read then is no older than this.
    let mut tx = db.begin().await?;
    hold(&mut tx, job).await?;
    let update = sqlx::query_as(
        "-- cron::finish
        with told as (
            -- By an earlier call, or in the transaction of the effect.
            select state from coordination.cron_runs
            where job = $1 and slot = $2 and token = $3 and state in ($4, 'succeeded')
        ), ended as (
            select coalesce((select state from told), $4) as state
        ), run as (
            update coordination.cron_runs
            set state = $4, error = $5, finished_at = clock_timestamp(),
                attempt = attempt - (select (count(*) < $6)::int from coordination.cron_attempts
                    where job = $1 and slot = $2)
            where job = $1 and slot = $2 and token = $3 and state = 'running'
            returning 1
        ), attempt as (
            update coordination.cron_attempts
            set finished_at = clock_timestamp(), outcome = (select state from ended),
                accepted = exists (select from run) or exists (select from told)
            where job = $1 and slot = $2 and token = $3 and accepted is null
            returning accepted
        ), before as (
            select job, paused_at as was from coordination.cron_jobs where job = $1
        ), job as (
            update coordination.cron_jobs j
            set failures = case ended.state when 'failed' then failures + 1 when 'succeeded' then 0 else failures end,
                paused_at = case when ended.state = 'failed' and $7 > 0 and failures + 1 >= $7
                    then coalesce(paused_at, clock_timestamp()) else paused_at end,
                pause_reason = case when ended.state = 'failed' and $7 > 0 and failures + 1 >= $7 and paused_at is null
                    then (failures + 1) || ' failed runs in a row, the last: ' || coalesce($5, '') else pause_reason end
            from before, ended where j.job = before.job and exists (select from attempt where accepted)
            returning before.was is null and paused_at is not null as paused
        )
        select exists (select from run) or exists (select from told) as accepted,
            coalesce((select paused from job), false) as paused",
    );
    let recorded = update
        .bind(job)
        .bind(slot)
        .bind(token.0)
        .bind(ended.state)
        .bind(ended.error)
        .bind(ended.free_holders)
        .bind(ended.pause_after)
        .fetch_one(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(recorded)
}
