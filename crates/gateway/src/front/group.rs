//! The instances of one service, with what the front door learned about them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use contracts::Service;
use serde::Serialize;
use tokio_util::task::TaskTracker;

use crate::front::breaker::Breaker;
use crate::front::budget::Budget;
use crate::front::choice::{self, Load};
use crate::front::config::{Balance, FrontConfig};
use crate::front::gate::{Gate, GateReport};
use crate::front::instance::{Instance, InstanceReport, Reason};
use crate::front::metrics;
use crate::front::outliers::outliers;
use crate::front::upstreams::Upstream;

/// The instances of one service.
#[derive(Debug)]
pub struct Group {
    /// The service.
    pub service: Service,
    pub breaker: Breaker,
    pub budget: Budget,
    /// The service's part of the places.
    pub gate: Gate,
    balance: Balance,
    instances: ArcSwap<Vec<Arc<Instance>>>,
    /// Held while it is decided whether one more may be left alone.
    ejecting: Mutex<()>,
}

/// A service in the report of the front door.
#[derive(Clone, Debug, Serialize)]
pub struct GroupReport {
    /// CLOSED, OPEN or `HALF_OPEN`.
    pub state: &'static str,
    /// Whether so many are left alone that all share the load again.
    pub panics: bool,
    /// The requests to it that are under way.
    pub requests: GateReport,
    /// Sums over the instances.
    pub stats: Stats,
    /// Each instance.
    pub instances: Vec<InstanceReport>,
}

/// Sums over the instances of a service.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Stats {
    /// Instances in the registry.
    pub instances: usize,
    /// Those that may be chosen.
    pub available: usize,
    /// Those that are left alone.
    pub ejected: usize,
    /// Those of the available whose share grows.
    pub warming: usize,
    /// Requests that wait for a reply.
    pub outstanding: u32,
    /// Requests sent.
    pub requests: u64,
    /// Those that got no reply.
    pub failures: u64,
}

impl Group {
    /// No instance yet.
    pub fn new(service: Service, config: &FrontConfig) -> Self {
        Self {
            service,
            breaker: Breaker::default(),
            budget: Budget::default(),
            gate: Gate::new(
                config.overload.of_a_service(config.overload.places),
                config.overload.of_a_service(config.overload.queue),
            ),
            balance: config.balance.clone(),
            instances: ArcSwap::default(),
            ejecting: Mutex::default(),
        }
    }

    /// Whether an instance with this id is known.
    pub fn has(&self, id: &str) -> bool {
        self.instances.load().iter().any(|known| known.id == id)
    }

    /// Takes over what the registry says. Only one task may call it.
    pub fn update(&self, listed: &[Upstream], config: &FrontConfig, drivers: &TaskTracker) {
        let known = self.instances.load_full();
        let instance = |upstream: &Upstream| {
            let same = |instance: &&Arc<Instance>| {
                instance.id == upstream.id && *instance.address == *upstream.address
            };
            let instance = known.iter().find(same).cloned();
            let instance = instance
                .unwrap_or_else(|| Arc::new(Instance::new(upstream, config, drivers.clone())));
            instance.set_draining(upstream.draining);
            instance
        };
        let instances: Vec<_> = listed.iter().map(instance).collect();
        let stays = |old: &Arc<Instance>| instances.iter().any(|one| Arc::ptr_eq(one, old));
        let gone: Vec<_> = known.iter().filter(|old| !stays(old)).cloned().collect();
        self.instances.store(Arc::new(instances));
        for instance in gone {
            instance.connections.clear();
        }
    }

    /// The instance that a request goes to; those in `but` are left out.
    pub fn pick(&self, but: &[Arc<Instance>], load: Load) -> Option<Arc<Instance>> {
        let instances = self.instances.load();
        choice::choose(&instances, but, load, &self.balance, Instant::now()).cloned()
    }

    /// The very instance, where it is still there.
    pub fn find(&self, id: &str, address: &str) -> Option<Arc<Instance>> {
        let instances = self.instances.load();
        let same = |instance: &&Arc<Instance>| instance.id == id && *instance.address == *address;
        instances.iter().find(same).cloned()
    }

