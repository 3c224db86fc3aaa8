//! A service's circuit breaker: when no instance answers any more, refusals come at once.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// After so many requests in a row without a reply the breaker opens.
const TRIPS_AT: u32 = 20;
/// How long it stays open before one request may try.
const OPEN_FOR: Duration = Duration::from_secs(1);
/// After this long without a result the next one may try.
const TRIAL_FOR: Duration = Duration::from_secs(10);

/// Opens when a service fails, and closes when it answers again.
#[derive(Debug, Default)]
pub struct Breaker {
    failures: AtomicU32,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    Open {
        until: Instant,
    },
    HalfOpen {
        since: Instant,
    },
}

impl Breaker {
    /// Whether a request may come as far as [`Self::admit`].
    ///
    /// # Errors
    /// How long to wait, where the service does not answer.
    pub fn pass(&self, now: Instant) -> Result<(), Duration> {
        if self.failures.load(Ordering::Relaxed) < TRIPS_AT {
            return Ok(());
        }
        match *self.state() {
            State::Open { until } if now < until => Err(until - now),
            State::HalfOpen { since } if now < since + TRIAL_FOR => Err(OPEN_FOR),
            State::Open { .. } | State::HalfOpen { .. } | State::Closed => Ok(()),
        }
    }

    /// Lets a request pass. Where it is the one that tries, and ends without a result, the next may try at once.
    ///
    /// # Errors
    /// How long to wait, where the service does not answer.
    pub fn admit(&self, now: Instant) -> Result<Option<Trial<'_>>, Duration> {
        if self.failures.load(Ordering::Relaxed) < TRIPS_AT {
            return Ok(None);
        }
        let mut state = self.state();
        match *state {
            State::Open { until } if now < until => Err(until - now),
            State::HalfOpen { since } if now < since + TRIAL_FOR => Err(OPEN_FOR),
            State::Open { .. } | State::HalfOpen { .. } => {
                *state = State::HalfOpen { since: now };
                Ok(Some(Trial {
                    breaker: self,
                    since: now,
                }))
            }
            State::Closed => Ok(None),
        }
    }

    /// The service answered.
    pub fn answered(&self) {
        if self.failures.load(Ordering::Relaxed) == 0 {
            return;
        }
        *self.state() = State::Closed;
        self.failures.store(0, Ordering::Relaxed);
    }

    /// A request got no reply from any instance.
    pub fn failed(&self, now: Instant) {
        let failures = self
            .failures
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1);
        if failures >= TRIPS_AT {
            *self.state() = State::Open {
                until: now + OPEN_FOR,
            };
        }
    }

    /// The state as operators know it.
    pub fn name(&self, now: Instant) -> &'static str {
        match *self.state() {
            State::Closed => "CLOSED",
            State::Open { until } if now < until => "OPEN",
            State::Open { .. } | State::HalfOpen { .. } => "HALF_OPEN",
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that tries whether the service answers again.
#[derive(Debug)]
pub struct Trial<'a> {
    breaker: &'a Breaker,
    since: Instant,
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        let mut state = self.breaker.state();
        if *state == (State::HalfOpen { since: self.since }) {
            *state = State::Open { until: self.since };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_lets_one_try_and_closes_when_that_one_is_answered() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        for _ in 0..TRIPS_AT {
            assert!(breaker.admit(start).unwrap().is_none());
            breaker.failed(start);
        }
        assert_eq!(breaker.name(start), "OPEN");
        assert_eq!(breaker.admit(start).unwrap_err(), OPEN_FOR);

        let later = start + OPEN_FOR;
        let left = breaker.admit(later).unwrap();
        assert_eq!(breaker.name(later), "HALF_OPEN");
        assert!(breaker.admit(later).is_err());
        drop(left);
        let trial = breaker.admit(later).unwrap();
        assert!(trial.is_some(), "the one before went away");
        breaker.failed(later);
        drop(trial);
        assert!(breaker.admit(later).is_err());

        let last = later + OPEN_FOR;
        let trial = breaker.admit(last).unwrap();
        breaker.answered();
        drop(trial);
        assert_eq!(breaker.name(last), "CLOSED");
        assert!(breaker.admit(last).unwrap().is_none());
    }
}
