//! What a job is: a name, a schedule, a body, and what is owed when slots were missed.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Timelike, Utc};
use tokio_util::sync::CancellationToken;

use super::CronError;
use crate::lease::{Fence, Guard};

type Body = dyn Fn(Run) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>> + Send + Sync;

/// What happens to slots that passed while no replica ran, or whose run was abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatchUp {
    /// They are skipped.
    None,
    /// The latest one is made good.
    Last,
    /// Every one in this window before now is made good, oldest first.
    All(TimeDelta),
}

impl fmt::Display for CatchUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Last => f.write_str("last"),
            Self::All(window) => write!(f, "all({}s)", window.num_seconds()),
        }
    }
}

/// One run of a job, as its body sees it.
#[derive(Clone, Debug)]
pub struct Run {
    /// The job.
    pub job: &'static str,
    /// The moment of the schedule this run is for; of a run asked for by hand, the moment of asking.
    pub slot: DateTime<Utc>,
    /// Higher than that of every earlier run of the job.
    pub fence: Fence,
    /// Which attempt at this slot this is, from 1.
    pub attempt: u32,
    /// Fires when the run must end: shutdown, lost lock, time-out.
    pub cancelled: CancellationToken,
}

impl Run {
    /// What a transaction of the body needs to prove that no later run has begun.
    pub fn guard(&self) -> Guard {
        Guard {
            name: fence_key(self.job),
            fence: self.fence,
        }
    }
}

/// The key of a job's tokens in `coordination.fences`.
pub fn fence_key(job: &str) -> String {
    format!("cron:{job}")
}

/// A periodic job. Runs of one job never overlap; a slot that comes while the job still runs waits for its end.
#[derive(Clone)]
pub struct Job {
    /// Unique in the cluster, and the same in every replica.
    pub name: &'static str,
    /// Five fields, or six with seconds first, in UTC.
    pub schedule: String,
    /// What happens to missed slots; [`CatchUp::Last`] unless changed.
    pub catch_up: CatchUp,
    /// How long a run may take before it is cancelled; five minutes unless changed.
    pub timeout: Duration,
    body: Arc<Body>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("name", &self.name)
            .field("schedule", &self.schedule)
            .finish_non_exhaustive()
    }
}

impl Job {
    /// A job with the usual policies. The body must bear being run twice for a slot (a holder that died half-way), and
    /// ends soon after its run is cancelled.
    pub fn new<F, R>(name: &'static str, schedule: impl Into<String>, run: F) -> Self
    where
        F: Fn(Run) -> R + Send + Sync + 'static,
        R: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        Self {
            name,
            schedule: schedule.into(),
            catch_up: CatchUp::Last,
            timeout: Duration::from_secs(300),
            body: Arc::new(move |given| Box::pin(run(given))),
        }
    }

    /// Changes what happens to missed slots.
    pub fn catch_up(self, catch_up: CatchUp) -> Self {
        Self { catch_up, ..self }
    }

    /// Changes how long a run may take.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Starts the body.
    pub fn start(&self, run: Run) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>> {
        (self.body)(run)
    }
}

/// A schedule that was understood.
#[derive(Clone, Debug)]
pub struct Schedule(croner::Cron);

impl Schedule {
    /// Reads the schedule of a job.
    pub fn parse(job: &str, schedule: &str) -> Result<Self, CronError> {
        let cron = schedule
            .parse()
            .map_err(|source: croner::errors::CronError| CronError::Schedule {
                job: job.to_owned(),
                schedule: schedule.to_owned(),
                source: Box::new(source),
            })?;
        Ok(Self(cron))
    }

    /// The latest slot that is not after `now`.
    pub fn latest(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.0.find_previous_occurrence(&whole(now), true).ok()
    }

    /// The first slot after `now`.
    pub fn next(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.0.find_next_occurrence(&whole(now), false).ok()
    }

    /// The slots after `from` up to and with `to`, newest first, at most `limit`.
    pub fn between(
        &self,
        from: DateTime<Utc>,
        to: DateTime<Utc>,
        limit: usize,
    ) -> Vec<DateTime<Utc>> {
        let mut slots = Vec::new();
        let mut slot = self.latest(to);
        while let Some(at) = slot
            && at > from
            && slots.len() < limit
        {
            slots.push(at);
            slot = self.0.find_previous_occurrence(&at, false).ok();
        }
        slots
    }
}

fn whole(time: DateTime<Utc>) -> DateTime<Utc> {
    time.with_nanosecond(0).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    #[test]
    fn slots_come_from_the_schedule_whatever_the_moment_of_asking() {
        let schedule = Schedule::parse("job", "*/5 * * * *").expect("a schedule");

        for now in [
            "2026-01-01T10:05:00Z",
            "2026-01-01T10:05:00.999Z",
            "2026-01-01T10:09:59.999Z",
        ] {
            assert_eq!(
                schedule.latest(at(now)),
                Some(at("2026-01-01T10:05:00Z")),
                "{now}"
            );
            assert_eq!(
                schedule.next(at(now)),
                Some(at("2026-01-01T10:10:00Z")),
                "{now}"
            );
        }
    }

    #[test]
    fn six_fields_have_seconds() {
        let schedule = Schedule::parse("job", "*/2 * * * * *").expect("a schedule");

        let slots = schedule.between(at("2026-01-01T10:00:00Z"), at("2026-01-01T10:00:05.5Z"), 10);

        assert_eq!(
            slots,
            [at("2026-01-01T10:00:04Z"), at("2026-01-01T10:00:02Z")]
        );
        assert!(Schedule::parse("job", "every now and then").is_err());
    }
}
