//! A Redlock in our hands, and the task that renews it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use rslock::{Lock, LockManager};
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::master::Master;
use super::renewal::{Said, Tally};

/// How long a release may take; afterwards the keys expire.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// The pause before another try to renew.
const PAUSE: Duration = Duration::from_millis(100);

/// A lock that is held: renewed at a third of its time to live, released when dropped.
#[derive(Debug)]
pub struct Held {
    owned: Arc<Owned>,
    lost: CancellationToken,
    stop: CancellationToken,
    valid_until: watch::Receiver<Instant>,
    released: oneshot::Receiver<()>,
    _drop: tokio_util::sync::DropGuard,
}

/// A lock as its masters know it.
#[derive(Debug)]
pub struct Owned {
    pub manager: LockManager,
    pub masters: Vec<Master>,
    pub lock: Lock,
    pub ttl: Duration,
}

impl Owned {
    fn renewal(&self) -> impl futures::Stream<Item = Option<bool>> + '_ {
        let (key, owner) = (&self.lock.resource, &self.lock.val);
        super::renewal::ask(&self.masters, key, owner, self.ttl)
    }
}

impl Held {
    /// Keeps a lock that was asked for at `since`.
    pub fn start(owned: Owned, since: Instant) -> Self {
        let owned = Arc::new(owned);
        let (lost, stop) = (CancellationToken::new(), CancellationToken::new());
        let (done, released) = oneshot::channel();
        let (valid, valid_until) = watch::channel(validity(since, owned.ttl));
        let watched = Watched {
            owned: owned.clone(),
            since,
            valid,
            lost: lost.clone(),
            stop: stop.clone(),
            _done: done,
        };
        crate::task::spawn(watched.keep());
        Self {
            owned,
            lost,
            stop: stop.clone(),
            valid_until,
            released,
            _drop: stop.drop_guard(),
        }
    }

    /// Fires before another can have taken the lock, except where nothing could: this process or its machine was stopped,
    /// or a quorum of the masters lost its data or set its clock.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// How long the lock is certainly held if nothing renews it; zero once it is lost. Right also in the first
    /// instruction after a pause of this process.
    pub fn remaining(&self) -> Duration {
        if self.lost.is_cancelled() {
            return Duration::ZERO;
        }
        self.valid_until
            .borrow()
            .saturating_duration_since(Instant::now())
    }

    /// Asks the masters whether the lock is still ours.
    pub async fn confirm(&self) -> Said {
        let mut tally = Tally::of(&self.owned.masters);
        let renewal = self.owned.renewal();
        futures::pin_mut!(renewal);
        while tally.said() == Said::Unknown
            && let Some(answer) = renewal.next().await
        {
            tally.count(answer);
        }
        tally.said()
    }

    /// Releases the lock and waits until that is done, or has been tried for long enough.
    pub async fn release(mut self) {
        self.stop.cancel();
        let _ = timeout(LAST_WORDS, &mut self.released).await;
    }
}

/// What the task behind a lock works with.
struct Watched {
    owned: Arc<Owned>,
    /// From before the last renewal that a quorum confirmed.
    since: Instant,
    valid: watch::Sender<Instant>,
    lost: CancellationToken,
    stop: CancellationToken,
    /// Dropped with the rest when the release is done.
    _done: oneshot::Sender<()>,
}

impl Watched {
    async fn keep(mut self) {
        let stop = self.stop.clone();
        let why = tokio::select! {
            () = stop.cancelled() => None,
            why = self.renew() => Some(why),
        };
        // The holder hears of it before any master gives the lock to another.
        if let Some(why) = why {
            self.lost.cancel();
            let key = String::from_utf8_lossy(&self.owned.lock.resource);
            warn!(lock = %key, "lost lock {key}: {why}");
        }
        let unlocked = self.owned.manager.unlock(&self.owned.lock);
        let _ = timeout(LAST_WORDS, unlocked).await;
    }

    /// Renews until the lock is lost, and says why it is.
    async fn renew(&mut self) -> &'static str {
        let mut next = self.since + self.owned.ttl / 3;
        loop {
            let valid_until = *self.valid.borrow();
            sleep_until(next.min(valid_until).into()).await;
            if Instant::now() >= valid_until {
                return "no quorum of the masters could be asked in time";
            }
            match self.round(valid_until).await {
                Said::Held => next = self.since + self.owned.ttl / 3,
                Said::Gone => return "too few masters still know it",
                Said::Unknown => sleep(PAUSE).await,
            }
        }
    }

    /// Asks each master once. What a quorum says counts at once; the others are still waited for, so that a master that
    /// comes back has the lock as well.
    async fn round(&mut self, valid_until: Instant) -> Said {
        let start = Instant::now();
        let owned = self.owned.clone();
        let mut tally = Tally::of(&owned.masters);
        let renewal = owned.renewal();
        futures::pin_mut!(renewal);
        loop {
            let undecided = tally.said() == Said::Unknown;
            let answer = tokio::select! {
                answer = renewal.next() => answer,
                () = sleep_until(valid_until.into()), if undecided => None,
            };
            let Some(answer) = answer else {
                return tally.said();
            };
            tally.count(answer);
            match tally.said() {
                Said::Held if undecided => {
                    self.since = start;
                    self.valid.send_replace(validity(start, owned.ttl));
                }
                Said::Gone => return Said::Gone,
                Said::Held | Said::Unknown => {}
            }
        }
    }
}

/// Until when a lock that was asked for at `since` is certainly held: less than its time to live, for clocks that run at
/// different speeds and timers that fire late.
fn validity(since: Instant, ttl: Duration) -> Instant {
    since + ttl.saturating_sub(ttl / 100 + Duration::from_millis(2))
}
