//! How long an instance takes to begin its replies, lately: a histogram that fades.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Four buckets an octave, so that a value is off by a tenth at most.
const PER_OCTAVE: usize = 4;
/// What is shorter than 2⁶ µs or longer than 2²⁴ µs, 17 s, counts as that.
const OCTAVES: std::ops::Range<u32> = 6..24;
const BUCKETS: usize = PER_OCTAVE * 18;

/// Counts of latencies by their size.
#[derive(Debug)]
pub struct Latencies([AtomicU32; BUCKETS]);

/// The middle of the latencies, and how many they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Median {
    /// Half of them were shorter.
    pub latency: Duration,
    /// How many there are.
    pub samples: u32,
}

impl Default for Latencies {
    fn default() -> Self {
        Self([const { AtomicU32::new(0) }; BUCKETS])
    }
}

impl Latencies {
    /// Notes one.
    pub fn note(&self, latency: Duration) {
        self.0[bucket(latency)].fetch_add(1, Ordering::Relaxed);
    }

    /// Halves all counts, so that the latest weigh most.
    pub fn fade(&self) {
        for count in &self.0 {
            let now = count.load(Ordering::Relaxed);
            if now > 0 {
                count.fetch_sub(now - now / 2, Ordering::Relaxed);
            }
        }
    }

    /// Forgets all.
    pub fn clear(&self) {
        for count in &self.0 {
            count.store(0, Ordering::Relaxed);
        }
    }

    /// The middle of them, where there are any.
    pub fn median(&self) -> Option<Median> {
        let counts: [u32; BUCKETS] = std::array::from_fn(|at| self.0[at].load(Ordering::Relaxed));
        let samples = counts.iter().sum::<u32>();
        let mut below = 0;
        let at = counts.iter().position(|count| {
            below += count;
            samples > 0 && below * 2 >= samples
        })?;
        Some(Median {
            latency: middle(at),
            samples,
        })
    }
}

fn bucket(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
    let micros = micros.clamp(1 << OCTAVES.start, (1 << OCTAVES.end) - 1);
    let octave = micros.ilog2();
    let quarter = (micros >> (octave - 2)) as usize % PER_OCTAVE;
    (octave - OCTAVES.start) as usize * PER_OCTAVE + quarter
}

/// The middle of a bucket.
fn middle(at: usize) -> Duration {
    let (octave, quarter) = (at / PER_OCTAVE, at % PER_OCTAVE);
    let eighths = (2 * (PER_OCTAVE + quarter) + 1) as u64;
    Duration::from_micros(eighths << (octave as u32 + OCTAVES.start - 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_near_the_middle_of_what_was_noted() {
        for millis in [1, 3, 7, 20, 150, 999, 4_000] {
            let latencies = Latencies::default();
            assert_eq!(latencies.median(), None);
            let noted = Duration::from_millis(millis);
            for _ in 0..50 {
                latencies.note(noted);
            }
            for _ in 0..20 {
                latencies.note(Duration::ZERO);
                latencies.note(Duration::from_secs(3600));
            }

            let median = latencies.median().unwrap();

            assert_eq!(median.samples, 90);
            let off = median.latency.abs_diff(noted);
            assert!(off * 8 <= noted, "{median:?} for {noted:?}");
        }
    }

    #[test]
    fn what_is_old_fades() {
        let latencies = Latencies::default();
        for _ in 0..100 {
            latencies.note(Duration::from_secs(1));
        }
        for _ in 0..3 {
            latencies.fade();
        }
        for _ in 0..20 {
            latencies.note(Duration::from_millis(1));
        }

        let median = latencies.median().unwrap();

        assert!(median.latency < Duration::from_millis(2), "{median:?}");
        assert_eq!(median.samples, 32);
        latencies.clear();
        assert_eq!(latencies.median(), None);
    }
}