    /// Whether there is an instance to try beside those in `but`.
    pub fn has_other(&self, but: &[Arc<Instance>]) -> bool {
        let tried = |instance: &Arc<Instance>| but.iter().any(|tried| Arc::ptr_eq(tried, instance));
        self.instances.load().iter().any(|one| !tried(one))
    }

    /// Leaves an instance alone for a while, unless too many of them are already.
    pub fn eject(&self, instance: &Instance, reason: Reason) {
        let now = Instant::now();
        let _deciding = self.ejecting.lock().unwrap_or_else(PoisonError::into_inner);
        let instances = self.instances.load();
        let present = instances.iter().filter(|other| !other.is_draining());
        let out = instances
            .iter()
            .filter(|other| other.is_ejected(now))
            .count();
        let percent = self.balance.most_ejected_percent;
        let most = match present.count() {
            0 | 1 => 0,
            present => (present * percent / 100).clamp(usize::from(percent > 0), present - 1),
        };
        if instance.is_ejected(now) || out >= most {
            return;
        }
        instance.eject(now, reason);
        metrics::ejected(self.service, reason.name());
        let why = match reason {
            Reason::Failures => "fails again and again",
            Reason::Latency => "takes many times longer than its siblings",
        };
        tracing::warn!(
            upstream.service = %self.service,
            upstream.id = instance.id,
            "{} at {} {why} and is left alone for a while", self.service, instance.address
        );
    }

    /// Compares the instances, leaves alone those that lag, lets what is old fade, and closes what was idle for too long.
    pub fn review(&self) {
        let now = Instant::now();
        let instances = self.instances.load_full();
        let judged =
            |instance: &&Arc<Instance>| !instance.is_draining() && !instance.is_ejected(now);
        for instance in instances.iter() {
            instance.connections.prune();
        }
        for instance in instances.iter().filter(|instance| instance.is_ejected(now)) {
            // What it still answers is from before; after its return it is judged anew.
            instance.latencies.clear();
        }
        let judged: Vec<_> = instances.iter().filter(judged).collect();
        let medians: Vec<_> = judged.iter().map(|one| one.latencies.median()).collect();
        for index in outliers(&medians, &self.balance) {
            self.eject(judged[index], Reason::Latency);
        }
        for instance in judged {
            instance.latencies.fade();
        }
    }

    /// Tells how it is in metrics.
    pub fn publish(&self) {
        let report = self.report(Instant::now());
        metrics::group(self.service, &report);
    }

    /// What the report says of it.
    pub fn report(&self, now: Instant) -> GroupReport {
        let instances = self.instances.load();
        let panics = choice::panics(&instances, &self.balance, now);
        let ejected = instances.iter().filter(|one| one.is_ejected(now)).count();
        let instances: Vec<_> = instances
            .iter()
            .map(|instance| instance.report(now))
            .collect();
        let sums = Stats {
            ejected,
            ..Stats::default()
        };
        let stats = instances.iter().fold(sums, |sum, instance| {
            let available = instance.state != "OPEN" && !instance.draining;
            Stats {
                instances: sum.instances + 1,
                available: sum.available + usize::from(available),
                ejected: sum.ejected,
                warming: sum.warming + usize::from(available && instance.slow_start < 100),
                outstanding: sum.outstanding + instance.outstanding,
                requests: sum.requests + instance.requests,
                failures: sum.failures + instance.failures,
            }
        });
        let all_open =
            !instances.is_empty() && instances.iter().all(|instance| instance.state == "OPEN");
        let state = match self.breaker.name(now) {
            "CLOSED" if all_open => "OPEN",
            "CLOSED" if instances.iter().all(|instance| instance.state != "CLOSED") => "HALF_OPEN",
            state => state,
        };
        GroupReport {
            state,
            panics,
            requests: self.gate.report(),
            stats,
            instances,
        }
    }
}
