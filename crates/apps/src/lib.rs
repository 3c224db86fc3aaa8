//! The apps service: application packages, streamed into the object store and listed.

pub mod app;
mod config;
mod error;
mod routes;
mod store;

use std::sync::Arc;

use coordination::cron::Job;
use platform::Platform;
use platform::lifecycle::Tasks;

pub use config::Config;
pub use error::{Error, Result};
pub use routes::router;
pub use store::Store;

/// The state of the service.
#[derive(Clone)]
pub struct Apps {
    platform: Platform,
    config: Arc<Config>,
    store: Store,
}

impl Apps {
    /// Opens the object store.
    ///
    /// # Errors
    /// Where its folder cannot be made.
    pub async fn new(platform: &Platform, config: Config) -> anyhow::Result<Self> {
        let store = Store::open(&config.folder)?;
        Ok(Self { platform: platform.clone(), config: Arc::new(config), store })
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
