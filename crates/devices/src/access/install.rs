//! Putting an app of the service of apps on a device.

use std::time::Duration;

use axum::extract::State;
use contracts::{AppId, DeviceId};
use garde::Validate;
use platform::CurrentUser;
use platform::http::{Json, Path};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::adb::{self, AdbError, InstallError};
use super::remote::Done;
use super::words::first_line;
use super::{Fault, reach};
use crate::error::Result;
use crate::{Devices, metrics};

/// How long the installation on one device may take.
const WITHIN: Duration = Duration::from_secs(60);
const TRIED: &str = "install the app";

/// Which app is installed.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstallApp {
    /// An app of the service of apps that the caller may see.
    #[garde(skip)]
    app_id: AppId,
}

/// Installs an app on a device, or the same app again: what is there of it is replaced, its data stays. The package goes from
/// the service of apps to the device as a stream, within 60 s.
#[utoipa::path(post, path = "/devices/{id}/install", tag = "access", params(("id" = String, Path)), request_body = InstallApp,
    responses((status = 200, body = Done), (status = 400), (status = 404, description = "No such device or no such app"), (status = 409, description = "The device does not run, or does not take the app"), (status = 429), (status = 502), (status = 503), (status = 504)))]
pub async fn install_app(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
    Json(body): Json<InstallApp>,
) -> Result<Json<Done>> {
    let name = install(&state, &user, &id, &body.app_id, Instant::now() + WITHIN).await?;
    Ok(Json(Done {
        message: format!("{name} is installed"),
    }))
}

/// Installs an app on a device of the caller's; the name of the Android package.
///
/// # Errors
/// Where the device is not reached, the package does not come, or the device refuses it.
pub async fn install(
    state: &Devices,
    user: &CurrentUser,
    id: &DeviceId,
    app: &AppId,
    until: Instant,
) -> Result<String> {
    let _turn = state.access.commands.begin(id)?;
    let fault = |source| Fault::Adb {
        device: id.clone(),
        tried: TRIED,
        source,
    };
    let ready = async {
        // The device first: to ask it costs less than to begin a package.
        let stream = reach::adb(state, user, id).await?;
        let package = state.packages.fetch(user, app).await?;
        Ok::<_, crate::Error>((stream, package))
    };
    let ready = timeout_at(until, ready).await;
    let (stream, package) = ready.map_err(|_| fault(AdbError::Late))??;
    let (name, size) = (package.name.clone(), package.size);
    let said = adb::install(stream, size, package.stream(), until).await;
    metrics::command("install", if said.is_ok() { "done" } else { "failed" });
    let said = match said {
        Ok(said) => said,
        Err(InstallError::Device(source)) => return Err(fault(source).into()),
        Err(InstallError::Package(source)) => {
            let device = id.clone();
            return Err(Fault::Package { device, source }.into());
        }
    };
    if !said.lines().any(|line| line.trim() == "Success") {
        let said = format!("{name} was not installed: {}", first_line(&said));
        let device = id.clone();
        return Err(Fault::Refused { device, said }.into());
    }
    Ok(name)
}
