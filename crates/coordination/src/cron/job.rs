//! What a job is: a name, a schedule, a body, and what is owed when slots were missed.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use super::db;
use crate::lease::{Fence, FenceError, Guard};
use crate::{StoreError, metrics};

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

impl FromStr for CatchUp {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        let window = || text.strip_prefix("all(")?.strip_suffix("s)")?.parse().ok();
        match text {
            "none" => Ok(Self::None),
            "last" => Ok(Self::Last),
            _ => window()
                .and_then(TimeDelta::try_seconds)
                .map(Self::All)
                .ok_or_else(|| UnknownPolicy(text.to_owned())),
        }
    }
}

/// What happens to a slot that falls due while an earlier run of the job goes on, on whichever replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// It is skipped, and the history says so.
    Skip,
    /// It waits for the end of the run; of several that wait only the latest is run, unless [`CatchUp::All`] wants
    /// every one. With [`CatchUp::None`] it waits for a minute.
    QueueOne,
    /// The earlier run is cancelled, and the slot begins when it has ended: after the second within which the holder
    /// hears of it and the grace that its body has.
    CancelOther,
    /// It begins at once, beside the other: up to [`MOST_AT_ONCE`] runs in the cluster. Each has a fencing token of its
    /// own, so that a later slot does not fence an earlier one.
    Allow,
}

impl Overlap {
    /// How many runs of one job may go on at the same time.
    pub fn most_at_once(self) -> i64 {
        match self {
            Self::Allow => MOST_AT_ONCE,
            Self::Skip | Self::QueueOne | Self::CancelOther => 1,
        }
    }
}

/// Runs of one job that go on at the same time where [`Overlap::Allow`] lets them; further slots wait.
pub const MOST_AT_ONCE: i64 = 16;

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Skip => "skip",
            Self::QueueOne => "queue-one",
            Self::CancelOther => "cancel-other",
            Self::Allow => "allow",
        })
    }
}

impl FromStr for Overlap {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        match text {
            "skip" => Ok(Self::Skip),
            "queue-one" => Ok(Self::QueueOne),
            "cancel-other" => Ok(Self::CancelOther),
            "allow" => Ok(Self::Allow),
            _ => Err(UnknownPolicy(text.to_owned())),
        }
    }
}

/// A policy that this version does not know, as another version may write it.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no policy")]
pub struct UnknownPolicy(String);

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
    /// Fires when the run must end: shutdown, lost lock, time-out, or a later slot that comes first.
    pub cancelled: CancellationToken,
    /// The key of its token in `coordination.fences`.
    pub fence_key: String,
}

impl Run {
    /// What a transaction of the body needs to prove that no later run has begun, or with [`Overlap::Allow`] that no
    /// other has taken this one over.
    pub fn guard(&self) -> Guard {
        Guard {
            name: self.fence_key.clone(),
            fence: self.fence,
        }
    }

    /// Marks the run as succeeded in the transaction of its effect, which must be short: with its commit both are true, and
    /// the slot is not run again though the process is killed in the next instant. Fails where another has taken the
    /// run over; nothing may be committed then.
    pub async fn complete(&self, tx: &mut PgConnection) -> Result<(), FenceError> {
        let highest = db::complete(tx, self.job, self.slot, self.fence).await;
        let highest = highest.map_err(StoreError::postgres("complete a run"))?;
        if highest == self.fence {
            return Ok(());
        }
        metrics::fenced_write(&self.fence_key);
        Err(FenceError::Fenced {
            key: self.fence_key.clone(),
            token: self.fence,
            highest,
        })
    }
}

