//! Periodic jobs that run once a slot in the whole cluster, whichever replicas are alive.
//!
//! The slot is computed from the schedule and the clock of the database. Every replica that sees it due tries the
//! Redlock `cron:{job}`; the winner inserts `(job, slot)` under the primary key and runs. So the lock keeps replicas out
//! of each other's way, and the database decides. The holder says in its row that it is alive; when it falls silent for
//! longer than the lock lives, the next replica takes the run over with a higher fencing token. A body may thus be
//! *begun* twice for a slot, after a crash, and guards its writes with [`Run::guard`]. Without Redis or PostgreSQL no
//! job begins; what was missed is made good as its [`CatchUp`] says.

mod db;
mod history;
mod job;
mod ticker;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::redlock::Redlock;
use crate::{Keys, StoreError};

pub use history::{JobOverview, PastRun};
use job::Schedule;
pub use job::{CatchUp, Job, Run};

/// Why cron could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CronError {
    /// A schedule that is none.
    #[error("job {job} has the schedule `{schedule}`, which is none")]
    Schedule {
        /// The job.
        job: String,
        /// Its schedule.
        schedule: String,
        /// What is wrong with it.
        source: Box<croner::errors::CronError>,
    },
    /// Two jobs of one name.
    #[error("there are two jobs called {job}")]
    Duplicate {
        /// The name.
        job: String,
    },
    /// No replica ever announced this job.
    #[error("there is no job {job}")]
    UnknownJob {
        /// The name.
        job: String,
    },
    /// A store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Runs jobs, and tells about them.
#[derive(Clone, Debug)]
pub struct Cron {
    db: PgPool,
    redlock: Redlock,
    keys: Keys,
    instance: String,
    nudge: Arc<Notify>,
    grace: Duration,
}

impl Cron {
    /// Runs jobs as `instance_name`, which stands in the history.
    pub fn new(db: PgPool, redlock: Redlock, instance_name: String) -> Self {
        Self {
            db,
            redlock,
            keys: Keys::new(""),
            instance: instance_name,
            nudge: Arc::default(),
            grace: Duration::from_secs(5),
        }
    }

    /// Takes the Redlocks under a prefix; all replicas of a cluster must agree on it.
    pub fn with_keys(self, keys: Keys) -> Self {
        Self { keys, ..self }
    }

    /// Changes how long a cancelled run may take to end before it is dropped; five seconds unless changed.
    pub fn with_grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// Runs the jobs until `stop`; then cancels those that run, waits for them for the grace, and returns. Fails at
    /// once where a schedule is wrong or a name is there twice, and never later.
    pub async fn run(self, jobs: Vec<Job>, stop: CancellationToken) -> Result<(), CronError> {
        let mut names = HashSet::new();
        let mut planned = Vec::with_capacity(jobs.len());
        for job in jobs {
            if !names.insert(job.name) {
                return Err(CronError::Duplicate {
                    job: job.name.to_owned(),
                });
            }
            planned.push((Schedule::parse(job.name, &job.schedule)?, job));
        }
        let mut tickers = JoinSet::new();
        for (schedule, job) in planned {
            let ticker = ticker::Ticker::new(self.clone(), job, schedule, stop.clone());
            tickers.spawn(ticker.run());
        }
        while let Some(ended) = tickers.join_next().await {
            if let Err(error) = ended {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a cron ticker broke off"
                );
            }
        }
        Ok(())
    }
}
