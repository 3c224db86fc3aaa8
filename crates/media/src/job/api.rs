//! What is to be done, for admins.

use axum::extract::State;
use contracts::{TaskId, Timestamp, UserId};
use garde::Validate;
use platform::Admin;
use platform::http::{Json, Page, PageQuery, Query};
use platform::problem::ProblemBody;
use serde::{Deserialize, Serialize};

use super::db;
use crate::{Media, Result};

/// Where a job stands.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum JobState {
    /// It waits until it is due.
    Ready,
    /// A worker has it.
    Leased,
    /// It ended.
    Done,
    /// It was taken away.
    Dead,
}

/// What a list is narrowed to.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[garde(allow_unvalidated)]
pub struct ListJobs {
    /// Where they stand.
    state: Option<JobState>,
}

/// The work on a step.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct JobView {
    /// Names the job.
    id: i64,
    /// Its task.
    task_id: TaskId,
    /// The place of the step.
    step_index: i16,
    /// Whose task it is.
    user_id: UserId,
    /// Where it stands.
    state: JobState,
    /// When it is, or was, due.
    due_at: Timestamp,
    /// When it has to be done.
    deadline_at: Timestamp,
    /// Who has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_owner: Option<String>,
    /// Until when.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_until: Option<Timestamp>,
    /// How often it was claimed.
    attempt: i16,
    /// The number of the last claim.
    fence: i64,
    /// Who was asked to do it.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    /// How often that was asked how it goes.
    polls: i32,
}

/// How much is to be done.
#[derive(Debug, Serialize, utoipa::ToSchema, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct JobStats {
    /// Jobs that wait for a worker.
    ready: i64,
    /// Jobs that a worker has.
    leased: i64,
    /// Jobs that a provider has.
    submitted: i64,
    /// When the oldest due job that waits for a worker fell due.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_waiting: Option<Timestamp>,
    /// Tasks that ended in the last 24 hours, by type, provider and status.
    #[sqlx(skip)]
    last_day: Vec<Ended>,
}

/// Tasks that ended.
#[derive(Debug, Serialize, utoipa::ToSchema, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// What they made.
    #[serde(rename = "type")]
    #[sqlx(rename = "type")]
    kind: String,
    /// Who did the last step.
    provider: String,
    /// How they ended.
    status: String,
    /// How many.
    tasks: i64,
    /// Seconds from creation to end, on average.
    mean_seconds: f64,
}

/// Lists jobs, the latest first.
#[utoipa::path(get, path = "/media/jobs", tag = "media", params(ListJobs, PageQuery), responses((status = 200, body = Page<JobView>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_jobs(
    _: Admin,
    State(state): State<Media>,
    Query(ask): Query<ListJobs>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<JobView>>> {
    let mut conn = state.platform.db.acquire().await?;
    let (jobs, total) = db::list(&mut conn, ask.state, page.slice()).await?;
    Ok(Json(Page::new(jobs, total, page)))
}

/// Shows how much is to be done, and what was done; the latter is written once an hour.
#[utoipa::path(get, path = "/media/jobs/stats", tag = "media", responses((status = 200, body = JobStats), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn job_stats(_: Admin, State(state): State<Media>) -> Result<Json<JobStats>> {
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    let mut stats: JobStats = db::stats(&mut conn, now).await?;
    stats.last_day = db::last_day(&mut conn, now).await?;
    Ok(Json(stats))
}
