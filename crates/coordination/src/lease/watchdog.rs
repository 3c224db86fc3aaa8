//! The task behind a held lease: renews it, says when it is lost, gives it back in the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Leases;
use crate::metrics;

/// How long a lease that nobody wants any more is tried to be given back; after that it expires.
const LAST_WORDS: Duration = Duration::from_secs(5);

pub struct Watched {
    pub leases: Leases,
    pub name: String,
    pub owner: String,
    pub lost: CancellationToken,
    pub stop: CancellationToken,
    pub released: Arc<AtomicBool>,
    pub since: Instant,
    pub ttl: Duration,
}

/// Renews until the holder is done or the lease is lost. Times run from *before* a command is sent, on the
/// holder's monotonic clock, so that Redis can only expire the lease later than we think.
pub async fn run(watched: Watched) {
    let Watched {
        leases,
        name,
        owner,
        lost,
        stop,
        released,
        mut since,
        ttl,
    } = watched;
    let mut next = since + ttl / 3;
    loop {
        let valid_until = since + believed(ttl);
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep_until(next.min(valid_until)) => {}
        }
        let start = Instant::now();
        if start >= valid_until {
            lose(&name, &lost, "it could not be renewed in time");
            break;
        }
        let renewal = tokio::select! {
            () = stop.cancelled() => break,
            renewal = timeout_at(valid_until, leases.renew(&name, &owner, ttl)) => renewal,
        };
        match renewal {
            Ok(Ok(true)) => {
                since = start;
                next = since + ttl / 3;
            }
            Ok(Ok(false)) => {
                lose(&name, &lost, "Redis no longer knows it as ours");
                break;
            }
            Ok(Err(error)) => {
                debug!(
                    lease = name,
                    error = &error as &dyn std::error::Error,
                    "could not renew lease {name}"
                );
                next = Instant::now() + ttl / 10;
            }
            Err(_) => {
                lose(&name, &lost, "it could not be renewed in time");
                break;
            }
        }
    }
    if !released.load(Ordering::Relaxed) {
        give_back(&leases, &name, &owner).await;
    }
}

/// Releases a lease without anyone waiting for it.
pub async fn give_back(leases: &Leases, name: &str, owner: &str) {
    if let Ok(Err(error)) = timeout(LAST_WORDS, leases.release(name, owner)).await {
        debug!(
            lease = name,
            error = &error as &dyn std::error::Error,
            "lease {name} is left to expire"
        );
    }
}

/// How long after the acquisition the holder may believe in it: less than its time to live, for clocks that run at
/// different speeds and timers that fire late.
fn believed(ttl: Duration) -> Duration {
    ttl.saturating_sub(ttl / 20 + Duration::from_millis(5))
}

fn lose(name: &str, lost: &CancellationToken, why: &str) {
    lost.cancel();
    metrics::lease("lost");
    warn!(lease = name, "lost lease {name}: {why}");
}
