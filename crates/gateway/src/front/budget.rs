//! How many retries a service bears: a share of its requests, so that retries never make an outage worse.

use std::sync::atomic::{AtomicI64, Ordering};

/// What one retry costs.
const RETRY: i64 = 100;
/// What one request earns: retries are a fifth of the requests at most.
const EARNED: i64 = 20;
/// What can be saved up, and is there at the start.
const MOST: i64 = 20 * RETRY;

/// The retries that are left.
#[derive(Debug)]
pub struct Budget(AtomicI64);

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicI64::new(MOST))
    }
}

impl Budget {
    /// A request came.
    pub fn earn(&self) {
        if self.0.load(Ordering::Relaxed) < MOST {
            self.0.fetch_add(EARNED, Ordering::Relaxed);
        }
    }

    /// Takes one retry, where there is one.
    pub fn spend(&self) -> bool {
        let spent = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                (left >= RETRY).then_some(left - RETRY)
            });
        spent.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_of_the_requests_may_be_retried() {
        let budget = Budget::default();
        while budget.spend() {}

        let mut retries = 0;
        for _ in 0..100 {
            budget.earn();
            retries += u32::from(budget.spend());
        }

        assert_eq!(retries, 20);
    }
}
