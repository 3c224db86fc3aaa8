//! Which apps are on a device, and on which devices an app is.

use std::collections::HashMap;

use axum::extract::State;
use contracts::{AppId, DeviceId, Timestamp};
use platform::http::{Json, Path, Query, Slice, SliceQuery};
use platform::problem::ProblemBody;
use platform::{CurrentUser, Problem};
use serde::{Deserialize, Serialize};

use super::devices::{ask, read};
use crate::app::api::visible;
use crate::app::{App, db};
use crate::{Apps, Result};

/// An app that is on a device, or on its way to it. What is told of the app itself is left out where it was deleted since, or is
/// no longer for the caller.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstalledApp {
    /// Names the app on this device.
    id: String,
    device_id: DeviceId,
    application_id: AppId,
    /// The Android package.
    #[serde(skip_serializing_if = "Option::is_none")]
    package_name: Option<String>,
    #[serde(flatten)]
    about: Option<About>,
    /// pending, installing or installed.
    status: String,
    /// Whether the device itself said just now that it is there. Otherwise it is what was put there, and may have been removed by
    /// other ways since.
    is_checked: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    installed_at: Option<Timestamp>,
}

/// What is told of an app.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct About {
    /// What people call it.
    app_name: String,
    /// The same as `appName`.
    name: String,
    /// The version as people read it.
    version_name: String,
    /// The same as `versionName`.
    version: String,
    /// The version as Android compares it.
    version_code: i64,
    /// Bytes.
    size: i64,
}

/// What the service of devices says.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    device_id: DeviceId,
    is_checked: bool,
    apps: Vec<ToldApp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ToldApp {
    app_id: AppId,
    package_name: Option<String>,
    status: String,
    installed_at: Option<Timestamp>,
}

/// Lists the apps that were installed on a device of the caller's, the latest first, and those on their way. The device is asked
/// where it runs: what it does not have any more is left out. An API key needs `apps:read` and `devices:read`.
#[utoipa::path(get, path = "/apps/devices/{device_id}/apps", tag = "installations", params(("device_id" = String, Path), SliceQuery),
    responses((status = 200, body = Vec<InstalledApp>), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn list_apps_of_device(
    State(state): State<Apps>,
    user: CurrentUser,
    Path(device_id): Path<String>,
    Query(query): Query<SliceQuery>,
) -> Result<Json<Vec<InstalledApp>>> {
    if !contracts::id::is_valid(&device_id) {
        return Err(Problem::not_found("device").into());
    }
    let told = ask(&state, &user, &format!("/devices/{device_id}/apps"), None).await?;
    let told: Told = read(told)?;
    let slice = query.slice();
    let (limit, offset) = (bounded(slice.limit), bounded(slice.offset));
    let wanted: Vec<ToldApp> = told.apps.into_iter().skip(offset).take(limit).collect();
    let ids: Vec<&str> = wanted.iter().map(|app| app.app_id.as_str()).collect();
    let mut conn = state.platform.db.acquire().await?;
    let found = db::find_all(
        &mut conn,
        &ids,
        db::Filter::visible_to(&user).viewer.as_ref(),
    )
    .await?;
    let found: HashMap<&AppId, &App> = found.iter().map(|app| (&app.id, app)).collect();
    let shown = wanted.into_iter().map(|app| {
        let about = found.get(&app.app_id);
        let is_installed = app.package_name.is_some();
        let package_name = app.package_name;
        InstalledApp {
            id: format!("{}:{}", told.device_id, app.app_id),
            device_id: told.device_id.clone(),
            package_name: package_name.or_else(|| about.map(|app| app.package_name.clone())),
            about: about.map(|app| About::from(*app)),
            application_id: app.app_id,
            status: app.status,
            is_checked: told.is_checked && is_installed,
            installed_at: app.installed_at,
        }
    });
    Ok(Json(shown.collect()))
}

/// A device of the caller's that has an app, or is to have it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstalledOn {
    /// Names the app on this device.
    id: String,
    application_id: AppId,
    #[serde(flatten)]
    device: HoldingDevice,
}

/// What the service of devices tells of one.
#[derive(Clone, Debug, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HoldingDevice {
    device_id: DeviceId,
    /// What its owner calls it.
    device_name: String,
    /// The Android package; left out where it was never installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    package_name: Option<String>,
    /// pending, installing or installed.
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    installed_at: Option<Timestamp>,
}

/// Lists the caller's devices on which an app was put, or to which it is on its way, the latest first; administrators are told of
/// all devices. The devices themselves are not asked. An API key needs `apps:read` and `devices:read`.
#[utoipa::path(get, path = "/apps/{app_id}/devices", tag = "installations", params(("app_id" = AppId, Path), SliceQuery),
    responses((status = 200, body = Vec<InstalledOn>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn list_devices_of_app(
    State(state): State<Apps>,
    user: CurrentUser,
    Path(app_id): Path<AppId>,
    Query(query): Query<SliceQuery>,
) -> Result<Json<Vec<InstalledOn>>> {
    let app = visible(&state, &user, app_id).await?;
    let Slice { limit, offset } = query.slice();
    let path = format!("/devices/with-app/{}?limit={limit}&offset={offset}", app.id);
    let told: Vec<HoldingDevice> = read(ask(&state, &user, &path, None).await?)?;
    let shown = told.into_iter().map(|device| InstalledOn {
        id: format!("{}:{}", device.device_id, app.id),
        application_id: app.id.clone(),
        device,
    });
    Ok(Json(shown.collect()))
}

impl From<&App> for About {
    fn from(app: &App) -> Self {
        Self {
            app_name: app.name.clone(),
            name: app.name.clone(),
            version_name: app.version_name.clone(),
            version: app.version.clone(),
            version_code: app.version_code,
            size: app.size,
        }
    }
}

fn bounded(number: i64) -> usize {
    usize::try_from(number).unwrap_or_default()
}
