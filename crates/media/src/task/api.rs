//! Creating, watching and cancelling tasks, and fetching what they made.

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use contracts::{TaskId, UserId};
use futures::TryStreamExt;
use garde::Validate;
use http::{StatusCode, header};
use platform::CurrentUser;
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::idempotency::{Idempotent, Turn};
use platform::problem::ProblemBody;
use serde::Deserialize;
use sqlx::PgConnection;
use tracing::info;

use super::{CreateTask, Ending, Offer, Task, TaskStatus, TaskType, db};
use crate::fetch::FileKind;
use crate::job::is_url;
use crate::{Error, Media, Result, job, metrics, upload};

/// What a list is narrowed to.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
#[garde(allow_unvalidated)]
pub struct ListTasks {
    /// Whose; only admins name others.
    user_id: Option<UserId>,
    /// Where they stand.
    status: Option<TaskStatus>,
    /// What they make.
    #[serde(rename = "type")]
    #[param(rename = "type")]
    kind: Option<TaskType>,
}

/// Creates a task. It is stored with its work when the reply comes, and done whichever replica dies.
#[utoipa::path(
    post, path = "/media/tasks", tag = "media", request_body = CreateTask,
    params(("Idempotency-Key" = Option<String>, Header, description = "the same key gives the first reply again")),
    responses(
        (status = 201, body = Task), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 404, description = "an input is not there", body = ProblemBody),
        (status = 409, body = ProblemBody), (status = 422, body = ProblemBody),
        (status = 429, description = "too many of the user's tasks are waiting", body = ProblemBody),
        (status = 503, description = "too many tasks are waiting", body = ProblemBody),
    ),
)]
pub async fn create_task(
    State(state): State<Media>,
    user: CurrentUser,
    ask: Idempotent<CreateTask>,
) -> Result<Response> {
    let plan = ask.body.plan(&offer(&state))?;
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    let turn = match ask.key.claim(&mut tx, user.id.as_str()).await? {
        Turn::First(turn) => turn,
        Turn::Replay(reply) => return Ok(reply),
    };
    make_room(&mut tx, &state, &user.id).await?;
    let owner = (!user.is_admin).then_some(&user.id);
    let kept = now - upload::KEPT;
    let objects = upload::db::objects(&mut tx, &plan.inputs, owner, kept).await?;
    let mut inputs = Vec::with_capacity(objects.len());
    for (index, (input, object)) in plan.inputs.iter().zip(objects).enumerate() {
        let url = is_url(input).then(|| input.clone());
        inputs.push(url.or(object).ok_or(Error::NoInput { index })?);
    }
    let deadline = now + plan.span(&state.config);
    let task = Task::new(user.id, plan, now);
    db::insert(&mut tx, &task, &inputs, deadline).await?;
    job::db::insert(&mut tx, &task, deadline).await?;
    let reply = turn.reply(&mut tx, StatusCode::CREATED, &task).await?;
    tx.commit().await?;

    state.work.wake();
    metrics::task_created(task.kind);
    Ok(reply)
}

/// Lists the caller's tasks, newest first.
#[utoipa::path(get, path = "/media/tasks", tag = "media", params(ListTasks, PageQuery), responses((status = 200, body = Page<Task>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_tasks(
    State(state): State<Media>,
    user: CurrentUser,
    Query(ask): Query<ListTasks>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Task>>> {
    let filter = db::Filter {
        user_id: user.acting_for(ask.user_id)?,
        status: ask.status,
        kind: ask.kind,
    };
    let mut conn = state.platform.db.acquire().await?;
    let (tasks, total) = db::list(&mut conn, &filter, page.slice()).await?;
    Ok(Json(Page::new(tasks, total, page)))
}

/// Shows a task.
#[utoipa::path(get, path = "/media/tasks/{task_id}", tag = "media", params(("task_id" = TaskId, Path)), responses((status = 200, body = Task), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn find_task(
    State(state): State<Media>,
    user: CurrentUser,
    Path(id): Path<TaskId>,
) -> Result<Json<Task>> {
    let mut conn = state.platform.db.acquire().await?;
    Ok(Json(visible(&mut conn, &user, id).await?))
}

/// Cancels a task that has not ended.
#[utoipa::path(post, path = "/media/tasks/{task_id}/cancel", tag = "media", params(("task_id" = TaskId, Path)), responses((status = 200, body = Task), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, description = "it has ended", body = ProblemBody)))]
pub async fn cancel_task(
    State(state): State<Media>,
    user: CurrentUser,
    Path(id): Path<TaskId>,
) -> Result<Json<Task>> {
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    visible(&mut tx, &user, id.clone()).await?;
    // The job's state, which its lock guards, decides between us and a worker that ends at this moment.
    let was_open = job::db::kill(&mut tx, &id, now).await?;
    let cancelled = was_open && db::end(&mut tx, &id, &Ending::Cancelled, now).await?;
    let task = visible(&mut tx, &user, id).await?;
    if !cancelled {
        return Err(Error::Final {
            status: task.status,
        });
    }
    tx.commit().await?;
    metrics::tasks_finished(TaskStatus::Cancelled, 1);
    info!(task.id = %task.id, "cancelled task {}", task.id);
    Ok(Json(task))
}

/// Fetches a file that a task made.
#[utoipa::path(get, path = "/media/tasks/{task_id}/results/{index}", tag = "media", params(("task_id" = TaskId, Path), ("index" = usize, Path)), responses((status = 200, description = "the file", content_type = "application/octet-stream"), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn fetch_result(
    State(state): State<Media>,
    user: CurrentUser,
    Path((id, index)): Path<(TaskId, usize)>,
) -> Result<Response> {
    let mut conn = state.platform.db.acquire().await?;
    let task = visible(&mut conn, &user, id).await?;
    drop(conn);
    let absent = || Error::NoResult(task.id.clone());
    let key = task.results.get(index).ok_or_else(absent)?;
    let object = match state.objects.read(key, None).await {
        Err(error) if error.is_absent() => return Err(absent()),
        object => object?,
    };
    let size = object.meta.size;
    let kind = FileKind::of_key(key);
    let content_type = kind.map_or("application/octet-stream", FileKind::content_type);
    let headers = [
        (header::CONTENT_TYPE, content_type.to_owned()),
        (header::CONTENT_LENGTH, size.to_string()),
        (header::CACHE_CONTROL, "private, max-age=3600".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    let body = Body::from_stream(object.into_stream().map_err(std::io::Error::other));
    Ok((headers, body).into_response())
}

fn offer(state: &Media) -> Offer<'_> {
    Offer {
        rules: state.fetch.rules(),
        providers: &state.providers,
    }
}

/// Refuses where the queue of the user, or of all, is full. Creations of one user pass here one after the other.
async fn make_room(conn: &mut PgConnection, state: &Media, user: &UserId) -> Result<()> {
    let (own, all) = job::db::waiting(conn, user, state.config.waiting).await?;
    let (most_own, most) = (state.config.user_waiting, state.config.waiting);
    if own >= most_own {
        return Err(Error::UserQueueFull {
            waiting: own,
            most: most_own,
        });
    }
    if all >= most {
        return Err(Error::QueueFull { most });
    }
    Ok(())
}

async fn visible(conn: &mut PgConnection, user: &CurrentUser, id: TaskId) -> Result<Task> {
    let task = db::find(conn, &id).await?;
    let task = task.filter(|task| user.may_see(&task.user_id));
    task.ok_or(Error::NoTask(id))
}
