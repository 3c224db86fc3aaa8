//! What changed within the last minutes, read from PostgreSQL several times a second, page by page, and known without
//! asking. Whoever relies on it asks first how fresh it is, and in which era it was learnt.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::time::timeout;
use tracing::warn;

use super::freshness::{Freshness, KEPT, Round};
use crate::Clock;
use crate::lifecycle::Tick;

/// How long a page may take.
const PATIENCE: Duration = Duration::from_millis(500);
/// More than this are not kept: then all are forgotten in a new era, in which each caller is looked up once more.
const MOST: usize = 200_000;
/// How many changes are read at once.
pub const PAGE: i64 = 10_000;

/// A change: when, of what, and its version.
pub type Change<K, V> = (DateTime<Utc>, K, V);

/// The latest versions of what changed.
#[derive(Debug)]
pub struct Latest<K, V> {
    /// What it is, for the log, as "the sessions that have ended".
    subject: &'static str,
    most: usize,
    kept: RwLock<Generations<K, V>>,
    freshness: Freshness,
    /// A read that has not come to its end yet.
    reading: Mutex<Option<Reading<K>>>,
}

/// Two generations, so that forgetting costs nothing.
#[derive(Debug)]
struct Generations<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    turned: Instant,
}

/// Where a read stands.
#[derive(Clone, Debug)]
pub struct Reading<K> {
    /// When it began, and how long the silence before it was.
    pub round: Round,
    /// The last change that was read, if any was.
    pub after: Option<(DateTime<Utc>, K)>,
}

impl<K: Eq + Hash, V: Copy + Ord> Generations<K, V> {
    fn of(&self, key: &K) -> Option<V> {
        self.young.get(key).max(self.old.get(key)).copied()
    }

    fn has(&self, key: &K, version: V) -> bool {
        self.of(key).is_some_and(|held| held >= version)
    }
}

impl<K: Clone + Eq + Hash, V: Copy + Ord> Latest<K, V> {
    /// Nothing is known yet.
    pub fn new(subject: &'static str, clock: Clock) -> Self {
        Self {
            subject,
            most: MOST,
            kept: RwLock::new(Generations {
                young: HashMap::new(),
                old: HashMap::new(),
                turned: Instant::now(),
            }),
            freshness: Freshness::new(subject, clock),
            reading: Mutex::default(),
        }
    }

    /// How old what is known is.
    pub fn freshness(&self) -> &Freshness {
        &self.freshness
    }

    /// The latest version that is known of a thing; `None` where it did not change lately.
    pub fn of(&self, key: &K) -> Option<V> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        kept.of(key)
    }

    /// Reads one page; more where there is another one. What was read stays known whatever becomes of the next page, and
    /// the next read goes on behind it. `page` gives at most [`PAGE`] changes, in the order of their time and key.
    pub async fn read(
        &self,
        page: impl AsyncFnOnce(&Reading<K>) -> sqlx::Result<Vec<Change<K, V>>>,
    ) -> Tick {
        let begun = self.reading().take();
        let begun = begun.filter(|begun| self.freshness.age(&begun.round) < KEPT);
        let mut reading = begun.unwrap_or_else(|| Reading {
            round: self.freshness.begin(),
            after: None,
        });
        let page = match timeout(PATIENCE, page(&reading)).await {
            Ok(Ok(page)) => page,
            failed => {
                *self.reading() = Some(reading);
                self.freshness.fails(&match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => "PostgreSQL did not answer in time".to_owned(),
                });
                return Tick::Idle;
            }
        };
        let is_last = i64::try_from(page.len()).is_ok_and(|length| length < PAGE);
        if let Some((at, key, _)) = page.last() {
            reading.after = Some((*at, key.clone()));
        }
        self.hold(page.into_iter().map(|(_, key, version)| (key, version)));
        if !is_last {
            *self.reading() = Some(reading);
            return Tick::More;
        }
        self.freshness.complete(&reading.round);
        Tick::Idle
    }

    /// Keeps versions. What is read again and again is known already: requests, which all look here, wait for new ones
    /// alone. Where there are too many, a new era begins, in which none of those before says anything.
    pub fn hold(&self, versions: impl IntoIterator<Item = (K, V)>) {
        let new: Vec<(K, V)> = {
            let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
            let is_young = kept.turned.elapsed() < KEPT;
            let is_new = |(key, version): &(K, V)| !(is_young && kept.has(key, *version));
            versions.into_iter().filter(is_new).collect()
        };
        if new.is_empty() {
            return;
        }
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if kept.turned.elapsed() >= KEPT {
            kept.old = std::mem::take(&mut kept.young);
            kept.turned = Instant::now();
        }
        for (key, version) in new {
            if kept.young.get(&key).is_some_and(|held| *held >= version) {
                continue;
            }
            let is_full = kept.young.len() + kept.old.len() >= self.most;
            if is_full && !kept.young.contains_key(&key) {
                let (most, subject) = (self.most, self.subject);
                warn!("{subject} are more than {most} within minutes: every caller is looked up");
                // Before they go: whoever finds none of them finds the new era.
                self.freshness.begin_era();
                kept.young.clear();
                kept.old.clear();
            }
            kept.young.insert(key, version);
        }
    }

    fn reading(&self) -> MutexGuard<'_, Option<Reading<K>>> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_too_much_to_keep_begins_an_era_and_is_not_lost() {
        let mut latest = Latest::new("tests", Clock::system());
        latest.most = 2;
        assert_eq!(latest.read(async |_| Ok(Vec::new())).await, Tick::Idle);
        let page = [("first", 2), ("second", 2)];

        latest.hold(page);
        let era = latest.freshness.era();
        assert_eq!(latest.of(&"first"), Some(2));
        // What is read twice is not more, and an older version says nothing.
        latest.hold(page);
        latest.hold([("first", 1)]);
        assert_eq!(latest.freshness.era(), era);
        assert_eq!(latest.of(&"first"), Some(2));

        latest.hold([("third", 2)]);
        assert_ne!(latest.freshness.era(), era);
        assert_eq!(latest.of(&"third"), Some(2));
        // Nobody who is looked up in the new era must be so at each call.
        assert!(latest.freshness.is_fresh());
    }

    #[tokio::test]
    async fn a_read_goes_on_where_it_failed_and_is_whole_at_its_last_page() {
        let latest = Latest::new("tests", Clock::system());
        let change = |number: i64| (DateTime::UNIX_EPOCH, number, ());

        let first = latest.read(async |reading| {
            assert_eq!(reading.after, None);
            Ok((0..PAGE).map(change).collect())
        });
        assert_eq!(first.await, Tick::More);
        assert!(!latest.freshness.is_fresh());
        let failed = latest.read(async |_| Err(sqlx::Error::PoolTimedOut));
        assert_eq!(failed.await, Tick::Idle);
        assert!(!latest.freshness.is_fresh());

        let last = latest.read(async |reading| {
            assert_eq!(reading.after, Some((DateTime::UNIX_EPOCH, PAGE - 1)));
            Ok(vec![change(PAGE)])
        });
        assert_eq!(last.await, Tick::Idle);
        assert!(latest.freshness.is_fresh());
        assert_eq!(latest.of(&0).and(latest.of(&PAGE)), Some(()));
    }
}
