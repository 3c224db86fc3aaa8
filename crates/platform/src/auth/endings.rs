//! Sessions that ended a moment ago, known without asking: told at once by a message, and read from PostgreSQL several
//! times a second, so that a message that was lost is made good.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use contracts::SessionId;
use coordination::news::{News, listen};
use fred::clients::Pool;
use sqlx::PgPool;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::freshness::{Freshness, KEPT, Round};
use crate::lifecycle::{Tasks, Tick};
use crate::{Clock, Platform};

/// How often PostgreSQL is read, and how long a page of it may take.
const EVERY: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_millis(500);
/// What is read twice: an end is written down at the time its writer began with, by its writer's clock.
const OVERLAP: TimeDelta = TimeDelta::seconds(60);
/// More than this are not kept, and nothing counts as known meanwhile.
const MOST: usize = 200_000;
const PAGE: usize = 10_000;

/// The sessions that ended within the last minutes. Clones share everything.
#[derive(Clone, Debug)]
pub struct Endings(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ended: RwLock<Ended>,
    freshness: Freshness,
    /// A read that has not come to its end yet.
    reading: Mutex<Option<Reading>>,
}

/// Two generations, so that forgetting costs nothing.
#[derive(Debug)]
struct Ended {
    young: HashSet<SessionId>,
    old: HashSet<SessionId>,
    turned: Instant,
}

/// Where a read stands.
#[derive(Clone, Debug)]
struct Reading {
    round: Round,
    /// The last end that was read.
    after: (DateTime<Utc>, String),
}

impl Ended {
    fn contains(&self, id: &SessionId) -> bool {
        self.young.contains(id) || self.old.contains(id)
    }
}

impl Endings {
    /// Nothing is known yet.
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner {
            ended: RwLock::new(Ended {
                young: HashSet::new(),
                old: HashSet::new(),
                turned: Instant::now(),
            }),
            freshness: Freshness::new("the sessions that have ended", clock),
            reading: Mutex::default(),
        }))
    }

    /// Begins to hear and to read, for as long as the process works.
    pub fn follow(&self, platform: &Platform, tasks: &Tasks) {
        let (heard, redis, stop) = (self.clone(), platform.redis.clone(), tasks.stopping());
        let channel = platform.keys.session_news();
        tasks.spawn("auth.endings.news", async move {
            heard.hear(&redis, &channel, &stop).await;
            Ok(())
        });
        let (this, db) = (self.clone(), platform.auth.watch().clone());
        tasks.every("auth.endings.read", EVERY, move || {
            let (this, db) = (this.clone(), db.clone());
            // The growing pauses after failures are not for this step.
            async move { Ok(this.read(&db).await) }
        });
    }

    /// Whether a session is known to have ended.
    pub fn contains(&self, id: &SessionId) -> bool {
        self.known().contains(id)
    }

    /// How old what is known is.
    pub fn freshness(&self) -> &Freshness {
        &self.0.freshness
    }

    /// Reads one page of what PostgreSQL knows; more where there is another one. What was read stays known whatever becomes
    /// of the next page, and the next read goes on behind it.
    async fn read(&self, db: &PgPool) -> Tick {
        let reading = self.reading().take();
        let reading = reading.filter(|begun| self.freshness().age(&begun.round) < KEPT);
        let Reading { round, after } = reading.unwrap_or_else(|| {
            let round = self.freshness().begin();
            let since = (round.last - OVERLAP).utc();
            let after = (since, String::new());
            Reading { round, after }
        });
        let page = match timeout(PATIENCE, ended_after(db, &after)).await {
            Ok(Ok(page)) => page,
            failed => {
                *self.reading() = Some(Reading { round, after });
                self.freshness().fails(&match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => "PostgreSQL did not answer in time".to_owned(),
                });
                return Tick::Idle;
            }
        };
        let is_last = page.len() < PAGE;
        let last = page.last();
        let after = last.map_or(after, |(at, id)| (*at, id.to_string()));
        if !self.hold(page.into_iter().map(|(_, id)| id)) {
            self.freshness().fails("there are too many");
            return Tick::Idle;
        }
        if !is_last {
            *self.reading() = Some(Reading { round, after });
            return Tick::More;
        }
        self.freshness().complete(&round);
        Tick::Idle
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

    /// Keeps ends; `false` where there are too many to keep. What is read again and again is known already: requests, which
    /// all look here, wait for new ones alone.
    fn hold(&self, ids: impl IntoIterator<Item = SessionId>) -> bool {
        let ids: Vec<SessionId> = {
            let known = self.known();
            let is_young = known.turned.elapsed() < KEPT;
            let is_new = |id: &SessionId| !(is_young && known.contains(id));
            ids.into_iter().filter(is_new).collect()
        };
        if ids.is_empty() {
            return true;
        }
        let mut ended = self.ended();
        if ended.turned.elapsed() >= KEPT {
            ended.old = std::mem::take(&mut ended.young);
            ended.turned = Instant::now();
        }
        for id in ids {
            if ended.young.len() + ended.old.len() >= MOST && !ended.young.contains(&id) {
                self.freshness().lose();
                return false;
            }
            ended.young.insert(id);
        }
        true
    }

    fn known(&self) -> RwLockReadGuard<'_, Ended> {
        self.0.ended.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self) -> RwLockWriteGuard<'_, Ended> {
        self.0.ended.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn reading(&self) -> std::sync::MutexGuard<'_, Option<Reading>> {
        self.0
            .reading
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next sessions that ended, by the clocks of those who ended them.
async fn ended_after(
    db: &PgPool,
    (at, id): &(DateTime<Utc>, String),
) -> sqlx::Result<Vec<(DateTime<Utc>, SessionId)>> {
    sqlx::query_as(
        "-- sessions::ended_after
        select ended_at, id from platform.sessions
        where ended_at >= $1 and (ended_at > $1 or id > $2) order by ended_at, id limit $3",
    )
    .bind(at)
    .bind(id)
    .bind(i64::try_from(PAGE).unwrap_or(i64::MAX))
    .fetch_all(db)
    .await
}
