//! What an administrator sees of the jobs and does to them: history, next runs, trigger, pause, resume. Works from any
//! replica, also one that runs none of them, and needs the database alone.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use sqlx::{FromRow, PgPool};
use tokio::sync::Notify;

use super::schedule::Schedule;
use super::{CronError, TimeZone, db};
use crate::StoreError;

/// One run of a job, for reading.
#[derive(Clone, Debug, PartialEq, Serialize, FromRow)]
#[serde(rename_all = "camelCase")]
pub struct PastRun {
    /// The job.
    pub job: String,
    /// The moment of the schedule, or of asking.
    pub slot: DateTime<Utc>,
    /// Whether it was asked for by hand.
    pub manual: bool,
    /// `requested`, `running`, `succeeded`, `failed`, `abandoned`, `cancelled` or `skipped`.
    pub state: String,
    /// How often it was begun.
    pub attempt: i32,
    /// The fencing token of the last attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<i64>,
    /// Who ran it last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// When the last attempt began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<DateTime<Utc>>,
    /// How long after its slot the last attempt began, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<i64>,
    /// Why it failed, or was abandoned, cancelled or skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How a job stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobOverview {
    /// What was announced of it.
    #[serde(flatten)]
    pub told: Told,
    /// Its latest run, by hand or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<PastRun>,
    /// When its next slots fall due, the jitter included; none of a paused job.
    pub next_runs: Vec<DateTime<Utc>>,
}

/// What the replicas that run a job said of it, and whether it is paused.
#[derive(Clone, Debug, PartialEq, Serialize, FromRow)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// The job.
    pub job: String,
    /// Its schedule.
    pub schedule: String,
    /// The zone of the schedule.
    pub time_zone: String,
    /// Its policy for missed slots.
    pub catch_up: String,
    /// Its policy for slots that fall due while it runs.
    pub overlap: String,
    /// By how much a slot may be delayed at most.
    pub jitter_ms: i64,
    /// How long a run may take.
    pub timeout_ms: i64,
    /// After how many failures in a row it pauses itself; 0 for never.
    pub pause_after: i32,
    /// Failures in a row, by now.
    pub failures: i32,
    /// Since when it is paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_at: Option<DateTime<Utc>>,
    /// Why it is paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_reason: Option<String>,
    /// When a replica last said that it runs this job: half a minute ago at most while one does.
    pub seen_at: DateTime<Utc>,
}

/// The jobs of a cluster, for reading and asking.
#[derive(Clone, Debug)]
pub struct Jobs {
    db: PgPool,
    nudge: Arc<Notify>,
}

impl Jobs {
    /// The jobs that the replicas on this database announced. Those see what is asked for here within five seconds.
    pub fn new(db: PgPool) -> Self {
        Self::of(db, Arc::default())
    }

    pub(super) fn of(db: PgPool, nudge: Arc<Notify>) -> Self {
        Self { db, nudge }
    }

    /// Asks for a run now, whoever takes it, and answers its slot; that of a request which nobody has taken yet, where
    /// there is one. A paused job is run, too; one that runs already is run again after that. Fails where no replica
    /// runs the job by now. A request that nobody takes within an hour is given up, or made anew by the next one.
    pub async fn trigger(&self, job: &str) -> Result<DateTime<Utc>, CronError> {
        let tried = "ask for a run";
        let insert = sqlx::query_scalar(
            "-- cron::trigger
            insert into coordination.cron_runs as r (job, slot, manual, state)
            select job, clock_timestamp(), true, 'requested' from coordination.cron_jobs
            where job = $1 and seen_at > clock_timestamp() - interval '90 seconds'
            on conflict (job) where state = 'requested' do update
            set scheduled_at = clock_timestamp(),
                slot = case when r.slot > clock_timestamp() - make_interval(secs => $2)
                    then r.slot else clock_timestamp() end
            returning slot",
        );
        let insert = insert.bind(job).bind(db::ASKED_FOR.as_seconds_f64());
        let slot = insert.fetch_optional(&self.db).await;
        if let Some(slot) = slot.map_err(StoreError::postgres(tried))? {
            self.nudge.notify_one();
            return Ok(slot);
        }
        let seen = sqlx::query_scalar("select seen_at from coordination.cron_jobs where job = $1");
        let seen = seen.bind(job).fetch_optional(&self.db).await;
        let seen_at = seen.map_err(StoreError::postgres(tried))?;
        Err(CronError::Unheard {
            job: job.to_owned(),
            seen_at: seen_at.ok_or_else(|| unknown(job))?,
        })
    }

