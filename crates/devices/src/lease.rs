//! What the workers of both queues share: a lease that is kept alive while they work, and pauses that grow.

use std::time::Duration;

use platform::problem::causes;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::debug;

/// The longest pause before something is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Renews a lease at each third of it; ends when it is lost, by what `renew` says or because it could not be asked in time.
pub async fn keep<F>(lease: Duration, renew: impl Fn() -> F)
where
    F: Future<Output = sqlx::Result<bool>>,
{
    let mut held_until = Instant::now() + lease;
    loop {
        let begun = (Instant::now() + lease / 3).min(held_until);
        sleep_until(begun).await;
        match timeout_at(held_until, renew()).await {
            Ok(Ok(true)) => held_until = begun + lease,
            Ok(Ok(false)) | Err(_) => return,
            Ok(Err(error)) => debug!("a lease was not renewed yet: {}", causes(&error)),
        }
    }
}

/// How long to wait after an attempt, the first of which is 1: twice as long each time.
pub fn backoff(base: Duration, attempts: i32) -> Duration {
    let exponent = u32::try_from(attempts.clamp(1, 10)).unwrap_or(1);
    (base * 2_u32.pow(exponent)).min(LONGEST_PAUSE)
}
