//! Rate limits that hold over all replicas together: the generic cell rate algorithm, one Redis key for each tier and
//! subject, on the clock of Redis. Without Redis `check` answers `Unreachable`; whether that lets a request pass is the
//! caller's policy.
//!
//! A [`Decision`] knows its HTTP header fields, in two tongues: `RateLimit-Limit`, `RateLimit-Remaining` and
//! `RateLimit-Reset`, which client libraries read today, and `RateLimit-Policy` and `RateLimit` of the IETF's draft, which
//! can name several tiers at once. Their names do not collide, so an answer carries both.

mod batch;
mod rest;

use std::sync::Arc;
use std::time::Duration;

use fred::clients::Pool;
use tokio::time::timeout;
use tracing::debug;

use crate::{Keys, StoreError};
use batch::{Ask, Batches};
use rest::Rest;

/// How many requests may come at once, and at which rate they are allowed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    tier: &'static str,
    burst: u32,
    step: Duration,
}

impl Limit {
    /// Allows `count` requests at once, and that many each second after that.
    pub fn per_second(count: u32) -> Self {
        Self::per(count, Duration::from_secs(1))
    }

    /// Allows `count` requests at once, and that many each minute after that.
    pub fn per_minute(count: u32) -> Self {
        Self::per(count, Duration::from_secs(60))
    }

    /// Allows `count` requests at once, and that many each `period` after that. A count of 0 counts as 1.
    pub fn per(count: u32, period: Duration) -> Self {
        let count = count.max(1);
        Self {
            tier: "default",
            burst: count,
            // Whole microseconds keep the arithmetic of the script exact.
            step: Duration::from_micros((period.as_micros() as u64 / u64::from(count)).max(1)),
        }
    }

    /// Names the limit, in letters, digits and `-`: a subject has a count of its own in each tier.
    pub fn tier(self, tier: &'static str) -> Self {
        Self { tier, ..self }
    }

    /// Changes how many may come at once, and leaves the rate.
    pub fn burst(self, burst: u32) -> Self {
        Self {
            burst: burst.max(1),
            ..self
        }
    }
}

/// What a limit says to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether the request may pass; it was counted only then.
    pub allowed: bool,
    /// How long to wait before a retry can pass; zero where it was allowed.
    pub retry_after: Duration,
    /// How many more may come right now.
    pub remaining: u32,
    /// How long until the full burst is available again.
    pub reset: Duration,
    /// How many may come at once.
    pub limit: u32,
    /// In what time so many are allowed again.
    pub window: Duration,
    /// The name of the limit.
    pub tier: &'static str,
}

impl Decision {
    /// The header fields that tell a client where it stands. Times are whole seconds, rounded up.
    pub fn headers(&self) -> [(&'static str, String); 5] {
        let (tier, limit, remaining) = (self.tier, self.limit, self.remaining);
        let (reset, window) = (seconds(self.reset), seconds(self.window).max(1));
        [
            ("ratelimit-limit", limit.to_string()),
            ("ratelimit-remaining", remaining.to_string()),
            ("ratelimit-reset", reset.to_string()),
            (POLICY_HEADER, format!("\"{tier}\";q={limit};w={window}")),
            (STATE_HEADER, format!("\"{tier}\";r={remaining};t={reset}")),
        ]
    }
}

/// The field of the draft that lists limits; one field may stand beside another.
pub const POLICY_HEADER: &str = "ratelimit-policy";
/// The field of the draft that says where a client stands; one field may stand beside another.
pub const STATE_HEADER: &str = "ratelimit";

/// Counts requests of all replicas together. Clones share what they know of Redis.
#[derive(Clone, Debug)]
pub struct RateLimiter {
    batches: Arc<Batches>,
    keys: Keys,
    rest: Arc<Rest>,
}

impl RateLimiter {
    /// Keeps its counters in the given Redis, and asks it from the runtime that this is called on.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn new(redis: Pool, keys: Keys) -> Self {
        let (batches, rest) = (Arc::new(Batches::new(redis)), Arc::new(Rest::default()));
        Self {
            batches,
            keys,
            rest,
        }
    }

    /// Asks for one request of a subject such as `203.0.113.7` in the limit's tier. One round trip.
    pub async fn check(&self, subject: &str, limit: Limit) -> Result<Decision, StoreError> {
        let mut decisions = self.check_each(&[(subject, limit)]).await;
        decisions.pop().expect("each question has its answer")
    }

    /// Asks for one request that several limits count, each for itself: one that is refused counts where it was allowed.
    /// The answers are in the order of the questions. One round trip, which requests that come together share; on a
    /// cluster one for each limit.
    pub async fn check_each(&self, asks: &[(&str, Limit)]) -> Vec<Result<Decision, StoreError>> {
        let asks = asks.iter().map(|(subject, limit)| Ask {
            key: self.keys.rate(&format!("{}:{subject}", limit.tier)),
            limit: *limit,
        });
        self.batches.ask(asks.collect()).await
    }

    /// The same for those who let pass whom nobody can count: what could be said in time. Redis that failed to answer
    /// several times in a row is left alone for a second, and then asked for one request a second until it answers again; all others pass at once.
    pub async fn check_within(&self, patience: Duration, asks: &[(&str, Limit)]) -> Vec<Decision> {
        if asks.is_empty() || !self.rest.is_over() {
            return Vec::new();
        }
        let mut decisions = Vec::new();
        match timeout(patience, self.check_each(asks)).await {
            Ok(answers) => {
                for answer in answers {
                    match answer {
                        Ok(decision) => decisions.push(decision),
                        Err(error) => debug!("a rate limit is not kept: {error}"),
                    }
                }
            }
            Err(_) => debug!("rate limits are not kept: no answer within {patience:?}"),
        }
        if decisions.is_empty() {
            self.rest.missed();
        } else {
            self.rest.answered();
        }
        decisions
    }
}

fn microseconds(count: i64) -> Duration {
    Duration::from_micros(count.max(0).unsigned_abs())
}

fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_keeps_its_rate_whatever_its_burst() {
        let limit = Limit::per_second(100).burst(200);

        assert_eq!((limit.burst, limit.step), (200, Duration::from_millis(10)));
        assert_eq!(Limit::per_minute(5).step, Duration::from_secs(12));
        assert_eq!(Limit::per_minute(0), Limit::per_minute(1));
    }

    #[test]
    fn an_answer_tells_its_limit_in_both_tongues() {
        let decision = Decision {
            allowed: true,
            retry_after: Duration::ZERO,
            remaining: 3,
            reset: Duration::from_millis(23_001),
            limit: 5,
            window: Duration::from_secs(60),
            tier: "login",
        };

        let fields = decision.headers();

        let lines: Vec<String> = fields
            .iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        assert_eq!(
            lines,
            [
                "ratelimit-limit: 5",
                "ratelimit-remaining: 3",
                "ratelimit-reset: 24",
                "ratelimit-policy: \"login\";q=5;w=60",
                "ratelimit: \"login\";r=3;t=24",
            ]
        );
    }
}
