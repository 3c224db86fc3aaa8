//! A removal of an app from a device: what was written down of the app is forgotten with it.

use contracts::DeviceId;

use super::installed;
use crate::Devices;

/// A removal that is under way. Where it is never ended, the app stays written down, and the device says otherwise.
#[derive(Debug)]
pub struct Removal<'a> {
    state: &'a Devices,
    device: &'a DeviceId,
    package_name: &'a str,
    /// What put the app there, if that is known.
    installation: Option<i64>,
}

impl<'a> Removal<'a> {
    /// Before the device is told.
    ///
    /// # Errors
    /// Where the database does not answer.
    pub async fn begin(
        state: &'a Devices,
        device: &'a DeviceId,
        package_name: &'a str,
    ) -> sqlx::Result<Self> {
        let mut conn = state.platform.db.acquire().await?;
        let installation = installed::find(&mut conn, device, package_name).await?;
        Ok(Self {
            state,
            device,
            package_name,
            installation,
        })
    }

    /// When the device does not have the app any more.
    ///
    /// # Errors
    /// Where the database does not answer.
    pub async fn end(self) -> sqlx::Result<()> {
        let Some(installation) = self.installation else {
            return Ok(());
        };
        let mut conn = self.state.platform.db.acquire().await?;
        installed::forget(&mut conn, self.device, self.package_name, installation).await
    }
}
