//! One instance of a service as the front door sees it: how busy it is, and how it has done lately.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_util::task::TaskTracker;

use crate::front::config::FrontConfig;
use crate::front::connections::Connections;
use crate::front::latencies::Latencies;
use crate::front::locality::Distance;
use crate::front::upstreams::Upstream;

/// After so many failures in a row an instance is left alone for a while.
pub const FAILURES_TO_EJECT: u32 = 5;
/// The longest ejection, in steps.
const LONGEST: u32 = 12;
/// An ejection this long ago does not count any more.
const FORGIVEN: Duration = Duration::from_secs(60);
/// How long an instance that refused a connection is asked last.
const SUSPICION: Duration = Duration::from_secs(1);
/// The share of an instance that is neither new nor back, in steps.
pub const WARM: u32 = 10;

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
    /// How far it is from here.
    pub distance: Distance,
    /// How long it took to begin its replies, lately.
    pub latencies: Latencies,
    ejection: Duration,
    /// Milliseconds.
    slow_start: u64,
    born: Instant,
    draining: AtomicBool,
    outstanding: AtomicU32,
    sockets: AtomicU32,
    failures_in_a_row: AtomicU32,
    ejections: AtomicU32,
    /// Milliseconds after `born`, as all times below.
    ejected_until: AtomicU64,
    ejected_for: AtomicU8,
    warming_since: AtomicU64,
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

/// Why an instance is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It failed again and again.
    Failures,
    /// It takes far longer than its siblings.
    Latency,
}

impl Reason {
    /// The word for it in reports and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Failures => "failures",
            Self::Latency => "latency",
        }
    }
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
    /// Why it is left alone: `failures` or `latency`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ejected_for: Option<&'static str>,
    /// The share of requests that it has reached since it is new or back, in per cent.
    pub slow_start: u32,
    /// Half of its replies began within so many milliseconds, lately.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u64>,
    /// How far it is: `host`, `zone` or `far`.
    pub distance: &'static str,
}

