//! Asking for apps to be installed, and how that goes.

use std::time::Duration;

use axum::extract::State;
use contracts::{AppId, DeviceId, TaskId, Timestamp};
use garde::Validate;
use platform::CurrentUser;
use platform::http::{Json, Path};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use tokio::time::{Instant, timeout};

use super::db::{self, Progress};
use crate::access::{Fault, Viewer};
use crate::batch::api::{BatchBody, named};
use crate::batch::commands::InstallBody;
use crate::batch::{Outcome, Report, told};
use crate::device::Status;
use crate::device::api::lock_visible;
use crate::{Devices, Error, error::Result};

/// How long a request waits for the service of apps to say whether there is such an app.
const CHECK: Duration = Duration::from_secs(3);

/// Which app is installed.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstallApp {
    /// An app of the service of apps that the caller may see.
    #[garde(skip)]
    app_id: AppId,
}

/// The installation that was queued.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Queued {
    message: String,
    /// By it `GET /devices/saga/{sagaId}` tells how it goes.
    saga_id: String,
    /// By it progress is told on the user's socket.
    batch_id: TaskId,
    status: &'static str,
}

/// How a request to install an app goes.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstallationBatch {
    batch_id: TaskId,
    app_id: AppId,
    /// How many devices were queued.
    total: usize,
    /// How many of them are over.
    done: usize,
    /// How many of those failed.
    failed: usize,
    results: Vec<InstallationResult>,
    created_at: Timestamp,
}

/// How it goes on one device.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstallationResult {
    device_id: DeviceId,
    saga_id: String,
    /// pending, installing, installed or failed.
    status: &'static str,
    /// Why it failed, or is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Queues the installation of an app on a device, or of the same app again: what is there of it is replaced, its data stays. A
/// device that is on its way to running gets it when it runs.
#[utoipa::path(post, path = "/devices/{id}/install", tag = "access", params(("id" = String, Path)), request_body = InstallApp,
    responses((status = 200, body = Queued), (status = 400), (status = 404, description = "No such device or no such app"), (status = 409, description = "The device does not run, or too much is to be installed on it already"), (status = 429, description = "Too many installations of the caller wait")))]
pub async fn install_app(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
    Json(body): Json<InstallApp>,
) -> Result<Json<Queued>> {
    check_app(&state, &user, &body.app_id).await?;
    let batch_id = TaskId::new();
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    let mut queue = Queue::open(&state, &mut tx, &user).await?;
    db::insert_batch(&mut tx, &batch_id, (&user.id, &body.app_id), now).await?;
    let saga_id = queue.add(&mut tx, &batch_id, &id).await?;
    tx.commit().await?;
    state.installations_due.notify_one();
    Ok(Json(Queued {
        message: "the app is being installed".into(),
        saga_id,
        batch_id,
        status: "pending",
    }))
}

/// Queues the installation of an app on devices, as `POST /devices/{id}/install` does on one, and answers at once: what was
/// queued, and what was refused. How it goes tells `GET /devices/batch/installs/{batchId}`, and the user's socket.
#[utoipa::path(post, path = "/devices/batch/install", tag = "batch", request_body = InstallBody, responses((status = 200, body = Report), (status = 400), (status = 404, description = "No such app")))]
pub async fn install_on_devices(
    State(state): State<Devices>,
    user: CurrentUser,
    Json(body): Json<InstallBody>,
) -> Result<Json<Report>> {
    let began = Instant::now();
    let batch = BatchBody {
        ids: body.ids,
        device_ids: body.device_ids,
        group_name: body.group_name,
        max_concurrency: body.max_concurrency,
    };
    let mut ids = named(&state, &user, batch).await?;
    check_app(&state, &user, &body.app_id).await?;
    let batch_id = TaskId::new();
    let now = state.platform.clock.now();
    // Devices are locked in one order, so that two batches wait for each other and never both.
    let order = ids.clone();
    ids.sort_unstable();
    let mut tx = state.platform.db.begin().await?;
    let mut queue = Queue::open(&state, &mut tx, &user).await?;
    db::insert_batch(&mut tx, &batch_id, (&user.id, &body.app_id), now).await?;
    let mut outcomes = Vec::with_capacity(ids.len());
    for id in ids {
        let queued = queue.add(&mut tx, &batch_id, &id).await;
        if let Err(Error::Database(error)) = queued {
            return Err(error.into());
        }
        outcomes.push(outcome(id, queued));
    }
    tx.commit().await?;
    state.installations_due.notify_one();
    let places: std::collections::HashMap<&DeviceId, usize> =
        order.iter().enumerate().map(|(at, id)| (id, at)).collect();
    outcomes.sort_by_key(|outcome| {
        let id = outcome.device_id.as_ref();
        id.and_then(|id| places.get(id)).copied()
    });
    Ok(Json(Report::queued("install", batch_id, outcomes, began)))
}

