//! Following the registry: read when there are news, and by a poll that is cheap enough to be often; never forgets what
//! it knew because Redis did.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::{Entry, Inner, Pace, READ, Snapshot};
use crate::{StoreError, metrics, script};

/// The shortest time from one read to the next, up to twice as long by chance.
const BREATH: Duration = Duration::from_millis(50);

/// What one read of Redis says.
pub struct Reading {
    now: DateTime<Utc>,
    epoch: String,
    entries: Vec<Entry>,
}

impl Reading {
    /// The entries that were heard of within their time to live.
    pub fn live(self, ttl: Duration) -> Snapshot {
        let ttl = TimeDelta::from_std(ttl).unwrap_or(TimeDelta::MAX);
        let oldest = self.now.checked_sub_signed(ttl);
        let oldest = oldest.unwrap_or(DateTime::<Utc>::MIN_UTC);
        Snapshot::new(
            self.entries
                .into_iter()
                .filter(|entry| entry.heartbeat_at >= oldest)
                .collect(),
        )
    }
}

impl Inner {
    pub async fn read(&self) -> Result<Reading, StoreError> {
        let tried = "read the registry";
        let answer: Vec<String> =
            script::run(&self.redis, &READ, self.script_keys(), Vec::new(), tried).await?;
        let mut words = answer.into_iter();
        let now = words
            .next()
            .and_then(|now| now.parse().ok())
            .and_then(DateTime::from_timestamp_millis);
        let epoch = words.next().unwrap_or_default();
        let rest: Vec<String> = words.collect();
        let entries = rest
            .chunks_exact(2)
            .filter_map(|pair| Entry::read(&pair[0], &pair[1]))
            .collect();
        Ok(Reading {
            now: now.unwrap_or_default(),
            epoch,
            entries,
        })
    }
}

/// Reads until the registry is left or dropped.
pub async fn run(registry: Weak<Inner>, pace: Pace) {
    let Some(left) = registry.upgrade().map(|inner| inner.left.clone()) else {
        return;
    };
    left.run_until_cancelled(follow(registry, pace)).await;
}

async fn follow(registry: Weak<Inner>, pace: Pace) {
    let mut memory = Memory::new(pace.ttl);
    while let Some(inner) = registry.upgrade() {
        let read_at = Instant::now();
        match timeout(Duration::from_secs(2), inner.read()).await {
            Ok(Ok(reading)) => {
                if reading.epoch.is_empty() {
                    // Redis has lost the registry: be back in it before anybody misses us.
                    inner.beat_now.notify_one();
                }
                let now = reading.now;
                let snapshot = memory.merge(reading, Instant::now());
                let before = inner.snapshot.borrow().clone();
                tell_lost(&lost(&before, &snapshot, now, pace.ttl));
                for service in before.services().chain(snapshot.services()) {
                    metrics::instances(service, snapshot.of(service).len());
                }
                inner.snapshot.send_if_modified(|current| {
                    let changed = **current != snapshot;
                    if changed {
                        *current = Arc::new(snapshot);
                    }
                    changed
                });
            }
            Ok(Err(_)) | Err(_) => memory.miss(),
        }
        let usual = match inner.pushed.load(Ordering::Relaxed) && !memory.missed {
            true => pace.poll_when_pushed,
            false => pace.poll,
        };
        // Nobody tells of the end of the time in which a Redis that lost its data is filled again.
        let poll = memory
            .lenient_for(Instant::now())
            .map_or(usual, |left| left.min(usual));
        tokio::select! {
            () = sleep(poll) => {}
            // News that come in a storm are read together, by each watcher at a time of its own.
            () = inner.read_now.notified() => {
                let left = BREATH.mul_f64(rand::random_range(1.0..2.0)).saturating_sub(read_at.elapsed());
                sleep(left).await;
            }
        }
    }
}

/// Instances that are not listed any more because they fell silent; who left did so with a recent heartbeat, or said
/// before that it would.
fn lost<'a>(
    before: &'a Snapshot,
    after: &Snapshot,
    now: DateTime<Utc>,
    ttl: Duration,
) -> Vec<&'a Entry> {
    let oldest = now - TimeDelta::from_std(ttl).unwrap_or(TimeDelta::MAX);
    let is_listed = |gone: &Entry| {
        let service = after.of(&gone.announcement.service).iter();
        service
            .map(|entry| &entry.announcement.replica)
            .any(|replica| *replica == gone.announcement.replica)
    };
    before
        .entries()
        .filter(|entry| entry.heartbeat_at <= oldest && !entry.load.draining && !is_listed(entry))
        .collect()
}

/// Warns once for each process, however many services it had.
fn tell_lost(lost: &[&Entry]) {
    let mut replicas: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    for entry in lost {
        metrics::instance_lost(&entry.announcement.service);
        let replica = replicas.entry(&entry.announcement.replica);
        replica.or_default().push(entry);
    }
    for entries in replicas.values() {
        let told = &entries[0].announcement;
        let names = entries
            .iter()
            .map(|entry| format!("{} {}", entry.announcement.service, entry.instance));
        warn!(
            "a replica fell silent without leaving, and is not listed any more: {} of process {} on {}, last heard of at {}",
            names.collect::<Vec<_>>().join(", "),
            told.pid,
            told.host,
            entries[0].heartbeat_at
        );
    }
}

