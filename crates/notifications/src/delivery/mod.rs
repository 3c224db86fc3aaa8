//! Deliveries: what leaves the platform, queued with its notification, and carried out by whichever replica comes first,
//! at least once, until it has arrived or was tried for too long.

pub mod allowance;
pub mod api;
pub mod db;
mod wanted;
pub mod worker;

use std::time::Duration;

/// The longest pause between two tries.
const LONGEST: Duration = Duration::from_secs(3_600);

/// How long to wait after a number of attempts: twice as long each time, less a part of up to a half that is left to chance,
/// so that what failed together does not come again together.
pub fn pause(first: Duration, attempts: i32, chance: f64) -> Duration {
    let doublings = u32::try_from(attempts.clamp(1, 20) - 1).unwrap_or(0);
    let whole = first.saturating_mul(2_u32.pow(doublings)).min(LONGEST);
    let shorter = whole.mul_f64(1.0 - chance.clamp(0.0, 1.0) / 2.0);
    // The database counts no nanoseconds.
    Duration::from_millis(u64::try_from(shorter.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_are_never_less_than_half() {
        let first = Duration::from_secs(5);
        for (attempts, chance, seconds) in [
            (1, 0.0, 5.0),
            (2, 0.0, 10.0),
            (2, 1.0, 5.0),
            (5, 0.5, 60.0),
            (50, 0.0, 3_600.0),
            (0, 0.0, 5.0),
        ] {
            let told = pause(first, attempts, chance).as_secs_f64();
            assert!((told - seconds).abs() < 0.01, "{attempts} {chance}: {told}");
        }
    }
}
