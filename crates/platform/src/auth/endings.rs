//! Sessions that ended a moment ago, known without asking: told at once by a message, and read from PostgreSQL several
//! times a second, so that a message that was lost is made good.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta};
use contracts::{SessionId, Timestamp};
use coordination::news::{News, listen};
use fred::clients::Pool;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Sessions;
use crate::lifecycle::{Tasks, Tick};
use crate::{Clock, Platform};

/// How often PostgreSQL is read, and how long it may take.
const EVERY: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_millis(500);
/// How old what is known may be, so that a session is believed no longer than a second after its end was answered.
const FRESH: Duration = Duration::from_millis(750);
/// What is read twice: an end is written down at the time its writer began with, by its writer's clock.
const OVERLAP: TimeDelta = TimeDelta::seconds(60);
/// How long an end is kept at least: longer than anybody believes that the session lives.
const KEPT: Duration = Duration::from_secs(300);
/// More than this are not kept, and nothing counts as known meanwhile.
const MOST: usize = 200_000;
const READ_AT_ONCE: usize = 50_000;

/// The sessions that ended within the last minutes. Clones share everything.
#[derive(Clone, Debug)]
pub struct Endings(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ended: RwLock<Ended>,
    born: Instant,
    /// Milliseconds from `born` to the beginning of the last whole read; 0 before the first.
    known_at: AtomicU64,
    /// The same moment by the clock, in milliseconds since 1970; 0 before the first.
    read_from: AtomicI64,
    failing: AtomicBool,
}

/// Two generations, so that forgetting costs nothing.
#[derive(Debug)]
struct Ended {
    young: HashSet<SessionId>,
    old: HashSet<SessionId>,
    turned: Instant,
}

impl Default for Endings {
    fn default() -> Self {
        let born = Instant::now();
        Self(Arc::new(Inner {
            ended: RwLock::new(Ended {
                young: HashSet::new(),
                old: HashSet::new(),
                turned: born,
            }),
            born,
            known_at: AtomicU64::new(0),
            read_from: AtomicI64::new(0),
            failing: AtomicBool::new(false),
        }))
    }
}

impl Endings {
    /// Begins to hear and to read, for as long as the process works.
    pub fn follow(&self, platform: &Platform, tasks: &Tasks) {
        let (heard, redis, stop) = (self.clone(), platform.redis.clone(), tasks.stopping());
        let channel = platform.keys.session_news();
        tasks.spawn("auth.endings.news", async move {
            heard.hear(&redis, &channel, &stop).await;
            Ok(())
        });
        let (this, sessions) = (self.clone(), platform.auth.sessions().clone());
        let clock = platform.clock.clone();
        tasks.every("auth.endings.read", EVERY, move || {
            let (this, sessions, clock) = (this.clone(), sessions.clone(), clock.clone());
            async move {
                this.read(&sessions, &clock).await;
                // The growing pauses after failures are not for this step.
                Ok(Tick::Idle)
            }
        });
    }

    /// Whether a session is known to have ended.
    pub fn contains(&self, id: &SessionId) -> bool {
        let ended = self.0.ended.read().unwrap_or_else(PoisonError::into_inner);
        ended.young.contains(id) || ended.old.contains(id)
    }

    /// Whether every end that was answered a second ago is known.
    pub fn is_fresh(&self) -> bool {
        let known_at = self.0.known_at.load(Ordering::Acquire);
        known_at > 0 && self.0.born.elapsed() < Duration::from_millis(known_at) + FRESH
    }

    /// Reads once what PostgreSQL knows.
    pub async fn read(&self, sessions: &Sessions, clock: &Clock) {
        let (began, now) = (self.0.born.elapsed(), clock.now());
        let last = self.0.read_from.load(Ordering::Acquire);
        let last = DateTime::from_timestamp_millis(last).map_or(now, Timestamp::from);
        let kept = TimeDelta::from_std(KEPT).unwrap_or(OVERLAP);
        // After a long silence everybody is looked up anew, so that what is older is not needed.
        let since = last.max(now - kept) - OVERLAP;
        match timeout(PATIENCE, sessions.ended_since(since, READ_AT_ONCE)).await {
            Ok(Ok(ids)) => {
                if ids.len() >= READ_AT_ONCE || !self.hold(ids) {
                    return self.fails("there are too many");
                }
                let known_at = u64::try_from(began.as_millis()).unwrap_or(u64::MAX).max(1);
                self.0.known_at.store(known_at, Ordering::Release);
                let read_from = now.utc().timestamp_millis();
                self.0.read_from.store(read_from, Ordering::Release);
                if self.0.failing.swap(false, Ordering::Relaxed) {
                    info!("the sessions that have ended are known again");
                }
            }
            Ok(Err(error)) => self.fails(&error.to_string()),
            Err(_) => self.fails("PostgreSQL did not answer in time"),
        }
    }

    async fn hear(&self, redis: &Pool, channel: &str, stop: &CancellationToken) {
        let hear = |news| {
            if let News::Told(ids) = news {
                self.hold(ids.split(',').filter_map(|id| id.parse().ok()));
            }
            ControlFlow::Continue(())
        };
        listen(redis, channel, stop, hear).await;
    }

    /// Keeps ends; `false` where there are too many to keep.
    fn hold(&self, ids: impl IntoIterator<Item = SessionId>) -> bool {
        let mut ended = self.ended();
        if ended.turned.elapsed() >= KEPT {
            ended.old = std::mem::take(&mut ended.young);
            ended.turned = Instant::now();
        }
        for id in ids {
            if ended.young.len() + ended.old.len() >= MOST && !ended.young.contains(&id) {
                self.0.known_at.store(0, Ordering::Release);
                return false;
            }
            ended.young.insert(id);
        }
        true
    }

    fn fails(&self, reason: &str) {
        if !self.0.failing.swap(true, Ordering::Relaxed) {
            warn!(
                "the sessions that have ended are not known, and services check every caller themselves: {reason}"
            );
        }
    }

    fn ended(&self) -> RwLockWriteGuard<'_, Ended> {
        self.0.ended.write().unwrap_or_else(PoisonError::into_inner)
    }
}
