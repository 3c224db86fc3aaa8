//! One instance of a service as the front door sees it: how busy it is, and how it has done lately.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::front::connections::Connections;

/// After so many failures in a row an instance is left alone for a while.
pub const FAILURES_TO_EJECT: u32 = 5;
/// The longest ejection, in steps.
const LONGEST: u32 = 12;
/// An ejection this long ago does not count any more.
const FORGIVEN: Duration = Duration::from_secs(60);
/// How long an instance that refused a connection is asked last.
const SUSPICION: Duration = Duration::from_secs(1);

/// One instance of a service.
#[derive(Debug)]
pub struct Instance {
    /// Names it for as long as it lives.
    pub id: String,
    /// What people call it, as `instance-0`.
    pub name: Arc<str>,
    /// Host and port of its own.
    pub address: Arc<str>,
    pub connections: Connections,
    ejection: Duration,
    born: Instant,
    draining: AtomicBool,
    outstanding: AtomicU32,
    sockets: AtomicU32,
    failures_in_a_row: AtomicU32,
    ejections: AtomicU32,
    /// Milliseconds after `born`.
    ejected_until: AtomicU64,
    suspected_until: AtomicU64,
    requests: AtomicU64,
    failures: AtomicU64,
}

/// How gladly an instance is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Nothing speaks against it.
    Good,
    /// It refused a connection a moment ago.
    Suspected,
    /// It failed again and again.
    Ejected,
    /// It is leaving.
    Draining,
}

/// An instance in the report of the front door.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceReport {
    /// Names it for as long as it lives.
    pub id: String,
    /// What people call it, as `instance-0`.
    pub name: String,
    /// Host and port of its own.
    pub address: String,
    /// The same three states as a service's.
    pub state: &'static str,
    /// Whether it is leaving.
    pub draining: bool,
    /// Requests that wait for its reply.
    pub outstanding: u32,
    /// Open sockets.
    pub sockets: u32,
    /// Requests it was sent.
    pub requests: u64,
    /// Those that got no reply.
    pub failures: u64,
    /// The same, without a reply in between.
    pub failures_in_a_row: u32,
    /// How often it was left alone, lately.
    pub ejections: u32,
}

