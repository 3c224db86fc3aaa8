//! The decision log: the records of the latest requests in the memory of this replica.
//!
//! There are two rings, so that a flood of ordinary requests does not wash away those somebody will ask about. A record
//! is put into the next slot of its ring; the slot's own lock is all that writers share, and only when one ring was
//! filled once around in the meantime.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::front::record::Record;

/// Records of one id that are told: a client may use an id again and again.
const TOLD: usize = 20;

/// The records of the latest requests. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Decisions(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ordinary: Ring,
    notable: Ring,
    keep: Duration,
}

#[derive(Debug)]
struct Ring {
    next: AtomicUsize,
    slots: Box<[Slot]>,
}

type Slot = Mutex<Option<Kept>>;

#[derive(Debug)]
struct Kept {
    since: Instant,
    record: Box<Record>,
}

impl Decisions {
    /// Keeps so many ordinary records, and as many notable ones, for so long.
    pub fn new(count: usize, keep: Duration) -> Self {
        Self(Arc::new(Inner {
            ordinary: Ring::new(count),
            notable: Ring::new(count),
            keep,
        }))
    }

    /// Keeps a record in the place of the oldest one of its kind.
    pub fn keep(&self, record: Box<Record>, notable: bool) {
        let ring = match notable {
            true => &self.0.notable,
            false => &self.0.ordinary,
        };
        ring.put(Kept {
            since: Instant::now(),
            record,
        });
    }

    /// The latest records of a request id, newest first.
    pub fn find(&self, request_id: &str) -> Vec<Record> {
        let mut found: Vec<(Instant, Record)> = Vec::new();
        self.each(|kept| {
            if *kept.record.request_id == *request_id {
                found.push((kept.since, (*kept.record).clone()));
            }
        });
        found.sort_by_key(|(since, _)| std::cmp::Reverse(*since));
        let found = found.into_iter().map(|(_, record)| record);
        found.take(TOLD).collect()
    }

    /// Forgets what has been kept for long enough. What is too old is never found, whether this was called or not.
    pub fn forget_old(&self) {
        self.each(|_| {});
    }

    fn each(&self, mut see: impl FnMut(&Kept)) {
        let Inner {
            ordinary,
            notable,
            keep,
        } = &*self.0;
        for slot in ordinary.slots.iter().chain(&notable.slots) {
            let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            match &*slot {
                Some(kept) if kept.since.elapsed() >= *keep => *slot = None,
                Some(kept) => see(kept),
                None => {}
            }
        }
    }
}

impl Ring {
    fn new(count: usize) -> Self {
        Self {
            next: AtomicUsize::new(0),
            slots: (0..count).map(|_| Slot::default()).collect(),
        }
    }

    fn put(&self, kept: Kept) {
        let Some(last) = self.slots.len().checked_sub(1) else {
            return;
        };
        let next = self.next.fetch_add(1, Ordering::Relaxed) % (last + 1);
        let slot = self.slots[next].lock();
        let before = slot.unwrap_or_else(PoisonError::into_inner).replace(kept);
        // The memory of the old one is given back after the lock.
        drop(before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, path: &str) -> Box<Record> {
        Box::new(Record::for_tests(id, path))
    }

    fn paths(decisions: &Decisions, id: &str) -> Vec<String> {
        let found = decisions.find(id).into_iter();
        found.map(|record| record.path.into()).collect()
    }

    #[test]
    fn the_oldest_goes_first_and_notable_ones_have_places_of_their_own() {
        let decisions = Decisions::new(3, Duration::from_secs(60));
        decisions.keep(record("failed", "/failed"), true);
        for number in 0..100 {
            decisions.keep(record(&number.to_string(), "/"), false);
        }

        assert_eq!(paths(&decisions, "failed"), ["/failed"]);
        for (id, known) in [("96", 0), ("97", 1), ("98", 1), ("99", 1)] {
            assert_eq!(paths(&decisions, id).len(), known, "{id}");
        }
    }

    #[test]
    fn an_id_that_was_used_again_is_told_newest_first_up_to_a_bound() {
        let decisions = Decisions::new(100, Duration::from_secs(60));
        decisions.keep(record("a", "/1"), false);
        decisions.keep(record("a", "/2"), true);
        decisions.keep(record("a", "/3"), false);
        assert_eq!(paths(&decisions, "a"), ["/3", "/2", "/1"]);

        for _ in 0..100 {
            decisions.keep(record("b", "/"), false);
        }
        assert_eq!(paths(&decisions, "b").len(), TOLD);
    }

    #[test]
    fn what_is_too_old_is_not_told_and_its_memory_is_given_back() {
        let decisions = Decisions::new(2, Duration::ZERO);
        decisions.keep(record("a", "/"), false);

        assert!(decisions.find("a").is_empty());
        assert!(
            decisions
                .0
                .ordinary
                .slots
                .iter()
                .all(|slot| slot.lock().unwrap().is_none())
        );

        let none = Decisions::new(0, Duration::from_secs(60));
        none.keep(record("a", "/"), true);
        assert!(none.find("a").is_empty());
    }
}
