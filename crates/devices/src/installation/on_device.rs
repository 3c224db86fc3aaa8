//! Which apps of the service of apps are on a device, what was put there held against what the device itself says; and which
//! devices have an app.

use std::collections::HashSet;
use std::time::Duration;

use axum::extract::State;
use contracts::{AppId, DeviceId, Timestamp};
use platform::CurrentUser;
use platform::http::{Json, Path, Query, SliceQuery};
use platform::problem::ProblemBody;
use serde::Serialize;

use super::installed::{self, OnDevice};
use crate::access::remote;
use crate::batch::told;
use crate::device::Status;
use crate::device::db::find;
use crate::{Devices, Error, error::Result};

/// How long a device may take to tell its packages.
const ASK: Duration = Duration::from_secs(3);
/// How many apps are told of.
const MOST: i64 = 1000;

/// The apps on a device.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppsOnDevice {
    device_id: DeviceId,
    /// Whether the device itself says that it has those that are installed. Otherwise they are what was put there, which may have
    /// been removed by other ways since.
    is_checked: bool,
    /// Why the device did not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    unchecked_because: Option<String>,
    /// The latest first, 1000 at most.
    apps: Vec<AppOnDevice>,
}

/// One app on a device, or on its way to it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppOnDevice {
    app_id: AppId,
    /// The Android package; left out of one that was never installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    package_name: Option<String>,
    /// pending, installing or installed.
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    installed_at: Option<Timestamp>,
}

/// A device that has an app, or is to have it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceWithApp {
    device_id: DeviceId,
    device_name: String,
    /// The Android package; left out where it was never installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    package_name: Option<String>,
    /// pending, installing or installed.
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    installed_at: Option<Timestamp>,
}

/// Lists the caller's devices on which an app was put, or to which it is on its way, the latest first; administrators are told of
/// all devices. The devices themselves are not asked.
#[utoipa::path(get, path = "/devices/with-app/{app_id}", tag = "access", params(("app_id" = String, Path), SliceQuery), responses((status = 200, body = Vec<DeviceWithApp>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody)))]
pub async fn list_devices_with_app(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(app_id): Path<AppId>,
    Query(query): Query<SliceQuery>,
) -> Result<Json<Vec<DeviceWithApp>>> {
    let owner = (!user.is_admin).then_some(&user.id);
    let mut conn = state.platform.db.acquire().await?;
    let holders = installed::holders(&mut conn, &app_id, owner, query.slice()).await?;
    let shown = holders.into_iter().map(|holder| DeviceWithApp {
        device_id: holder.device_id,
        device_name: holder.device_name,
        package_name: holder.package_name,
        status: shown(&holder.state),
        installed_at: holder.installed_at,
    });
    Ok(Json(shown.collect()))
}

/// Lists the apps that were installed on a device from the service of apps, and are there by the word of the device where it
/// runs and answers within three seconds.
#[utoipa::path(get, path = "/devices/{id}/apps", tag = "access", params(("id" = String, Path)), responses((status = 200, body = AppsOnDevice), (status = 404)))]
pub async fn list_apps_on_device(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
) -> Result<Json<AppsOnDevice>> {
    let mut conn = state.platform.db.acquire().await?;
    let device = find(&mut conn, &id).await?;
    let device = device
        .filter(|device| user.may_see(&device.user_id) && device.status != Status::Deleted)
        .ok_or_else(|| Error::NoSuchDevice { device: id.clone() })?;
    // Read before the device is asked: what is put there in between is told of next time, and nothing new is held for gone.
    let mut apps = installed::list(&mut conn, &id, MOST).await?;
    drop(conn);
    let said = match device.status {
        Status::Running => remote::packages(&state, &user, &id, ASK).await,
        _ => Err(crate::access::Fault::NotRunning { device: id.clone() }.into()),
    };
    let unchecked_because = match &said {
        Ok(said) => {
            keep(&mut apps, said);
            None
        }
        Err(error) => Some(told(error).message().to_owned()),
    };
    Ok(Json(AppsOnDevice {
        device_id: id,
        is_checked: said.is_ok(),
        unchecked_because,
        apps: apps.into_iter().map(AppOnDevice::from).collect(),
    }))
}

/// Leaves out what a device does not have any more.
fn keep(apps: &mut Vec<OnDevice>, said: &[String]) {
    let said: HashSet<&str> = said.iter().map(String::as_str).collect();
    apps.retain(|app| {
        app.package_name
            .as_deref()
            .is_none_or(|name| said.contains(name))
    });
}

impl From<OnDevice> for AppOnDevice {
    fn from(app: OnDevice) -> Self {
        Self {
            app_id: app.app_id,
            package_name: app.package_name,
            status: shown(&app.state),
            installed_at: app.installed_at,
        }
    }
}

/// How the state of an installation is told.
fn shown(state: &str) -> &'static str {
    match state {
        "queued" => "pending",
        "running" => "installing",
        _ => "installed",
    }
}