/// A periodic job. Unless [`Overlap::Allow`] says otherwise no two runs of a job are begun whose holders are both known
/// to live. What a body does without its [`Run::guard`] may still overlap with the next run, where its process was
/// stopped and goes on, or where it does not end when it is cancelled.
#[derive(Clone)]
pub struct Job {
    /// Unique in the cluster, and the same in every replica.
    pub name: &'static str,
    /// Five fields, or six with seconds first.
    pub schedule: String,
    /// The zone of the schedule; that of [`Cron`](super::Cron) unless changed.
    pub time_zone: Option<Tz>,
    /// By how much a slot may be delayed, so that jobs of one schedule do not begin together; none unless changed. Each
    /// job has a part of it that is always the same, and never more than half the time to its next slot.
    pub jitter: Duration,
    /// What happens to missed slots; [`CatchUp::Last`] unless changed.
    pub catch_up: CatchUp,
    /// What happens to slots that fall due while the job runs; [`Overlap::QueueOne`] unless changed.
    pub overlap: Overlap,
    /// After so many failed runs in a row the job pauses itself until it is resumed; never unless changed.
    pub pause_after: Option<u32>,
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
            time_zone: None,
            jitter: Duration::ZERO,
            catch_up: CatchUp::Last,
            overlap: Overlap::QueueOne,
            pause_after: None,
            timeout: Duration::from_secs(300),
            body: Arc::new(move |given| Box::pin(run(given))),
        }
    }

    /// Changes what happens to missed slots.
    pub fn catch_up(self, catch_up: CatchUp) -> Self {
        Self { catch_up, ..self }
    }

    /// Changes the zone of the schedule.
    pub fn time_zone(self, zone: Tz) -> Self {
        Self {
            time_zone: Some(zone),
            ..self
        }
    }

    /// Changes by how much slots may be delayed.
    pub fn jitter(self, jitter: Duration) -> Self {
        Self { jitter, ..self }
    }

    /// Changes what happens to slots that fall due while the job runs.
    pub fn overlap(self, overlap: Overlap) -> Self {
        Self { overlap, ..self }
    }

    /// Changes after how many failed runs in a row the job pauses itself.
    pub fn pause_after(self, failures: u32) -> Self {
        Self {
            pause_after: Some(failures),
            ..self
        }
    }

    /// Changes how long a run may take.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The key of the tokens that a run's writes are fenced by. Runs that may overlap have one each.
    pub fn fence_key(&self, slot: DateTime<Utc>) -> String {
        match self.overlap {
            Overlap::Allow => Self::key_of_one(self.name, slot),
            Overlap::Skip | Overlap::QueueOne | Overlap::CancelOther => Self::key_of_all(self.name),
        }
    }

    /// The key that all runs of a job share.
    pub(super) fn key_of_all(name: &str) -> String {
        format!("cron:{name}")
    }

    /// The key of one slot's runs.
    pub(super) fn key_of_one(name: &str, slot: DateTime<Utc>) -> String {
        format!("cron:{name}:{}", slot.timestamp_micros())
    }

    /// Starts the body.
    pub fn start(&self, run: Run) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>> {
        (self.body)(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_as_they_are_written() {
        for policy in [
            CatchUp::None,
            CatchUp::Last,
            CatchUp::All(TimeDelta::hours(2)),
        ] {
            assert_eq!(policy.to_string().parse::<CatchUp>().unwrap(), policy);
        }
        for policy in [
            Overlap::Skip,
            Overlap::QueueOne,
            Overlap::CancelOther,
            Overlap::Allow,
        ] {
            assert_eq!(policy.to_string().parse::<Overlap>().unwrap(), policy);
        }
        assert!("all(ever)".parse::<CatchUp>().is_err());
        assert!("".parse::<Overlap>().is_err());
    }

    #[test]
    fn any_policy_in_the_store_is_written_as_it_is_read() {
        const WORDS: [&str; 10] = [
            "none",
            "last",
            "all(",
            "s)",
            "60",
            "-1",
            "9223372036854775807",
            "skip",
            "queue-one",
            "allow",
        ];
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(6)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                if let Ok(policy) = text.parse::<CatchUp>() {
                    assert_eq!(policy.to_string().parse().ok(), Some(policy), "{text}");
                }
                if let Ok(policy) = text.parse::<Overlap>() {
                    assert_eq!(policy.to_string(), text);
                }
            });
    }
}
