//! Putting an app of the service of apps on a device: the package goes from the service to the device as a stream.

use contracts::{AppId, DeviceId};
use tokio::time::{Instant, timeout_at};

use super::adb::{self, AdbError, InstallError};
use super::words::first_line;
use super::{Fault, Viewer, reach};
use crate::Devices;
use crate::error::Result;

const TRIED: &str = "install the app";

/// Installs an app on a device, both of which somebody may see; the name of the Android package.
///
/// # Errors
/// Where the device is not reached, the package does not come, or the device refuses it.
pub async fn install(
    state: &Devices,
    viewer: &Viewer,
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
        let stream = reach::adb(state, viewer, id).await?;
        let package = state.packages.fetch(viewer, app).await?;
        Ok::<_, crate::Error>((stream, package))
    };
    let ready = timeout_at(until, ready).await;
    let (stream, package) = ready.map_err(|_| fault(AdbError::Late))??;
    let (name, size) = (package.name.clone(), package.size);
    let said = adb::install(stream, size, package.stream(), until).await;
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
