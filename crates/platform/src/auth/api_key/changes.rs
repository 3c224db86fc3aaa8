//! API keys that changed a moment ago, read from PostgreSQL several times a second: whoever verified one of an older version
//! looks it up anew.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use contracts::ApiKeyId;
use sqlx::PgPool;
use tokio::time::timeout;
use tracing::warn;

use crate::Clock;
use crate::auth::freshness::{Freshness, KEPT, Round};
use crate::lifecycle::Tick;

const PATIENCE: Duration = Duration::from_millis(500);
/// What is read twice: a change has the time of its statement, and shows with the end of its transaction. Longer than a
/// key counts as looked up by more than a transaction may take.
const OVERLAP: TimeDelta = TimeDelta::seconds(90);
/// More than this are not kept: then all are forgotten, and each key is looked up once more.
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
        self.hold(&page, MOST);
        if page.len() >= PAGE {
            let after = page.into_iter().next_back().map(|(at, id, _)| (at, id));
            *self.reading() = Some(Reading { round, after });
            return Tick::More;
        }
        self.freshness.complete(&round);
        Tick::Idle
    }

    /// Keeps versions, `most` of them. Where there are more, a new era begins, in which none of them says anything.
    fn hold(&self, page: &[Change], most: usize) {
        let is_known = {
            let known = self.versions.read().unwrap_or_else(PoisonError::into_inner);
            let is_young = known.turned.elapsed() < KEPT;
            let mut page = page.iter();
            is_young
                && page.all(|(_, id, version)| known.of(id).is_some_and(|held| held >= *version))
        };
        if is_known {
            return;
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
            let is_full = versions.young.len() + versions.old.len() >= most;
            if is_full && !versions.young.contains_key(id) {
                warn!(
                    "more than {most} API keys changed within minutes: each is looked up once more"
                );
                // Before they go: whoever finds none of them finds the new era.
                self.freshness.begin_era();
                versions.young.clear();
                versions.old.clear();
            }
            versions.young.insert(id.clone(), *version);
        }
    }

    fn reading(&self) -> MutexGuard<'_, Option<Reading>> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next keys that changed since they were made, by the clock of the database alone: how far back the first page begins is a span.
async fn changed_after(
    db: &PgPool,
    round: &Round,
    after: Option<&(DateTime<Utc>, ApiKeyId)>,
) -> sqlx::Result<Vec<Change>> {
    sqlx::query_as(
        "-- api_keys::changed_after
        select changed_at, id, version from platform.api_keys
        where version > 1 and changed_at >= coalesce($1, now() - make_interval(secs => $2))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_to_keep_begins_an_era_and_is_not_lost() {
        let changes = Changes::new(Clock::system());
        let change = |version| (DateTime::UNIX_EPOCH, ApiKeyId::new(), version);
        let [first, second, third] = [change(2), change(2), change(2)];
        let page = [first.clone(), second.clone()];
        changes.freshness.complete(&changes.freshness.begin());

        changes.hold(&page, 2);
        let era = changes.freshness.era();
        assert!(!changes.is_latest(&first.1, 1));
        // What is read twice is not more.
        changes.hold(&page, 2);
        assert_eq!(changes.freshness.era(), era);

        changes.hold(std::slice::from_ref(&third), 2);
        assert_ne!(changes.freshness.era(), era);
        assert!(!changes.is_latest(&third.1, 1));
        assert!(changes.is_latest(&third.1, 2));
        // Nobody who learns a key in the new era must look it up at each call.
        assert!(changes.freshness.is_fresh());
    }
}
