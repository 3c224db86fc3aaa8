//! Periodic jobs that run once a slot in the whole cluster, whichever replicas are alive.
//!
//! The slot is computed from the schedule and the clock of the database. Every replica that sees it due tries the
//! Redlock `cron:{job}`; the winner locks the row of the job, decides again, and inserts `(job, slot)` under the primary
//! key, in one transaction. So the lock keeps replicas out of each other's way, and the database decides: also where a
//! replica slept between the two. The holder says in its row that it is alive; when it falls silent for longer than the
//! lock lives, the next replica takes the run over with a higher fencing token. A body may thus be *begun* twice for a
//! slot, after a crash, and guards its writes with [`Run::guard`]: then a holder that was stopped and goes on after another
//! has run the slot changes nothing. A body that also ends in the transaction of its effect ([`Run::complete`]) has it
//! exactly once. Without Redis or PostgreSQL no job begins; what was missed is made good as its [`CatchUp`] says, and what
//! falls due while the job runs is treated as its [`Overlap`] says.
//!
//! ```
//! use std::time::Duration;
//! use coordination::cron::{CatchUp, Job, Overlap, TimeZone};
//!
//! let report = Job::new("daily-report", "0 6 * * *", |run| async move {
//!     // … compute; then write in the transaction that `run.guard().begin(&db).await?` gives.
//!     let _ = run.guard();
//!     Ok(())
//! })
//! .time_zone(TimeZone::Europe__Berlin)
//! .jitter(Duration::from_secs(300))
//! .timeout(Duration::from_secs(1800))
//! .catch_up(CatchUp::Last)
//! .overlap(Overlap::Skip)
//! .pause_after(5);
//! # let _ = report;
//! ```
//!
//! Where the clocks of a zone are changed a fixed time (one second, one minute, one hour) runs once on either day:
//! at the first instant after the hour that is skipped, in the first of the two hours that are called the same. Anything
//! else is an interval and follows the real time.

mod attend;
mod db;
mod job;
mod jobs;
mod run;
mod schedule;
mod scheduler;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::redlock::Redlock;
use crate::{Keys, StoreError};

pub use chrono_tz::Tz as TimeZone;
pub(crate) use db::MOST_ATTEMPTS;
pub use job::{CatchUp, Job, MOST_AT_ONCE, Overlap, Run, UnknownPolicy};
pub use jobs::{JobOverview, Jobs, PastRun, Told};
pub use schedule::Schedule;
pub use scheduler::Scheduler;

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
    /// A replica announced this job once, and none runs it now.
    #[error("no replica runs job {job}: the last one that did was heard of at {seen_at}")]
    Unheard {
        /// The name.
        job: String,
        /// When a replica last said that it runs the job.
        seen_at: DateTime<Utc>,
    },
    /// A store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Runs jobs.
#[derive(Clone, Debug)]
pub struct Cron {
    db: PgPool,
    redlock: Redlock,
    keys: Keys,
    instance: String,
    zone: TimeZone,
    nudge: Arc<Notify>,
    stop_asked: Arc<Notify>,
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
            zone: TimeZone::UTC,
            nudge: Arc::default(),
            stop_asked: Arc::default(),
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

    /// Changes the zone of schedules that name none; UTC unless changed. All replicas should agree on it.
    pub fn with_time_zone(self, zone: TimeZone) -> Self {
        Self { zone, ..self }
    }

    /// What became of the jobs, and their pauses and triggers. What is asked for here this replica sees at once, the
    /// others within five seconds.
    pub fn jobs(&self) -> Jobs {
        Jobs::of(self.db.clone(), self.nudge.clone())
    }

    /// Runs the jobs until `stop`; then cancels those that run, waits for them for the grace, and returns. Fails at
    /// once where a schedule is wrong or a name is there twice, and never later.
    pub async fn run(self, jobs: Vec<Job>, stop: CancellationToken) -> Result<(), CronError> {
        Scheduler::new(self, jobs, stop)?.run().await;
        Ok(())
    }

    /// After how long a holder that says nothing has lost its run.
    fn silence(&self) -> Duration {
        self.redlock.ttl()
    }
}