impl Instance {
    /// An instance of which nothing is known.
    pub fn new(
        id: String,
        name: Arc<str>,
        address: Arc<str>,
        connections: Connections,
        ejection: Duration,
    ) -> Self {
        Self {
            id,
            name,
            address,
            connections,
            ejection,
            born: Instant::now(),
            draining: AtomicBool::new(false),
            outstanding: AtomicU32::new(0),
            sockets: AtomicU32::new(0),
            failures_in_a_row: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            suspected_until: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    /// Notes whether it is leaving.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// How gladly it is chosen now.
    pub fn standing(&self, now: Instant) -> Standing {
        let now = self.millis(now);
        if self.draining.load(Ordering::Relaxed) {
            Standing::Draining
        } else if now < self.ejected_until.load(Ordering::Relaxed) {
            Standing::Ejected
        } else if now < self.suspected_until.load(Ordering::Relaxed) {
            Standing::Suspected
        } else {
            Standing::Good
        }
    }

    /// Whether it was left alone and has not answered since.
    pub fn on_probation(&self) -> bool {
        self.failures_in_a_row.load(Ordering::Relaxed) > 0
            && self.ejections.load(Ordering::Relaxed) > 0
    }

    /// Requests that wait for its reply.
    pub fn outstanding(&self) -> u32 {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// The same and its sockets, for choosing where a new socket goes.
    pub fn occupancy(&self) -> u32 {
        self.outstanding()
            .saturating_add(self.sockets.load(Ordering::Relaxed))
    }

    /// It answered.
    pub fn answered(&self) {
        if self.failures_in_a_row.load(Ordering::Relaxed) != 0 {
            self.failures_in_a_row.store(0, Ordering::Relaxed);
        }
        if self.suspected_until.load(Ordering::Relaxed) != 0 {
            self.suspected_until.store(0, Ordering::Relaxed);
        }
    }

    /// It refused a connection: it is asked last for a moment. `true` where it has failed often enough to be ejected.
    pub fn refused(&self, now: Instant) -> bool {
        self.suspected_until
            .store(self.millis(now + SUSPICION), Ordering::Relaxed);
        self.failed()
    }

    /// It took a request and did not answer. `true` where it has failed often enough to be ejected.
    pub fn failed(&self) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.failures_in_a_row.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_TO_EJECT
    }

    /// Leaves it alone for a while, longer each time.
    pub fn eject(&self, now: Instant) {
        let (at, last) = (self.millis(now), self.ejected_until.load(Ordering::Relaxed));
        let forgiven = last + u64::try_from(FORGIVEN.as_millis()).unwrap_or(u64::MAX) < at;
        let before = if forgiven {
            0
        } else {
            self.ejections.load(Ordering::Relaxed)
        };
        let times = (before + 1).min(LONGEST);
        self.ejections.store(times, Ordering::Relaxed);
        self.ejected_until
            .store(self.millis(now + self.ejection * times), Ordering::Relaxed);
        // One more failure after its return is enough.
        self.failures_in_a_row
            .store(FAILURES_TO_EJECT - 1, Ordering::Relaxed);
    }

    /// What the report says of it.
    pub fn report(&self, now: Instant) -> InstanceReport {
        let state = match self.standing(now) {
            Standing::Ejected | Standing::Suspected => "OPEN",
            Standing::Good | Standing::Draining if self.on_probation() => "HALF_OPEN",
            Standing::Good | Standing::Draining => "CLOSED",
        };
        InstanceReport {
            id: self.id.clone(),
            name: self.name.to_string(),
            address: self.address.to_string(),
            state,
            draining: self.draining.load(Ordering::Relaxed),
            outstanding: self.outstanding(),
            sockets: self.sockets.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            failures_in_a_row: self.failures_in_a_row.load(Ordering::Relaxed),
            ejections: self.ejections.load(Ordering::Relaxed),
        }
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX)
    }
}

/// Counts a request as outstanding until dropped.
#[derive(Debug)]
pub struct Busy(Arc<Instance>);

impl Busy {
    /// One more.
    pub fn new(instance: &Arc<Instance>) -> Self {
        instance.outstanding.fetch_add(1, Ordering::Relaxed);
        instance.requests.fetch_add(1, Ordering::Relaxed);
        Self(instance.clone())
    }

    /// The instance that is busy.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.0
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.outstanding.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a socket as open until dropped.
#[derive(Debug)]
pub struct OpenSocket(Arc<Instance>);

impl OpenSocket {
    /// One more.
    pub fn new(instance: Arc<Instance>) -> Self {
        instance.sockets.fetch_add(1, Ordering::Relaxed);
        Self(instance)
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.sockets.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::task::TaskTracker;

    use super::*;

    fn instance() -> Instance {
        let connections = Connections::new(
            "127.0.0.1:1".into(),
            Duration::ZERO,
            Duration::ZERO,
            TaskTracker::new(),
        );
        Instance::new(
            "a".into(),
            "instance-0".into(),
            "127.0.0.1:1".into(),
            connections,
            Duration::from_secs(5),
        )
    }

    #[test]
    fn ejections_grow_and_are_forgiven() {
        let (instance, start) = (instance(), std::time::Instant::now());
        let second = Duration::from_secs(1);

        instance.eject(start);
        assert_eq!(instance.standing(start + 4 * second), Standing::Ejected);
        assert_eq!(instance.standing(start + 6 * second), Standing::Good);
        assert!(instance.failed(), "one failure after the return is enough");

        instance.eject(start + 6 * second);
        assert_eq!(instance.standing(start + 15 * second), Standing::Ejected);
        assert_eq!(instance.standing(start + 17 * second), Standing::Good);

        instance.eject(start + 100 * second);
        assert_eq!(instance.report(start + 100 * second).ejections, 1);
    }

    #[test]
    fn an_answer_clears_suspicion_and_count() {
        let (instance, now) = (instance(), std::time::Instant::now());
        for _ in 1..FAILURES_TO_EJECT {
            assert!(!instance.refused(now));
        }
        assert_eq!(instance.standing(now), Standing::Suspected);

        instance.answered();

        assert_eq!(instance.standing(now), Standing::Good);
        assert!(!instance.refused(now));
    }
}