    /// Pauses a job, and says whether it was not paused before. A run that goes on is not disturbed.
    pub async fn pause(&self, job: &str, reason: &str) -> Result<bool, CronError> {
        let update = sqlx::query_scalar(
            "-- cron::pause
            update coordination.cron_jobs j
            set paused_at = coalesce(j.paused_at, clock_timestamp()), pause_reason = coalesce(j.pause_reason, $2)
            from (select job, paused_at from coordination.cron_jobs where job = $1 for update) before
            where j.job = before.job returning before.paused_at is null",
        );
        let paused = update.bind(job).bind(reason).fetch_optional(&self.db).await;
        let paused = paused.map_err(StoreError::postgres("pause a job"))?;
        self.nudge.notify_one();
        paused.ok_or_else(|| unknown(job))
    }

    /// Lets a paused job go on with its next slot, and says whether it was paused. Slots of the pause are nobody's
    /// debt, whatever the job's policy: who wants one triggers it.
    pub async fn resume(&self, job: &str) -> Result<bool, CronError> {
        let update = sqlx::query_scalar(
            "-- cron::resume
            update coordination.cron_jobs j
            set paused_at = null, pause_reason = null, failures = 0,
                owes_since = case when before.paused_at is null then owes_since else clock_timestamp() end
            from (select job, paused_at from coordination.cron_jobs where job = $1 for update) before
            where j.job = before.job returning before.paused_at is not null",
        );
        let resumed = update.bind(job).fetch_optional(&self.db).await;
        let resumed = resumed.map_err(StoreError::postgres("resume a job"))?;
        self.nudge.notify_one();
        resumed.ok_or_else(|| unknown(job))
    }

    /// The latest runs of a job, newest first.
    pub async fn history(&self, job: &str, limit: i64) -> Result<Vec<PastRun>, CronError> {
        let query = sqlx::query_as(
            "-- cron::history
            select job, slot, manual, state, attempt, token, instance, started_at, finished_at, lag_ms, error
            from coordination.cron_runs where job = $1 order by slot desc limit $2",
        );
        let runs = query.bind(job).bind(limit).fetch_all(&self.db).await;
        Ok(runs.map_err(StoreError::postgres("read the history of a job"))?)
    }

    /// Like [`history`](Self::history) before a slot, for paging; an error where the job is unknown.
    pub async fn history_before(
        &self,
        job: &str,
        before: Option<DateTime<Utc>>,
        limit: i64,
    ) -> Result<Vec<PastRun>, CronError> {
        let tried = "read the history of a job";
        let known: Option<i32> =
            sqlx::query_scalar("select 1 from coordination.cron_jobs where job = $1")
                .bind(job)
                .fetch_optional(&self.db)
                .await
                .map_err(StoreError::postgres(tried))?;
        known.ok_or_else(|| unknown(job))?;
        let query = sqlx::query_as(
            "-- cron::history_before
            select job, slot, manual, state, attempt, token, instance, started_at, finished_at, lag_ms, error
            from coordination.cron_runs where job = $1 and slot < coalesce($2, 'infinity') order by slot desc limit $3",
        );
        let runs = query.bind(job).bind(before).bind(limit);
        let runs = runs.fetch_all(&self.db).await;
        Ok(runs.map_err(StoreError::postgres(tried))?)
    }

