//! A Redlock in our hands, and the task that renews it.

use std::time::{Duration, Instant};

use rslock::{Lock, LockManager};
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How long a release may take; afterwards the keys expire.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// A lock that is held: renewed at a third of its time to live, released when dropped.
#[derive(Debug)]
pub struct Held {
    lost: CancellationToken,
    stop: CancellationToken,
    valid_until: watch::Receiver<Instant>,
    released: oneshot::Receiver<()>,
    _drop: tokio_util::sync::DropGuard,
}

impl Held {
    pub fn start(manager: LockManager, lock: Lock, since: Instant, ttl: Duration) -> Self {
        let (lost, stop) = (CancellationToken::new(), CancellationToken::new());
        let (done, released) = oneshot::channel();
        let (valid, valid_until) = watch::channel(validity(&lock, since, ttl));
        let watched = Watched {
            manager,
            lock,
            since,
            ttl,
            valid,
            lost: lost.clone(),
            stop: stop.clone(),
            _done: done,
        };
        crate::task::spawn(watched.renew());
        Self {
            lost,
            stop: stop.clone(),
            valid_until,
            released,
            _drop: stop.drop_guard(),
        }
    }

    /// Fires before another can have taken the lock, as far as this process gets to run at all.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// How long the lock is certainly held if nothing renews it; zero once it is lost. Right also in the first
    /// instruction after a pause.
    pub fn remaining(&self) -> Duration {
        if self.lost.is_cancelled() {
            return Duration::ZERO;
        }
        self.valid_until
            .borrow()
            .saturating_duration_since(Instant::now())
    }

    /// Releases the lock and waits until that is done, or has been tried for long enough.
    pub async fn release(mut self) {
        self.stop.cancel();
        let _ = timeout(LAST_WORDS, &mut self.released).await;
    }
}

/// What the task behind a lock works with.
struct Watched {
    manager: LockManager,
    lock: Lock,
    since: Instant,
    ttl: Duration,
    valid: watch::Sender<Instant>,
    lost: CancellationToken,
    stop: CancellationToken,
    /// Dropped with the rest when the release is done.
    _done: oneshot::Sender<()>,
}

impl Watched {
    async fn renew(mut self) {
        loop {
            let valid_until = validity(&self.lock, self.since, self.ttl);
            self.valid.send_replace(valid_until);
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = sleep_until((self.since + self.ttl / 3).into()) => {}
            }
            let start = Instant::now();
            // A renewal that failed has deleted the key on the masters it reached: there is no second try.
            let extended = self.manager.extend(&self.lock, self.ttl);
            match timeout_at(valid_until.into(), extended).await {
                Ok(Ok(renewed)) => {
                    self.lock = renewed;
                    self.since = start;
                }
                Ok(Err(_)) | Err(_) => {
                    self.lost.cancel();
                    let key = String::from_utf8_lossy(&self.lock.resource).into_owned();
                    warn!(lock = key, "lost lock {key}");
                    break;
                }
            }
        }
        let _ = timeout(LAST_WORDS, self.manager.unlock(&self.lock)).await;
    }
}

fn validity(lock: &Lock, since: Instant, ttl: Duration) -> Instant {
    let validity = Duration::from_millis(u64::try_from(lock.validity_time).unwrap_or_default());
    since + validity.min(ttl)
}
