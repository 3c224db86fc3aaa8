//! How old is what is read again and again from PostgreSQL: by a clock that never jumps, and by one that goes on while the
//! machine is suspended.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta};
use contracts::Timestamp;
use tracing::{info, warn};

use crate::Clock;

/// How old what is known may be, so that nobody is believed for longer than a second after he was refused elsewhere.
const FRESH: Duration = Duration::from_millis(750);
/// For how long what was read is kept at least. After a longer silence whatever was learnt before counts no more.
pub const KEPT: Duration = Duration::from_secs(300);

/// How far back the clock may be set.
const BACK: TimeDelta = TimeDelta::seconds(1);

/// The age of what is known.
#[derive(Debug)]
pub struct Freshness {
    /// What is read, for the log, as "the sessions that have ended".
    subject: &'static str,
    clock: Clock,
    born: Instant,
    /// Milliseconds from `born` to the beginning of the last whole read; 0 before the first.
    known_at: AtomicU64,
    /// The same moment by the clock, in milliseconds since 1970; 0 before the first.
    read_from: AtomicI64,
    /// Grows after each silence that was too long, and where there was too much to keep.
    era: AtomicU64,
    failing: AtomicBool,
}

/// The moment at which a read began.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    began: Duration,
    now: Timestamp,
    /// The beginning of the last whole read, as far back as anything is kept; now where there was none.
    pub last: Timestamp,
    is_gap: bool,
}

impl Round {
    /// How long before its beginning the last whole read began; zero where there was none.
    pub fn silence(&self) -> TimeDelta {
        self.now - self.last
    }
}

impl Freshness {
    /// Nothing is known yet.
    pub fn new(subject: &'static str, clock: Clock) -> Self {
        Self {
            subject,
            clock,
            born: Instant::now(),
            known_at: AtomicU64::new(0),
            read_from: AtomicI64::new(0),
            era: AtomicU64::new(0),
            failing: AtomicBool::new(false),
        }
    }

    /// A read begins.
    pub fn begin(&self) -> Round {
        let (began, now) = (self.born.elapsed(), self.clock.now());
        let kept = TimeDelta::from_std(KEPT).unwrap_or(TimeDelta::MAX);
        let last = self.read_from();
        // A clock that was set back does not tell how long the silence was.
        let is_gap = last.is_some_and(|last| now - last > kept || now + BACK < last);
        let last = last.map_or(now, |last| last.clamp(now - kept, now));
        Round {
            began,
            now,
            last,
            is_gap,
        }
    }

    /// How long ago a read began.
    pub fn age(&self, round: &Round) -> Duration {
        self.born.elapsed().saturating_sub(round.began)
    }

    /// A read has come to its end: everything that was there when it began is known.
    pub fn complete(&self, round: &Round) {
        // Whoever sees that what is known is fresh sees the new era, too.
        if round.is_gap {
            self.begin_era();
        }
        let known_at = u64::try_from(round.began.as_millis()).unwrap_or(u64::MAX);
        let read_from = round.now.utc().timestamp_millis();
        self.read_from.store(read_from, Ordering::Release);
        self.known_at.store(known_at.max(1), Ordering::Release);
        if self.failing.swap(false, Ordering::Relaxed) {
            info!("{} are known again", self.subject);
        }
    }

    /// A read has failed; told once.
    pub fn fails(&self, reason: &str) {
        if !self.failing.swap(true, Ordering::Relaxed) {
            let subject = self.subject;
            warn!("{subject} are not known, and every caller is looked up: {reason}");
        }
    }

    /// What was learnt until now counts no more.
    pub fn begin_era(&self) {
        self.era.fetch_add(1, Ordering::Release);
    }

    /// Whether everything is known that was written a second ago. Both clocks must say so: one of them stands still while
    /// the machine is suspended.
    pub fn is_fresh(&self) -> bool {
        let known_at = self.known_at.load(Ordering::Acquire);
        if known_at == 0 || self.born.elapsed() >= Duration::from_millis(known_at) + FRESH {
            return false;
        }
        let age = self.read_from().map(|last| self.clock.now() - last);
        age.is_some_and(|age| age.abs().to_std().is_ok_and(|age| age < FRESH))
    }

    /// What was learnt in another era counts no more. Ask [`Freshness::is_fresh`] first.
    pub fn era(&self) -> u64 {
        self.era.load(Ordering::Acquire)
    }

    fn read_from(&self) -> Option<Timestamp> {
        let milliseconds = self.read_from.load(Ordering::Acquire);
        let moment = DateTime::from_timestamp_millis(milliseconds).filter(|_| milliseconds > 0);
        moment.map(Timestamp::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_went_on_alone_makes_old_what_was_known_and_after_minutes_void() {
        let clock = Clock::held_at(Clock::system().now());
        let known = Freshness::new("tests", clock.clone());
        assert!(!known.is_fresh());
        known.complete(&known.begin());
        assert!(known.is_fresh());

        for (silence, is_void) in [(1, false), (240, false), (301, true), (-301, true)] {
            let era = known.era();
            clock.advance(TimeDelta::seconds(silence));
            assert!(!known.is_fresh(), "{silence} s");
            let round = known.begin();
            assert!(round.last <= clock.now());
            known.complete(&round);
            assert!(known.is_fresh());
            assert_eq!(known.era() != era, is_void, "{silence} s");
        }
    }
}