    /// Every job a replica has ever announced, how it stands, and when its next `next` runs begin.
    pub async fn overview(&self, next: usize) -> Result<Vec<JobOverview>, CronError> {
        let tried = "read the jobs";
        let now: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()")
            .fetch_one(&self.db)
            .await
            .map_err(StoreError::postgres(tried))?;
        let jobs: Vec<Told> = sqlx::query_as(
            "-- cron::overview
            select job, schedule, time_zone, catch_up, overlap, jitter_ms, timeout_ms, pause_after, failures,
                paused_at, pause_reason, seen_at
            from coordination.cron_jobs order by job",
        )
        .fetch_all(&self.db)
        .await
        .map_err(StoreError::postgres(tried))?;
        let runs: Vec<PastRun> = sqlx::query_as(
            "-- cron::overview_runs
            select r.* from coordination.cron_jobs j cross join lateral (
                select job, slot, manual, state, attempt, token, instance, started_at, finished_at, lag_ms, error
                from coordination.cron_runs where job = j.job order by slot desc limit 1
            ) r order by job",
        )
        .fetch_all(&self.db)
        .await
        .map_err(StoreError::postgres(tried))?;
        let last = |job: &str| runs.iter().find(|run| run.job == job).cloned();
        Ok(jobs
            .into_iter()
            .map(|told| JobOverview {
                last: last(&told.job),
                next_runs: match told.schedule() {
                    Some(schedule) if told.paused_at.is_none() => schedule.upcoming(now, next),
                    Some(_) | None => Vec::new(),
                },
                told,
            })
            .collect())
    }

    /// Deletes up to `limit` runs older than `keep` with their attempts and tokens; never the latest of a job's schedule,
    /// which says what is owed. Slots up to the newest that is deleted are nobody's debt from then on, whatever the window
    /// of [`CatchUp::All`](super::CatchUp::All).
    pub async fn purge_history(&self, keep: TimeDelta, limit: i64) -> Result<u64, CronError> {
        let tried = StoreError::postgres("delete old runs");
        let deleted = self.purge(keep, limit).await.map_err(tried)?;
        Ok(u64::try_from(deleted).unwrap_or_default())
    }

    async fn purge(&self, keep: TimeDelta, limit: i64) -> sqlx::Result<i64> {
        let mut tx = self.db.begin().await?;
        // As whoever begins a run does, before the rows of runs.
        sqlx::query("select from coordination.cron_jobs order by job for update")
            .execute(&mut *tx)
            .await?;
        let delete = sqlx::query_scalar(
            "-- cron::purge_history
            with gone as (
                delete from coordination.cron_runs where (job, slot) in (
                    select job, slot from coordination.cron_runs r
                    where scheduled_at < clock_timestamp() - make_interval(secs => $1)
                        and (state <> 'running' or alive_at < clock_timestamp() - make_interval(secs => $1))
                        and (manual or exists (select 1 from coordination.cron_runs l
                            where l.job = r.job and l.slot > r.slot and not l.manual))
                    order by scheduled_at limit $2
                ) returning job, slot, manual
            ), fences as (
                delete from coordination.fences where key in (
                    select 'cron:' || job || ':' || (extract(epoch from slot) * 1000000)::bigint from gone
                )
            ), owed as (
                update coordination.cron_jobs j
                set owes_since = greatest(j.owes_since, newest + make_interval(secs => j.jitter_ms / 1000.0))
                from (select job, max(slot) as newest from gone where not manual group by job) past
                where j.job = past.job
            )
            select count(*) from gone",
        );
        let delete = delete.bind(keep.as_seconds_f64()).bind(limit);
        let deleted = delete.fetch_one(&mut *tx).await?;
        tx.commit().await?;
        Ok(deleted)
    }
}

impl Told {
    /// The schedule; `None` where another version announced what this one does not understand.
    pub fn schedule(&self) -> Option<Schedule> {
        let zone: TimeZone = self.time_zone.parse().ok()?;
        let jitter = Duration::from_millis(u64::try_from(self.jitter_ms).ok()?);
        Schedule::parse(&self.job, &self.schedule, zone, jitter).ok()
    }
}

fn unknown(job: &str) -> CronError {
    CronError::UnknownJob {
        job: job.to_owned(),
    }
}
