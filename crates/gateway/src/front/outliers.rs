//! Which instances lag behind their siblings: compared by the middle of their latencies, which a few slow requests do
//! not move.

use std::time::Duration;

use crate::front::config::Balance;
use crate::front::latencies::Median;

/// With fewer replies nothing is said of an instance.
const SAMPLES: u32 = 20;
/// With fewer siblings nobody knows who of them is the odd one.
const SIBLINGS: usize = 2;

/// The indices of those that lag, worst first; none where half of them do, for then the service is slow.
pub fn outliers(medians: &[Option<Median>], balance: &Balance) -> Vec<usize> {
    let known: Vec<(usize, Duration)> = medians
        .iter()
        .enumerate()
        .filter_map(|(index, median)| Some((index, (*median)?)))
        .filter(|(_, median)| median.samples >= SAMPLES)
        .map(|(index, median)| (index, median.latency))
        .collect();
    if balance.outlier_factor == 0 || known.len() <= SIBLINGS {
        return Vec::new();
    }
    let lags = |(index, own): &&(usize, Duration)| {
        let siblings = known.iter().filter(|(other, _)| other != index);
        let mut siblings: Vec<Duration> = siblings.map(|(_, latency)| *latency).collect();
        siblings.sort_unstable();
        let usual = siblings[siblings.len() / 2];
        *own > usual * balance.outlier_factor && *own > usual + balance.outlier_margin
    };
    let mut lagging: Vec<&(usize, Duration)> = known.iter().filter(lags).collect();
    if lagging.len() * 2 >= known.len() {
        return Vec::new();
    }
    lagging.sort_unstable_by_key(|(_, latency)| std::cmp::Reverse(*latency));
    lagging.iter().map(|(index, _)| *index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(medians: &[(u64, u32)]) -> Vec<usize> {
        let medians: Vec<_> = medians
            .iter()
            .map(|(millis, samples)| {
                Some(Median {
                    latency: Duration::from_millis(*millis),
                    samples: *samples,
                })
            })
            .collect();
        outliers(&medians, &Balance::default())
    }

    #[test]
    fn one_that_lags_far_behind_its_siblings_is_found() {
        for (medians, expected) in [
            (&[(5, 50), (6, 50), (400, 50)][..], &[2][..]),
            (&[(900, 50), (6, 50), (400, 50), (5, 50), (5, 50)], &[0, 2]),
            // Not many times slower, not much slower, or all are slow.
            (&[(100, 50), (110, 50), (390, 50)], &[]),
            (&[(1, 50), (1, 50), (90, 50)], &[]),
            (&[(900, 50), (900, 50), (900, 50)], &[]),
            // Half of them are.
            (&[(5, 50), (5, 50), (900, 50), (900, 50)], &[]),
            // Too few to compare.
            (&[(5, 50), (900, 50)], &[]),
            (&[(5, 50), (5, 19), (900, 50)], &[]),
            (&[(5, 50), (5, 50), (900, 19)], &[]),
        ] {
            assert_eq!(found(medians), expected, "{medians:?}");
        }
    }
}
