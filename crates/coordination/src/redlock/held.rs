//! A Redlock in our hands, and the task that renews it.

use std::time::{Duration, Instant};

use rslock::{Lock, LockManager};
use tokio::sync::oneshot;
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
    released: oneshot::Receiver<()>,
    _drop: tokio_util::sync::DropGuard,
}

impl Held {
    pub fn start(manager: LockManager, lock: Lock, since: Instant, ttl: Duration) -> Self {
        let (lost, stop) = (CancellationToken::new(), CancellationToken::new());
        let (done, released) = oneshot::channel();
        crate::task::spawn(renew(
            manager,
            lock,
            since,
            ttl,
            lost.clone(),
            stop.clone(),
            done,
        ));
        Self {
            lost,
            stop: stop.clone(),
            released,
            _drop: stop.drop_guard(),
        }
    }

    /// Fires before another can have taken the lock, as far as this process gets to run at all.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// Releases the lock and waits until that is done, or has been tried for long enough.
    pub async fn release(mut self) {
        self.stop.cancel();
        let _ = timeout(LAST_WORDS, &mut self.released).await;
    }
}

async fn renew(
    manager: LockManager,
    mut lock: Lock,
    mut since: Instant,
    ttl: Duration,
    lost: CancellationToken,
    stop: CancellationToken,
    _done: oneshot::Sender<()>,
) {
    loop {
        let validity = Duration::from_millis(u64::try_from(lock.validity_time).unwrap_or_default());
        let valid_until = since + validity.min(ttl);
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep_until((since + ttl / 3).into()) => {}
        }
        let start = Instant::now();
        // A renewal that failed has deleted the key on the masters it reached: there is no second try.
        match timeout_at(valid_until.into(), manager.extend(&lock, ttl)).await {
            Ok(Ok(renewed)) => {
                lock = renewed;
                since = start;
            }
            Ok(Err(_)) | Err(_) => {
                lost.cancel();
                let key = String::from_utf8_lossy(&lock.resource).into_owned();
                warn!(lock = key, "lost lock {key}");
                break;
            }
        }
    }
    let _ = timeout(LAST_WORDS, manager.unlock(&lock)).await;
}
