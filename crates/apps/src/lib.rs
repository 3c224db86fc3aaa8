//! The apps service: application packages, streamed into the object store and listed.

pub mod app;
mod config;
mod error;
pub mod review;
mod routes;

use std::sync::Arc;
use std::time::Duration;

use coordination::cron::Job;
use platform::Platform;
use platform::lifecycle::{Tasks, Tick};
use platform::objects::Objects;
use tokio::sync::Semaphore;

pub use config::Config;
pub use error::{Error, Result};
pub use routes::{openapi, router};

/// The state of the service.
#[derive(Clone)]
pub struct Apps {
    platform: Platform,
    config: Arc<Config>,
    objects: Objects,
    /// Uploads and readings of manifests take memory; each permit is one at work on this instance.
    uploads: Arc<Semaphore>,
    readings: Arc<Semaphore>,
}

const SWEEP_PERIOD: Duration = Duration::from_secs(3600);
const UPLOADS_AT_ONCE: usize = 64;

impl Apps {
    /// Opens the object store.
    ///
    /// # Errors
    /// Where its folder cannot be made.
    pub async fn new(platform: &Platform, config: Config) -> anyhow::Result<Self> {
        let objects = Objects::open(&platform.settings.objects_folder)?;
        Ok(Self {
            platform: platform.clone(),
            config: Arc::new(config),
            objects,
            uploads: Arc::new(Semaphore::new(UPLOADS_AT_ONCE)),
            readings: Arc::new(Semaphore::new(1)),
        })
    }

    /// Starts sweeping away objects that no app names.
    ///
    /// # Errors
    /// None.
    pub async fn spawn_jobs(&self, tasks: &Tasks) -> anyhow::Result<()> {
        let state = self.clone();
        tasks.every("apps.sweep", SWEEP_PERIOD, move || {
            let state = state.clone();
            async move { state.sweep().await }
        });
        Ok(())
    }

    /// One sweep: deletes objects of more than a day ago that no app names.
    ///
    /// # Errors
    /// Where a store does not answer.
    pub async fn sweep(&self) -> anyhow::Result<Tick> {
        app::jobs::sweep(self).await
    }

    /// The service has no locked jobs yet.
    pub fn cron_jobs(&self) -> Vec<Job> {
        Vec::new()
    }
}
