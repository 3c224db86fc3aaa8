//! The cron jobs of the cluster, for an administrator: what they are, how they went, and the hand on them.

use axum::extract::State;
use axum::response::Response;
use chrono::{DateTime, Utc};
use coordination::{CronError, JobOverview, PastRun};
use garde::Validate;
use http::StatusCode;
use platform::http::{Json, Path, Query};
use platform::problem::ProblemBody;
use platform::{Admin, Problem};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::Local;

/// Next runs that are shown unless more are asked for.
const NEXT: usize = 5;

/// Which jobs are shown how.
#[derive(Clone, Copy, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct JobsQuery {
    /// How many of the next runs are told, 0 to 50; default 5.
    #[garde(range(max = 50))]
    next: Option<u32>,
}

/// Which runs are shown.
#[derive(Clone, Copy, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RunsQuery {
    /// How many, 1 to 500; default 50.
    #[garde(range(min = 1, max = 500))]
    limit: Option<i64>,
    /// Only those of earlier slots: the slot of the last run of the page before.
    #[garde(skip)]
    before: Option<DateTime<Utc>>,
}

/// Every job that a replica ever announced.
#[derive(Serialize, utoipa::ToSchema)]
pub struct JobList {
    /// Each with job, schedule, timeZone, catchUp, overlap, jitterMs, timeoutMs, pauseAfter, failures, pausedAt,
    /// pauseReason, seenAt, last (its latest run) and nextRuns.
    #[schema(value_type = Vec<Object>)]
    jobs: Vec<JobOverview>,
}

/// Runs of a job, newest first.
#[derive(Serialize, utoipa::ToSchema)]
pub struct RunList {
    /// Each with job, slot, manual, state, attempt, token, instance, startedAt, finishedAt, lagMs and error.
    #[schema(value_type = Vec<Object>)]
    runs: Vec<PastRun>,
}

/// A run that was asked for.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Triggered {
    /// The job.
    job: String,
    /// By this slot the run is found in the history.
    #[schema(value_type = String, format = DateTime)]
    slot: DateTime<Utc>,
}

/// Whether a job is paused now.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Pausing {
    /// The job.
    job: String,
    /// Whether it is paused.
    paused: bool,
    /// Whether this call changed that.
    changed: bool,
}

/// All cron jobs of the cluster, with their policies, their latest and their next runs.
#[utoipa::path(get, path = "/gateway/cron", tag = "gateway", params(JobsQuery), responses(
    (status = 200, body = JobList), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn list_jobs(
    State(local): State<Local>,
    _: Admin,
    Query(query): Query<JobsQuery>,
) -> Result<Json<JobList>, Response> {
    let next = query.next.map_or(NEXT, |next| next as usize);
    let jobs = local.jobs.overview(next).await.map_err(refused)?;
    Ok(Json(JobList { jobs }))
}

/// What became of a job's runs: by the schedule and by hand, skipped ones too.
#[utoipa::path(get, path = "/gateway/cron/{job}/runs", tag = "gateway", params(("job" = String, Path), RunsQuery), responses(
    (status = 200, body = RunList), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody), (status = 404, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn list_runs(
    State(local): State<Local>,
    _: Admin,
    Path(job): Path<String>,
    Query(query): Query<RunsQuery>,
) -> Result<Json<RunList>, Response> {
    let limit = query.limit.unwrap_or(50);
    let runs = local.jobs.history_before(&job, query.before, limit).await;
    let runs = runs.map_err(refused)?;
    Ok(Json(RunList { runs }))
}

/// Asks for a run now, on whichever replica takes it within five seconds; of a paused job, too.
#[utoipa::path(post, path = "/gateway/cron/{job}/trigger", tag = "gateway", params(("job" = String, Path)), responses(
    (status = 202, body = Triggered), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
    (status = 404, body = ProblemBody), (status = 409, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn trigger_job(
    State(local): State<Local>,
    Admin(admin): Admin,
    Path(job): Path<String>,
) -> Result<(StatusCode, Json<Triggered>), Response> {
    let slot = local.jobs.trigger(&job).await.map_err(refused)?;
    info!(job, user.id = %admin.id, "job {job} was triggered by user {}", admin.id);
    Ok((StatusCode::ACCEPTED, Json(Triggered { job, slot })))
}

/// Pauses a job: no slot of its schedule begins until it is resumed, and none of them is made good after that.
#[utoipa::path(post, path = "/gateway/cron/{job}/pause", tag = "gateway", params(("job" = String, Path)), responses(
    (status = 200, body = Pausing), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
    (status = 404, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn pause_job(
    State(local): State<Local>,
    Admin(admin): Admin,
    Path(job): Path<String>,
) -> Result<Json<Pausing>, Response> {
    let reason = format!("by user {}", admin.id);
    let changed = local.jobs.pause(&job, &reason).await.map_err(refused)?;
    if changed {
        info!(job, user.id = %admin.id, "job {job} was paused by user {}", admin.id);
    }
    Ok(Json(Pausing {
        job,
        paused: true,
        changed,
    }))
}

/// Lets a paused job go on with its next slot, and forgets its failures.
#[utoipa::path(post, path = "/gateway/cron/{job}/resume", tag = "gateway", params(("job" = String, Path)), responses(
    (status = 200, body = Pausing), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
    (status = 404, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn resume_job(
    State(local): State<Local>,
    Admin(admin): Admin,
    Path(job): Path<String>,
) -> Result<Json<Pausing>, Response> {
    let changed = local.jobs.resume(&job).await.map_err(refused)?;
    if changed {
        info!(job, user.id = %admin.id, "job {job} was resumed by user {}", admin.id);
    }
    Ok(Json(Pausing {
        job,
        paused: false,
        changed,
    }))
}

fn refused(error: CronError) -> Response {
    let problem = match &error {
        CronError::UnknownJob { job } => Problem::not_found(&format!("job {job}")),
        CronError::Unheard { .. } => Problem::conflict("JOB_NOT_RUN", error.to_string()),
        CronError::Store(store) if store.is_unreachable() => {
            Problem::not_ready("the database does not answer; try again")
        }
        CronError::Store(_) | CronError::Schedule { .. } | CronError::Duplicate { .. } => {
            Problem::internal()
        }
    };
    problem.respond(&error)
}