impl Instance {
    /// An instance of which nothing is known but what the registry tells.
    pub fn new(upstream: &Upstream, config: &FrontConfig, drivers: TaskTracker) -> Self {
        let balance = &config.balance;
        let near = balance.locality.as_ref();
        let connections = Connections::new(
            upstream.address.clone(),
            config.keep_idle,
            config.connect_within,
            config.workers,
            drivers,
        );
        Self {
            id: upstream.id.clone(),
            name: upstream.name.as_str().into(),
            address: upstream.address.as_str().into(),
            connections,
            distance: near.map_or(Distance::Far, |here| here.distance(&upstream.locality)),
            latencies: Latencies::default(),
            ejection: config.ejection,
            slow_start: u64::try_from(balance.slow_start.as_millis()).unwrap_or(u64::MAX),
            born: Instant::now(),
            draining: AtomicBool::new(upstream.draining),
            outstanding: AtomicU32::new(0),
            sockets: AtomicU32::new(0),
            failures_in_a_row: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            ejected_for: AtomicU8::new(0),
            warming_since: AtomicU64::new(0),
            suspected_until: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    /// Notes whether it is leaving.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// Whether it is leaving.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// How gladly it is chosen now. Where the group `panics`, an ejection does not count.
    pub fn standing(&self, now: Instant, panics: bool) -> Standing {
        let now = self.millis(now);
        if self.is_draining() {
            Standing::Draining
        } else if !panics && now < self.ejected_until.load(Ordering::Relaxed) {
            Standing::Ejected
        } else if now < self.suspected_until.load(Ordering::Relaxed) {
            Standing::Suspected
        } else {
            Standing::Good
        }
    }

    /// Whether it is left alone now.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.standing(now, false) == Standing::Ejected
    }

    /// The share of requests that it is due: [`WARM`] steps, from the first one as it is new or back.
    pub fn warmth(&self, now: Instant) -> u32 {
        let since = self.warming_since.load(Ordering::Relaxed);
        let warmed = self.millis(now).saturating_sub(since);
        match warmed < self.slow_start {
            true => u32::try_from(warmed * u64::from(WARM) / self.slow_start)
                .map_or(1, |steps| steps.max(1)),
            false => WARM,
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

    /// Leaves it alone for a while, longer each time; it returns as one that is new.
    pub fn eject(&self, now: Instant, reason: Reason) {
        let (at, last) = (self.millis(now), self.ejected_until.load(Ordering::Relaxed));
        let forgiven = last + u64::try_from(FORGIVEN.as_millis()).unwrap_or(u64::MAX) < at;
        let before = if forgiven {
            0
        } else {
            self.ejections.load(Ordering::Relaxed)
        };
        let times = (before + 1).min(LONGEST);
        self.ejections.store(times, Ordering::Relaxed);
        self.ejected_for.store(reason as u8, Ordering::Relaxed);
        let until = self.millis(now + self.ejection * times);
        self.warming_since.store(until, Ordering::Relaxed);
        self.ejected_until.store(until, Ordering::Relaxed);
        match reason {
            // One more failure after its return is enough.
            Reason::Failures => self
                .failures_in_a_row
                .store(FAILURES_TO_EJECT - 1, Ordering::Relaxed),
            // It is judged anew.
            Reason::Latency => self.latencies.clear(),
        }
    }

    /// What the report says of it.
    pub fn report(&self, now: Instant) -> InstanceReport {
        let standing = self.standing(now, false);
        let ejected_for = match self.ejected_for.load(Ordering::Relaxed) {
            0 => Reason::Failures,
            _ => Reason::Latency,
        };
        let state = match standing {
            Standing::Ejected | Standing::Suspected => "OPEN",
            Standing::Good | Standing::Draining if self.on_probation() => "HALF_OPEN",
            Standing::Good | Standing::Draining => "CLOSED",
        };
        InstanceReport {
            id: self.id.clone(),
            name: self.name.to_string(),
            address: self.address.to_string(),
            state,
            draining: self.is_draining(),
            outstanding: self.outstanding(),
            sockets: self.sockets.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            failures_in_a_row: self.failures_in_a_row.load(Ordering::Relaxed),
            ejections: self.ejections.load(Ordering::Relaxed),
            ejected_for: (standing == Standing::Ejected).then_some(ejected_for.name()),
            slow_start: self.warmth(now) * 100 / WARM,
            latency_ms: self
                .latencies
                .median()
                .map(|median| u64::try_from(median.latency.as_millis()).unwrap_or(u64::MAX)),
            distance: self.distance.name(),
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
    use super::*;
    use crate::front::locality::Locality;

    fn instance() -> Instance {
        let upstream = Upstream {
            id: "a".into(),
            name: "instance-0".into(),
            address: "127.0.0.1:1".into(),
            locality: Locality {
                host: "h".into(),
                zone: None,
            },
            draining: false,
        };
        Instance::new(&upstream, &FrontConfig::default(), TaskTracker::new())
    }

    #[test]
    fn ejections_grow_and_are_forgiven() {
        let (instance, start) = (instance(), std::time::Instant::now());
        let second = Duration::from_secs(1);

        instance.eject(start, Reason::Failures);
        assert_eq!(
            instance.standing(start + 4 * second, false),
            Standing::Ejected
        );
        assert_eq!(instance.standing(start + 6 * second, false), Standing::Good);
        assert!(instance.failed(), "one failure after the return is enough");

        instance.eject(start + 6 * second, Reason::Failures);
        assert_eq!(
            instance.standing(start + 15 * second, false),
            Standing::Ejected
        );
        assert_eq!(
            instance.standing(start + 17 * second, false),
            Standing::Good
        );

        instance.eject(start + 100 * second, Reason::Failures);
        assert_eq!(instance.report(start + 100 * second).ejections, 1);
    }

    #[test]
    fn an_answer_clears_suspicion_and_count() {
        let (instance, now) = (instance(), std::time::Instant::now());
        for _ in 1..FAILURES_TO_EJECT {
            assert!(!instance.refused(now));
        }
        assert_eq!(instance.standing(now, false), Standing::Suspected);

        instance.answered();

        assert_eq!(instance.standing(now, false), Standing::Good);
        assert!(!instance.refused(now));
    }
}
