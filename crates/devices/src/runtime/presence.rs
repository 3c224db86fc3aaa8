//! Whether an engine is there, as this replica knows it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use contracts::Timestamp;

/// Looks at an engine that lie further apart do not count together.
const LOOKS: Duration = Duration::from_secs(8);

/// Whether an engine is there, and for how long nobody has seen it.
#[derive(Debug, Default)]
pub struct Presence {
    unseen: Mutex<Unseen>,
    /// When it answered last, where it has not failed to since.
    answered: Mutex<Option<Instant>>,
    /// Whether it ever did.
    ever: AtomicBool,
    /// Whether it was told what answers in its place.
    told: AtomicBool,
}

/// When an engine was last seen by anybody, since when this replica has read that, and when it did so last.
#[derive(Debug, Default)]
struct Unseen(Option<(Option<Timestamp>, Instant, Instant)>);

impl Presence {
    /// It answered.
    pub fn answered(&self) {
        *self.last_answer() = Some(Instant::now());
        self.ever.store(true, Ordering::Relaxed);
        self.told.store(false, Ordering::Relaxed);
    }

    /// Whether this is the first time since its last answer that somebody asks so.
    pub fn is_news(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }

    /// It did not answer.
    pub fn missed(&self) {
        *self.last_answer() = None;
    }

    /// Whether it answered this replica when it was last asked.
    pub fn answers(&self) -> bool {
        self.last_answer().is_some()
    }

    /// Whether it answered this replica so short a time ago, and has not failed to since.
    pub fn answered_within(&self, time: Duration) -> bool {
        self.last_answer().is_some_and(|at| at.elapsed() < time)
    }

    fn last_answer(&self) -> MutexGuard<'_, Option<Instant>> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it ever answered this replica: where it never did, others may know better.
    pub fn ever_answered(&self) -> bool {
        self.ever.load(Ordering::Relaxed)
    }

    /// For how long this replica has found, look by look, that no other one reached it since the given moment.
    pub fn unseen_for(&self, seen_at: Option<Timestamp>) -> Duration {
        let mut unseen = self.unseen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (since, looked) = match unseen.0 {
            Some((seen, since, looked)) if seen == seen_at => (since, looked),
            _ => (now, now),
        };
        // Who did not look for a while knows nothing of it.
        let since = if now - looked > LOOKS { now } else { since };
        unseen.0 = Some((seen_at, since, now));
        now - since
    }
}