/// What was known before, for the time in which a Redis that came back is filled again.
struct Memory {
    ttl: Duration,
    epoch: Option<String>,
    missed: bool,
    lenient_until: Option<Instant>,
    known: Vec<Entry>,
}

impl Memory {
    fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            epoch: None,
            missed: false,
            lenient_until: None,
            known: Vec::new(),
        }
    }

    /// How long those who are not heard may still come back.
    fn lenient_for(&self, now: Instant) -> Option<Duration> {
        let left = self.lenient_until?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// Redis did not answer: the last snapshot stays.
    fn miss(&mut self) {
        if !self.missed {
            warn!("the registry cannot be read: the last known instances stay");
        }
        self.missed = true;
    }

    fn merge(&mut self, reading: Reading, now: Instant) -> Snapshot {
        let lost = self
            .epoch
            .as_ref()
            .is_some_and(|epoch| *epoch != reading.epoch);
        if lost || self.missed {
            // Nobody could be heard; everybody gets the time to come back that silence would have had.
            self.lenient_until = Some(now + self.ttl);
            if !self.known.is_empty() {
                info!(
                    "the registry is back, and instances have {:?} to report again",
                    self.ttl
                );
            }
        }
        self.missed = false;
        self.epoch = Some(reading.epoch.clone());
        let lenient = self.lenient_until.is_some_and(|until| now < until);
        let mut entries: HashMap<(String, u32), Entry> = HashMap::new();
        let key = |entry: &Entry| (entry.announcement.service.clone(), entry.slot);
        if lenient {
            entries.extend(self.known.drain(..).map(|entry| (key(&entry), entry)));
        }
        let snapshot = reading.live(self.ttl);
        entries.extend(snapshot.entries().map(|entry| (key(entry), entry.clone())));
        self.known = entries.into_values().collect();
        Snapshot::new(self.known.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Announcement, Load, instance_name};
    use super::*;

    fn noon() -> DateTime<Utc> {
        "2026-01-01T12:00:00Z".parse().expect("a time")
    }

    fn entry(slot: u32, heartbeat_at: DateTime<Utc>) -> Entry {
        let announcement = Announcement {
            service: "users".into(),
            address: format!("127.0.0.1:{slot}"),
            host: "h".into(),
            zone: None,
            pid: 1,
            version: "0".into(),
            started_at: heartbeat_at,
            replica: "r".into(),
        };
        Entry {
            announcement,
            slot,
            instance: instance_name(slot),
            heartbeat_at,
            load: Load::default(),
        }
    }

    #[test]
    fn instances_are_remembered_for_a_time_to_live_after_redis_lost_them() {
        let (start, time) = (Instant::now(), noon());
        let ttl = Duration::from_secs(3);
        let mut memory = Memory::new(ttl);
        let reading = |epoch: &str, entries| Reading {
            now: time,
            epoch: epoch.into(),
            entries,
        };
        let slots = |snapshot: Snapshot| {
            snapshot
                .of("users")
                .iter()
                .map(|entry| entry.slot)
                .collect::<Vec<_>>()
        };

        let before = memory.merge(reading("a", vec![entry(0, time), entry(1, time)]), start);
        let lost = memory.merge(reading("", Vec::new()), start + ttl / 10);
        let refilled = memory.merge(reading("b", vec![entry(1, time)]), start + ttl / 5);
        let settled = memory.merge(reading("b", vec![entry(1, time)]), start + ttl * 2);

        assert_eq!(slots(before), [0, 1]);
        assert_eq!(slots(lost), [0, 1]);
        assert_eq!(slots(refilled), [0, 1]);
        assert_eq!(slots(settled), [1]);
    }

    #[test]
    fn an_instance_that_fell_silent_is_not_listed() {
        let now = noon();
        let mut memory = Memory::new(Duration::from_secs(3));

        let entries = vec![entry(0, now), entry(1, now - TimeDelta::seconds(4))];
        let snapshot = memory.merge(
            Reading {
                now,
                epoch: "a".into(),
                entries,
            },
            Instant::now(),
        );

        assert_eq!(snapshot.of("users").len(), 1);
        assert!(snapshot.of("billing").is_empty());
    }

    #[test]
    fn who_fell_silent_is_lost_and_who_left_or_came_back_elsewhere_is_not() {
        let (now, ttl) = (noon(), Duration::from_secs(3));
        let silent = now - TimeDelta::seconds(4);
        let named = |slot, at, replica: &str| {
            let mut entry = entry(slot, at);
            entry.announcement.replica = replica.into();
            entry
        };
        let mut draining = named(3, silent, "drained");
        draining.load.draining = true;
        let before = Snapshot::new(vec![
            named(0, silent, "dead"),
            named(1, now - TimeDelta::seconds(1), "left"),
            named(2, silent, "moved"),
            draining,
        ]);
        let after = Snapshot::new(vec![named(0, now, "successor"), named(5, now, "moved")]);

        let lost = lost(&before, &after, now, ttl);

        let lost: Vec<_> = lost
            .iter()
            .map(|entry| entry.announcement.replica.as_str())
            .collect();
        assert_eq!(lost, ["dead"]);
    }
}
