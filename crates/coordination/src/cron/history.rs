//! What became of jobs, and runs asked for by hand: the part of cron an administrator sees. Works from any replica.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use sqlx::FromRow;

use super::job::Schedule;
use super::{Cron, CronError, db};
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
    /// `requested`, `running`, `succeeded`, `failed` or `abandoned`.
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
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How a job stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobOverview {
    /// The job.
    pub job: String,
    /// Its schedule, in UTC.
    pub schedule: String,
    /// Its policy for missed slots.
    pub catch_up: String,
    /// Its latest run, by hand or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<PastRun>,
    /// The next slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<DateTime<Utc>>,
}

impl Cron {
    /// Asks for a run now, whoever takes it, and answers its slot.
    pub async fn trigger(&self, job: &str) -> Result<DateTime<Utc>, CronError> {
        let insert = sqlx::query_scalar(
            "-- cron::trigger
            insert into coordination.cron_runs (job, slot, manual, state)
            select job, clock_timestamp(), true, 'requested' from coordination.cron_jobs where job = $1
            returning slot",
        );
        let slot = insert
            .bind(job)
            .fetch_optional(&self.db)
            .await
            .map_err(StoreError::postgres("ask for a run"))?;
        let slot = slot.ok_or_else(|| CronError::UnknownJob {
            job: job.to_owned(),
        })?;
        self.nudge.notify_waiters();
        Ok(slot)
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

    /// Every job a replica has ever announced, and how it stands.
    pub async fn overview(&self) -> Result<Vec<JobOverview>, CronError> {
        let tried = "read the jobs";
        let now = db::now(&self.db)
            .await
            .map_err(StoreError::postgres(tried))?;
        let jobs: Vec<(String, String, String)> = sqlx::query_as(
            "select job, schedule, catch_up from coordination.cron_jobs order by job",
        )
        .fetch_all(&self.db)
        .await
        .map_err(StoreError::postgres(tried))?;
        let runs: Vec<PastRun> = sqlx::query_as(
            "-- cron::overview
            select r.* from coordination.cron_jobs j cross join lateral (
                select job, slot, manual, state, attempt, token, instance, started_at, finished_at, lag_ms, error
                from coordination.cron_runs where job = j.job order by slot desc limit 1
            ) r",
        )
        .fetch_all(&self.db)
        .await
        .map_err(StoreError::postgres(tried))?;
        Ok(jobs
            .into_iter()
            .map(|(job, schedule, catch_up)| JobOverview {
                last: runs.iter().find(|run| run.job == job).cloned(),
                next: Schedule::parse(&job, &schedule)
                    .ok()
                    .and_then(|parsed| parsed.next(now)),
                job,
                schedule,
                catch_up,
            })
            .collect())
    }

    /// Deletes up to `limit` ended runs older than `keep`, never the latest of a job, which says what is owed.
    pub async fn purge_history(&self, keep: TimeDelta, limit: i64) -> Result<u64, CronError> {
        let delete = sqlx::query(
            "-- cron::purge_history
            delete from coordination.cron_runs where (job, slot) in (
                select job, slot from coordination.cron_runs r
                where scheduled_at < clock_timestamp() - make_interval(secs => $1)
                    and state not in ('requested', 'running')
                    and exists (select 1 from coordination.cron_runs l
                        where l.job = r.job and l.slot > r.slot and not l.manual)
                order by scheduled_at limit $2
            )",
        );
        let done = delete
            .bind(keep.as_seconds_f64())
            .bind(limit)
            .execute(&self.db)
            .await;
        Ok(done
            .map_err(StoreError::postgres("purge the history of jobs"))?
            .rows_affected())
    }
}
