//! The apps service: application packages, streamed into the object store and listed.

pub mod app;
mod config;
mod error;
pub mod install;
pub mod resumable;
pub mod review;
mod routes;

use std::sync::Arc;
use std::time::Duration;

use contracts::Service;
use coordination::cron::Job;
use platform::Platform;
use platform::http::Sibling;
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
    devices: Sibling,
    /// Uploads and readings of manifests take memory; each permit is one at work on this instance.
    uploads: Arc<Semaphore>,
    readings: Arc<Semaphore>,
}

/// How soon a replica finds an upload whose replica died over it.
const ASSEMBLE_PERIOD: Duration = Duration::from_secs(5);
const SWEEP_DEADLINE: Duration = Duration::from_secs(1800);
const UPLOADS_AT_ONCE: usize = 64;

impl Apps {
    /// Opens the object store.
    ///
    /// # Errors
    /// Where its folder cannot be made.
    pub async fn new(platform: &Platform, config: Config) -> anyhow::Result<Self> {
        let objects = Objects::open(&platform.settings.objects)?;
        Ok(Self {
            platform: platform.clone(),
            config: Arc::new(config),
            objects,
            devices: Sibling::new(platform, Service::Apps, Service::Devices),
            uploads: Arc::new(Semaphore::new(UPLOADS_AT_ONCE)),
            readings: Arc::new(Semaphore::new(1)),
        })
    }

    /// Starts what every replica does beside the requests.
    ///
    /// # Errors
    /// None.
    pub async fn spawn_jobs(&self, tasks: &Tasks) -> anyhow::Result<()> {
        let state = self.clone();
        tasks.every("apps.assemble", ASSEMBLE_PERIOD, move || {
            let state = state.clone();
            async move { resumable::jobs::assemble(&state).await }
        });
        Ok(())
    }

    /// Assembles every upload that waits for it, for tests.
    ///
    /// # Errors
    /// Where a store does not answer.
    pub async fn assemble(&self) -> anyhow::Result<()> {
        while resumable::jobs::assemble(self).await? == Tick::More {}
        Ok(())
    }

    /// One sweep: forgets uploads that have expired, and deletes objects of more than a day ago that nothing names.
    ///
    /// # Errors
    /// Where a store does not answer.
    pub async fn sweep(&self) -> anyhow::Result<()> {
        resumable::jobs::sweep(self).await?;
        app::jobs::sweep(self).await
    }

    /// What runs once in the whole cluster.
    pub fn cron_jobs(&self) -> Vec<Job> {
        let state = self.clone();
        let sweep = Job::new("apps-sweep", "23 * * * *", move |_| {
            let state = state.clone();
            // Deleting what nothing names can be done twice.
            async move { state.sweep().await }
        });
        vec![sweep.timeout(SWEEP_DEADLINE)]
    }
}