/// Shows how a request to install an app goes.
#[utoipa::path(get, path = "/devices/batch/installs/{batch_id}", tag = "batch", params(("batch_id" = String, Path)), responses((status = 200, body = InstallationBatch), (status = 404)))]
pub async fn find_installations(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(batch_id): Path<TaskId>,
) -> Result<Json<InstallationBatch>> {
    let mut conn = state.platform.db.acquire().await?;
    let batch = db::find_batch(&mut conn, &batch_id).await?;
    let batch = batch.filter(|batch| user.may_see(&batch.user_id));
    let batch = batch.ok_or(Error::NoSuchSaga)?;
    let list = db::list(&mut conn, &batch_id).await?;
    let results: Vec<_> = list.into_iter().map(InstallationResult::from).collect();
    let count = |of: &[&str]| {
        let those = results.iter().filter(|result| of.contains(&result.status));
        those.count()
    };
    Ok(Json(InstallationBatch {
        batch_id,
        app_id: batch.app_id,
        total: usize::try_from(batch.total).unwrap_or_default(),
        done: count(&["installed", "failed"]),
        failed: count(&["failed"]),
        results,
        created_at: batch.created_at,
    }))
}

/// Refuses an app that there is not for the caller. Where nobody can tell, the worker finds out.
async fn check_app(state: &Devices, user: &CurrentUser, app: &AppId) -> Result<()> {
    let viewer = Viewer::from(user);
    match timeout(CHECK, state.packages.fetch(&viewer, app)).await {
        Ok(Err(problem)) if problem.status().is_client_error() => Err(problem.into()),
        // Of a package that is there nothing is read.
        Ok(Ok(_) | Err(_)) | Err(_) => Ok(()),
    }
}

/// What a caller may queue, which nobody else does for the same one until the transaction ends.
struct Queue<'a> {
    user: &'a CurrentUser,
    open: i64,
    most: i64,
}

impl<'a> Queue<'a> {
    async fn open(
        state: &Devices,
        tx: &mut PgConnection,
        user: &'a CurrentUser,
    ) -> sqlx::Result<Self> {
        Ok(Self {
            user,
            open: db::count_locked(tx, &user.id).await?,
            most: state.config.queued_installations,
        })
    }

    /// Queues one installation on a device of the caller's that runs or is about to; the name of its saga.
    async fn add(
        &mut self,
        tx: &mut PgConnection,
        batch: &TaskId,
        id: &DeviceId,
    ) -> Result<String> {
        let device = lock_visible(tx, self.user, id).await?;
        match device.status {
            Status::Running | Status::Creating | Status::Starting | Status::Rebooting => {}
            Status::Error => return Err(Error::InError { device: id.clone() }),
            Status::Stopping | Status::Stopped | Status::Deleting | Status::Deleted => {
                return Err(Fault::NotRunning { device: id.clone() }.into());
            }
        }
        if self.open >= self.most {
            return Err(Fault::TooManyInstallations { most: self.most }.into());
        }
        let saga = db::insert(tx, batch, id, self.user.is_admin).await?;
        let saga = saga.ok_or_else(|| Error::Busy { device: id.clone() })?;
        self.open += 1;
        Ok(saga)
    }
}

fn outcome(id: DeviceId, queued: Result<String>) -> Outcome {
    let problem = queued.as_ref().err().map(told);
    Outcome {
        device_id: Some(id),
        name: None,
        success: queued.is_ok(),
        error: problem.as_ref().map(|problem| problem.message().to_owned()),
        said: None,
        code: problem.as_ref().map(platform::Problem::code),
        saga_id: queued.ok(),
        problem,
    }
}

impl From<Progress> for InstallationResult {
    fn from(progress: Progress) -> Self {
        Self {
            status: match progress.state.as_str() {
                "queued" => "pending",
                "running" => "installing",
                "done" => "installed",
                _ => "failed",
            },
            device_id: progress.device_id,
            saga_id: progress.saga_id,
            error: progress.error.filter(|_| progress.state != "done"),
        }
    }
}
