//! The apps service: application packages, streamed into the object store and listed.

pub mod app;
mod config;
mod error;
mod routes;

use std::sync::Arc;

use coordination::cron::Job;
use platform::Platform;
use platform::lifecycle::Tasks;
use platform::objects::Objects;

pub use config::Config;
pub use error::{Error, Result};
pub use routes::router;

/// The state of the service.
#[derive(Clone)]
pub struct Apps {
    platform: Platform,
    config: Arc<Config>,
    objects: Objects,
}

impl Apps {
    /// Opens the object store.
    ///
    /// # Errors
    /// Where its folder cannot be made.
    pub async fn new(platform: &Platform, config: Config) -> anyhow::Result<Self> {
        let objects = Objects::open(&platform.settings.objects_folder)?;
        Ok(Self { platform: platform.clone(), config: Arc::new(config), objects })
    }

    /// The service has no periodic work yet.
    ///
    /// # Errors
    /// None.
    pub async fn spawn_jobs(&self, _tasks: &Tasks) -> anyhow::Result<()> {
        Ok(())
    }

    /// The service has no locked jobs yet.
    pub fn cron_jobs(&self) -> Vec<Job> {
        Vec::new()
    }
}
