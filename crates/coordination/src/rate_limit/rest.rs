//! When a Redis that did not answer is asked again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long it is left alone.
const SPAN: Duration = Duration::from_secs(1);

/// The time in which nobody asks, so that waiting for an answer costs one request a second and not each.
#[derive(Debug)]
pub struct Rest {
    born: Instant,
    /// Milliseconds from `born`; 0 where it answers.
    until: AtomicU64,
}

impl Default for Rest {
    fn default() -> Self {
        Self {
            born: Instant::now(),
            until: AtomicU64::new(0),
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

    /// It did not answer.
    pub fn begin(&self) {
        let until = self.now() + milliseconds(SPAN);
        self.until.store(until, Ordering::Relaxed);
    }

    /// It answered.
    pub fn end(&self) {
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
        rest.begin();
        assert!(!rest.is_over(), "nobody asks");

        rest.until.store(1, Ordering::Relaxed);
        while rest.now() < 1 {
            std::hint::spin_loop();
        }
        assert!(rest.is_over(), "the first one asks");
        assert!(!rest.is_over(), "the others wait for what it hears");

        rest.end();
        assert!(rest.is_over() && rest.is_over(), "it answers again");
    }
}
