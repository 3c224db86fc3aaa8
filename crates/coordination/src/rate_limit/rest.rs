//! When a Redis that did not answer is asked again.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long it is left alone.
const SPAN: Duration = Duration::from_secs(1);
/// So many questions in a row without an answer are the beginning of a rest.
const MOST_MISSED: u32 = 5;

/// The time in which nobody asks, so that waiting for an answer costs one request a second and not each.
#[derive(Debug)]
pub struct Rest {
    born: Instant,
    /// Milliseconds from `born`; 0 where it answers.
    until: AtomicU64,
    /// Questions in a row without an answer.
    missed: AtomicU32,
}

impl Default for Rest {
    fn default() -> Self {
        Self {
            born: Instant::now(),
            until: AtomicU64::new(0),
            missed: AtomicU32::new(0),
        }
    }
}

impl Rest {
    /// Whether to ask. When a rest is over, one alone finds out for all.
    pub fn is_over(&self) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        if until == 0 {
            return true;
        }
        let now = self.now();
        now >= until
            && self
                .until
                .compare_exchange(
                    until,
                    now + milliseconds(SPAN),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok()
    }

    /// It did not answer. One slow answer among many is no reason to leave it alone.
    pub fn missed(&self) {
        if self
            .missed
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1)
            < MOST_MISSED
        {
            return;
        }
        let until = self.now() + milliseconds(SPAN);
        self.until.store(until, Ordering::Relaxed);
    }

    /// It answered.
    pub fn answered(&self) {
        if self.missed.load(Ordering::Relaxed) != 0 {
            self.missed.store(0, Ordering::Relaxed);
        }
        if self.until.load(Ordering::Relaxed) != 0 {
            self.until.store(0, Ordering::Relaxed);
        }
    }

    fn now(&self) -> u64 {
        milliseconds(self.born.elapsed())
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_alone_asks_after_a_rest_until_there_is_an_answer() {
        let rest = Rest::default();
        assert!(rest.is_over() && rest.is_over(), "it answers");
        for _ in 1..MOST_MISSED {
            rest.missed();
        }
        assert!(rest.is_over(), "some answers were slow");
        rest.missed();
        assert!(!rest.is_over(), "nobody asks");

        rest.until.store(1, Ordering::Relaxed);
        while rest.now() < 1 {
            std::hint::spin_loop();
        }
        assert!(rest.is_over(), "the first one asks");
        assert!(!rest.is_over(), "the others wait for what it hears");

        rest.answered();
        assert!(rest.is_over() && rest.is_over(), "it answers again");
    }
}
