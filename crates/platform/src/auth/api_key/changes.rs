//! API keys that changed a moment ago, read from PostgreSQL several times a second: whoever verified one of an older version
//! looks it up anew.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use contracts::ApiKeyId;
use sqlx::PgPool;
use tokio::time::timeout;

use crate::Clock;
use crate::auth::freshness::{Freshness, KEPT, Round};
use crate::lifecycle::Tick;

const PATIENCE: Duration = Duration::from_millis(500);
/// What is read twice: a change has the time of its statement, and shows with the end of its transaction. Longer than a
/// key counts as looked up by more than a transaction may take.
const OVERLAP: TimeDelta = TimeDelta::seconds(90);
/// More than this are not kept, and nothing counts as known meanwhile.
const MOST: usize = 200_000;
const PAGE: usize = 10_000;

/// The versions of the keys that changed within the last minutes.
#[derive(Debug)]
pub struct Changes {
    versions: RwLock<Versions>,
    freshness: Freshness,
    /// A read that has not come to its end yet.
    reading: Mutex<Option<Reading>>,
}

/// Two generations, so that forgetting costs nothing.
#[derive(Debug)]
struct Versions {
    young: HashMap<ApiKeyId, i64>,
    old: HashMap<ApiKeyId, i64>,
    turned: Instant,
}

/// Where a read stands: the last change that was read, if any was.
#[derive(Clone, Debug)]
struct Reading {
    round: Round,
    after: Option<(DateTime<Utc>, ApiKeyId)>,
}

type Change = (DateTime<Utc>, ApiKeyId, i64);

impl Versions {
    fn of(&self, id: &ApiKeyId) -> Option<i64> {
        self.young.get(id).max(self.old.get(id)).copied()
    }
}

impl Changes {
    /// Nothing is known yet.
    pub fn new(clock: Clock) -> Self {
        Self {
            versions: RwLock::new(Versions {
                young: HashMap::new(),
                old: HashMap::new(),
                turned: Instant::now(),
            }),
            freshness: Freshness::new("the API keys that have changed", clock),
            reading: Mutex::default(),
        }
    }

    /// How old what is known is.
    pub fn freshness(&self) -> &Freshness {
        &self.freshness
    }

    /// Whether no later version of a key is known.
    pub fn is_latest(&self, id: &ApiKeyId, version: i64) -> bool {
        let versions = self.versions.read().unwrap_or_else(PoisonError::into_inner);
        versions.of(id).is_none_or(|latest| latest <= version)
    }

    /// Reads one page of what PostgreSQL knows; more where there is another one.
    pub async fn read(&self, db: &PgPool) -> Tick {
        let reading = self.reading().take();
        let reading = reading.filter(|begun| self.freshness.age(&begun.round) < KEPT);
        let Reading { round, after } = reading.unwrap_or_else(|| Reading {
            round: self.freshness.begin(),
            after: None,
        });
        let page = match timeout(PATIENCE, changed_after(db, &round, after.as_ref())).await {
            Ok(Ok(page)) => page,
            failed => {
                *self.reading() = Some(Reading { round, after });
                self.freshness.fails(&match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => "PostgreSQL did not answer in time".to_owned(),
                });
                return Tick::Idle;
            }
        };
        if !self.hold(&page) {
            self.freshness.fails("there are too many");
            return Tick::Idle;
        }
        if page.len() >= PAGE {
            let after = page.into_iter().next_back().map(|(at, id, _)| (at, id));
            *self.reading() = Some(Reading { round, after });
            return Tick::More;
        }
        self.freshness.complete(&round);
        Tick::Idle
    }

    /// Keeps versions; `false` where there are too many to keep.
    fn hold(&self, page: &[Change]) -> bool {
        let is_known = {
            let known = self.versions.read().unwrap_or_else(PoisonError::into_inner);
            let is_young = known.turned.elapsed() < KEPT;
            let mut page = page.iter();
            is_young
                && page.all(|(_, id, version)| known.of(id).is_some_and(|held| held >= *version))
        };
        if is_known {
            return true;
        }
        let mut versions = self
            .versions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if versions.turned.elapsed() >= KEPT {
            versions.old = std::mem::take(&mut versions.young);
            versions.turned = Instant::now();
        }
        for (_, id, version) in page {
            if versions.of(id).is_some_and(|held| held >= *version) {
                continue;
            }
            let is_full = versions.young.len() + versions.old.len() >= MOST;
            if is_full && !versions.young.contains_key(id) {
                self.freshness.lose();
                return false;
            }
            versions.young.insert(id.clone(), *version);
        }
        true
    }

    fn reading(&self) -> MutexGuard<'_, Option<Reading>> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next keys that changed, by the clock of the database alone: how far back the first page begins is a span.
async fn changed_after(
    db: &PgPool,
    round: &Round,
    after: Option<&(DateTime<Utc>, ApiKeyId)>,
) -> sqlx::Result<Vec<Change>> {
    sqlx::query_as(
        "-- api_keys::changed_after
        select changed_at, id, version from platform.api_keys
        where changed_at >= coalesce($1, now() - make_interval(secs => $2))
          and ($1 is null or changed_at > $1 or id > $3)
        order by changed_at, id limit $4",
    )
    .bind(after.map(|(at, _)| at))
    .bind((round.silence() + OVERLAP).as_seconds_f64())
    .bind(after.map(|(_, id)| id))
    .bind(i64::try_from(PAGE).unwrap_or(i64::MAX))
    .fetch_all(db)
    .await
}
