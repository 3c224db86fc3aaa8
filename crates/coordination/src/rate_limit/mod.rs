//! Rate limits that hold over all replicas together: the generic cell rate algorithm, one Redis key a subject, on the
//! clock of Redis. Without Redis `check` answers `Unreachable`; whether that lets a request pass is the caller's policy.

use std::sync::LazyLock;
use std::time::Duration;

use fred::clients::Pool;
use fred::types::scripts::Script;

use crate::{Keys, StoreError, script};

static CHECK: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("check.lua")));

/// How many requests may come at once, and at which rate they are allowed again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
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
            burst: count,
            // Whole microseconds keep the arithmetic of the script exact.
            step: Duration::from_micros((period.as_micros() as u64 / u64::from(count)).max(1)),
        }
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
    /// The burst, for the headers of an answer.
    pub limit: u32,
}

/// Counts requests of all replicas together.
#[derive(Clone, Debug)]
pub struct RateLimiter {
    redis: Pool,
    keys: Keys,
}

impl RateLimiter {
    /// Keeps its counters in the given Redis.
    pub fn new(redis: Pool, keys: Keys) -> Self {
        Self { redis, keys }
    }

    /// Asks for one request of a subject such as `login:203.0.113.7`. One round trip.
    pub async fn check(&self, key: &str, limit: Limit) -> Result<Decision, StoreError> {
        let arguments = vec![
            limit.burst.to_string(),
            limit.step.as_micros().to_string(),
            "1".into(),
        ];
        let (allowed, wait, remaining, reset): (i64, i64, i64, i64) = script::run(
            &self.redis,
            &CHECK,
            self.keys.rate(key),
            arguments,
            "check a rate limit",
        )
        .await?;
        Ok(Decision {
            allowed: allowed == 1,
            retry_after: microseconds(wait),
            remaining: u32::try_from(remaining.max(0)).unwrap_or(u32::MAX),
            reset: microseconds(reset),
            limit: limit.burst,
        })
    }
}

fn microseconds(count: i64) -> Duration {
    Duration::from_micros(count.max(0).unsigned_abs())
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
}
