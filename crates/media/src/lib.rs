//! The media service: pictures are sent in, and tasks make something of them, each once, whichever replica dies.
//!
//! A task is a row with steps; the work on a step is a job that one worker at a time leases. The worker's fence stands
//! in every write of its, so one that was frozen and comes back changes nothing. Some things are made here, others by
//! providers, which are asked how it goes until they say that it is done, or say so themselves.

mod callback;
mod config;
mod error;
pub mod feature;
mod fetch;
pub mod job;
mod metrics;
pub mod provider;
mod routes;
pub mod stitch;
pub mod task;
mod text;
pub mod upload;
mod video;

use std::sync::Arc;

use coordination::cron::Job;
use platform::Platform;
use platform::lifecycle::Tasks;
use platform::objects::Objects;
use tokio::sync::{Notify, Semaphore};

pub use config::Config;
pub use error::{Error, Result};
use fetch::Fetcher;
use job::Lane;
use provider::Providers;
pub use routes::{openapi, router};

/// How many files may come in at once through a replica; each is in memory until it is whole.
const UPLOADS_AT_ONCE: usize = 24;

/// The state of the service.
#[derive(Clone)]
pub struct Media {
    platform: Platform,
    config: Arc<Config>,
    objects: Objects,
    fetch: Fetcher,
    providers: Providers,
    /// Permits for work that keeps a core busy.
    cores: Arc<Semaphore>,
    /// Permits for files that come in.
    incoming: Arc<Semaphore>,
    /// Says that there is work, so that this replica does not wait for its next look.
    work: Arc<Bells>,
}

/// Says to the workers that there may be something to do.
#[derive(Default)]
struct Bells {
    here: Notify,
    elsewhere: Notify,
}

impl Bells {
    fn wake(&self) {
        self.here.notify_one();
        self.elsewhere.notify_one();
    }

    async fn notified(&self, lane: Lane) {
        match lane {
            Lane::Here => self.here.notified().await,
            Lane::Elsewhere => self.elsewhere.notified().await,
        }
    }
}

impl Media {
    /// Opens the object store.
    ///
    /// # Errors
    /// Where its folder cannot be made.
    pub async fn new(platform: &Platform, config: Config) -> anyhow::Result<Self> {
        let objects = Objects::open(&platform.settings.objects)?;
        Ok(Self {
            platform: platform.clone(),
            fetch: Fetcher::new(platform, &config)?,
            providers: Providers::new(platform, &config.providers)?,
            cores: Arc::new(Semaphore::new(config.workers)),
            incoming: Arc::new(Semaphore::new(UPLOADS_AT_ONCE)),
            work: Arc::default(),
            config: Arc::new(config),
            objects,
        })
    }

    /// Starts the workers, the questions to providers, and the end of tasks whose deadline passed.
    ///
    /// # Errors
    /// None.
    pub async fn spawn_jobs(&self, tasks: &Tasks) -> anyhow::Result<()> {
        for (name, lane) in [("media.work", Lane::Here), ("media.calls", Lane::Elsewhere)] {
            tasks.spawn(
                name,
                job::worker::work(self.clone(), lane, tasks.stopping()),
            );
        }
        let state = self.clone();
        tasks.every("media.expire", self.config.poll, move || {
            let state = state.clone();
            async move { job::expire(&state).await }
        });
        let state = self.clone();
        tasks.every("media.poll", self.config.poll, move || {
            let state = state.clone();
            async move { job::poll::poll(&state).await }
        });
        let state = self.clone();
        tasks.every("media.withdraw", self.config.poll, move || {
            let state = state.clone();
            async move { job::poll::withdraw(&state).await }
        });
        Ok(())
    }

    /// The jobs that one replica at a time runs. They need no guard of their runs: what is deleted or ended stays so, and
    /// what is counted is counted anew.
    pub fn cron_jobs(&self) -> Vec<Job> {
        let (files, health, tasks, counts) =
            (self.clone(), self.clone(), self.clone(), self.clone());
        vec![
            Job::new(
                "media-cleanup",
                self.config.cleanup_schedule.clone(),
                move |run| {
                    let state = files.clone();
                    async move { upload::cleanup::run(&state, &run.cancelled).await }
                },
            ),
            Job::new(
                "media-provider-health",
                self.config.health_schedule.clone(),
                move |run| {
                    let state = health.clone();
                    async move { provider::health::check_all(&state, &run.cancelled).await }
                },
            ),
            Job::new(
                "media-stale-tasks",
                self.config.stale_schedule.clone(),
                move |_| {
                    let state = tasks.clone();
                    async move { job::end_stale(&state).await }
                },
            ),
            Job::new(
                "media-statistics",
                self.config.statistics_schedule.clone(),
                move |_| {
                    let state = counts.clone();
                    async move { job::roll_up(&state).await }
                },
            ),
        ]
    }

    /// Does what is due, once, as the periodic steps would; for tests.
    ///
    /// # Errors
    /// Where a store does not answer.
    pub async fn run_jobs(&self) -> anyhow::Result<()> {
        job::expire(self).await?;
        job::poll::poll(self).await?;
        job::poll::withdraw(self).await?;
        loop {
            let claimed = job::claim(self, self.config.workers).await?;
            if claimed.is_empty() {
                return Ok(());
            }
            for work in claimed {
                job::worker::perform(self, &work).await?;
            }
        }
    }
}
