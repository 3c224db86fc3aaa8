//! Installing and removing apps.

use axum::extract::State;
use contracts::{AppId, DeviceId};
use garde::Validate;
use platform::http::{Json, Path};
use platform::problem::ProblemBody;
use platform::{CurrentUser, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::devices::{ask, read};
use crate::app::{api::visible, upload::is_package_name};
use crate::{Apps, Result};

/// Devices of one call.
const MOST: usize = 100;

/// Which app, and on which devices.
#[derive(Clone, Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OnDevices {
    /// The app.
    #[garde(skip)]
    application_id: Option<AppId>,
    /// The same as `applicationId`.
    #[garde(skip)]
    app_id: Option<AppId>,
    /// The Android package, in place of the app where it is to be removed.
    #[garde(length(max = 200))]
    package_name: Option<String>,
    /// 1 to 100 devices.
    #[garde(length(min = 1, max = MOST))]
    device_ids: Option<Vec<DeviceId>>,
    /// One device.
    #[garde(skip)]
    device_id: Option<DeviceId>,
}

/// What became of each device.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct OnEach {
    results: Vec<OnOne>,
    message: String,
}

/// What became of one device.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OnOne {
    device_id: String,
    success: bool,
    /// By it `GET /apps/install/saga/{sagaId}` tells how it goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    saga_id: Option<String>,
    /// pending, where it is queued; uninstalled; or failed.
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// How an installation goes.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstallSaga {
    saga_id: String,
    /// pending, completed or failed.
    status: String,
    current_step: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<String>,
}

/// What the service of devices says of each device.
#[derive(Deserialize)]
struct Report {
    results: Vec<Outcome>,
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    device_id: Option<String>,
    success: bool,
    error: Option<String>,
    saga_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Saga {
    saga_id: String,
    status: String,
    current_step: String,
    error: Option<String>,
}

impl OnDevices {
    fn app(&self) -> Option<AppId> {
        self.application_id.clone().or(self.app_id.clone())
    }

    fn devices(&self) -> Result<Vec<DeviceId>> {
        let mut devices = self.device_ids.clone().unwrap_or_default();
        devices.extend(self.device_id.clone());
        match devices.len() {
            0 => Err(Problem::invalid_field("deviceIds", "names no device").into()),
            1..=MOST => Ok(devices),
            _ => Err(Problem::invalid_field("deviceIds", format!("are more than {MOST}")).into()),
        }
    }
}

/// Queues the installation of an app on devices of the caller's; what cannot be queued says why. An API key needs `apps:write`
/// and `devices:write`.
#[utoipa::path(post, path = "/apps/install", tag = "installations", request_body = OnDevices,
    responses((status = 200, body = OnEach), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody), (status = 429, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn install_apps(
    State(state): State<Apps>,
    user: CurrentUser,
    Json(body): Json<OnDevices>,
) -> Result<Json<OnEach>> {
    let devices = body.devices()?;
    let id = body
        .app()
        .ok_or_else(|| Problem::invalid_field("applicationId", "is required"))?;
    let app = visible(&state, &user, id).await?;
    let body = json!({ "appId": app.id, "deviceIds": devices });
    let report = ask(&state, &user, "/devices/batch/install", Some(&body)).await?;
    Ok(Json(on_each(report, "pending")?))
}

/// Removes an app from devices of the caller's. From one where it is not it counts as removed. An API key needs `apps:write`
/// and `devices:write`.
#[utoipa::path(post, path = "/apps/uninstall", tag = "installations", request_body = OnDevices,
    responses((status = 200, body = OnEach), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn uninstall_apps(
    State(state): State<Apps>,
    user: CurrentUser,
    Json(body): Json<OnDevices>,
) -> Result<Json<OnEach>> {
    let devices = body.devices()?;
    let name = match (body.app(), body.package_name) {
        (Some(id), _) => visible(&state, &user, id).await?.package_name,
        (None, Some(name)) if is_package_name(&name) => name,
        (None, Some(_)) => {
            let why = "is not a package name such as com.example.app";
            return Err(Problem::invalid_field("packageName", why).into());
        }
        (None, None) => return Err(Problem::invalid_field("applicationId", "is required").into()),
    };
    let body = json!({ "packageName": name, "deviceIds": devices });
    let report = ask(&state, &user, "/devices/batch/uninstall", Some(&body)).await?;
    Ok(Json(on_each(report, "uninstalled")?))
}

/// Shows how an installation goes.
#[utoipa::path(get, path = "/apps/install/saga/{saga_id}", tag = "installations", params(("saga_id" = String, Path)), responses((status = 200, body = InstallSaga), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn find_install_saga(
    State(state): State<Apps>,
    user: CurrentUser,
    Path(saga_id): Path<String>,
) -> Result<Json<InstallSaga>> {
    if !contracts::id::is_valid(&saga_id) {
        return Err(Problem::not_found("saga").into());
    }
    let told = ask(&state, &user, &format!("/devices/saga/{saga_id}"), None).await?;
    let saga: Saga = read(told)?;
    Ok(Json(InstallSaga {
        saga_id: saga.saga_id,
        status: saga.status,
        current_step: saga.current_step,
        error_message: saga.error,
    }))
}

fn on_each(report: Value, done: &'static str) -> Result<OnEach> {
    let report: Report = read(report)?;
    let on_one = |outcome: Outcome| OnOne {
        device_id: outcome.device_id.unwrap_or_default(),
        success: outcome.success,
        saga_id: outcome.saga_id,
        status: if outcome.success { done } else { "failed" },
        error: outcome.error,
    };
    Ok(OnEach {
        results: report.results.into_iter().map(on_one).collect(),
        message: report.message,
    })
}
