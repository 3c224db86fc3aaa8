//! The instances of every service, kept up to date from the registry, and the choice among them.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use contracts::Service;
use coordination::{Registry, Snapshot};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use crate::front::breaker::Breaker;
use crate::front::budget::Budget;
use crate::front::config::FrontConfig;
use crate::front::connections::Connections;
use crate::front::instance::{Instance, InstanceReport, Standing};
use crate::front::metrics;

/// An instance as the registry tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Names it for as long as it lives: a successor in the same slot has another.
    pub id: String,
    /// What people call it, as `instance-0`.
    pub name: String,
    /// Host and port of its own.
    pub address: String,
    /// It is leaving: it serves the sessions it has, and gets nothing new while there is another.
    pub draining: bool,
}

/// The instances of every service.
pub type Directory = HashMap<Service, Vec<Upstream>>;

/// The instances of every service, with what the front door learned about them. Clones share it.
#[derive(Clone, Debug)]
pub struct Upstreams(Arc<HashMap<Service, Group>>);

/// The instances of one service.
#[derive(Debug)]
pub struct Group {
    /// The service.
    pub service: Service,
    pub breaker: Breaker,
    pub budget: Budget,
    instances: RwLock<Vec<Arc<Instance>>>,
}

/// A service in the report of the front door.
#[derive(Clone, Debug, Serialize)]
pub struct GroupReport {
    /// CLOSED, OPEN or `HALF_OPEN`.
    pub state: &'static str,
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
    /// Requests that wait for a reply.
    pub outstanding: u32,
    /// Requests sent.
    pub requests: u64,
    /// Those that got no reply.
    pub failures: u64,
}

impl Upstreams {
    /// Follows the registry of the cluster.
    pub fn of(registry: &Registry, config: &FrontConfig) -> Self {
        Self::follow(registry.watch(), directory, config)
    }

    /// Follows any source. When its sender is gone, or says nothing, the last known instances stay.
    pub fn follow<T: Send + Sync + 'static>(
        mut source: watch::Receiver<Arc<T>>,
        directory: fn(&T) -> Directory,
        config: &FrontConfig,
    ) -> Self {
        let drivers = TaskTracker::new();
        let group = |service| {
            let group = Group {
                service,
                breaker: Breaker::default(),
                budget: Budget::default(),
                instances: RwLock::default(),
            };
            (service, group)
        };
        let upstreams = Self(Arc::new(Service::ALL.into_iter().map(group).collect()));
        let config = config.clone();
        let update = {
            let drivers = drivers.clone();
            move |upstreams: &Self, latest: &Directory| {
                for group in upstreams.0.values() {
                    let listed = latest.get(&group.service).map_or(&[][..], Vec::as_slice);
                    group.update(listed, &config, &drivers);
                }
            }
        };
        let first = source.borrow_and_update().clone();
        update(&upstreams, &directory(&first));
        let followed = upstreams.clone();
        drivers.spawn(async move {
            while source.changed().await.is_ok() {
                let latest = source.borrow_and_update().clone();
                update(&followed, &directory(&latest));
            }
        });
        upstreams
    }

    /// The instances of a service.
    pub fn group(&self, service: Service) -> &Group {
        self.0
            .get(&service)
            .expect("there is a group for every service")
    }

    /// Waits until this instance of each of these services is known. It may never be: bound it.
    pub async fn know(&self, services: &[Service], id: &str) {
        for service in services {
            while !self.group(*service).has(id) {
                sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Every service but the gateway itself, in the order of their ports.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        Service::ALL
            .into_iter()
            .filter(|service| *service != Service::Gateway)
            .map(|service| self.group(service))
    }

    /// What `GET /gateway/upstreams` shows under `circuitBreakers`.
    pub fn report(&self) -> HashMap<&'static str, GroupReport> {
        let now = Instant::now();
        self.groups()
            .map(|group| (group.service.name(), group.report(now)))
            .collect()
    }
}

/// What the registry says, as the front door reads it.
fn directory(snapshot: &Snapshot) -> Directory {
    let upstreams = |service: Service| {
        let entries = snapshot.of(service.name()).iter();
        let upstream = |entry: &coordination::Entry| Upstream {
            id: entry.announcement.replica.clone(),
            name: entry.instance.clone(),
            address: entry.announcement.address.clone(),
            draining: entry.load.draining,
        };
        (service, entries.map(upstream).collect())
    };
    Service::ALL.into_iter().map(upstreams).collect()
}

impl Group {
    fn has(&self, id: &str) -> bool {
        self.instances
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .any(|instance| instance.id == id)
    }

    fn update(&self, listed: &[Upstream], config: &FrontConfig, drivers: &TaskTracker) {
        let mut instances = self
            .instances
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let known = std::mem::take(&mut *instances);
        for upstream in listed {
            let same = |instance: &&Arc<Instance>| {
                instance.id == upstream.id && *instance.address == *upstream.address
            };
            let instance = known.iter().find(same).cloned().unwrap_or_else(|| {
                let address = upstream.address.clone();
                let connections = Connections::new(
                    address.clone(),
                    config.keep_idle,
                    config.connect_within,
                    drivers.clone(),
                );
                Arc::new(Instance::new(
                    upstream.id.clone(),
                    upstream.name.as_str().into(),
                    address.into(),
                    connections,
                    config.ejection,
                ))
            });
            instance.set_draining(upstream.draining);
            instances.push(instance);
        }
        for gone in known
            .iter()
            .filter(|old| !instances.iter().any(|instance| Arc::ptr_eq(instance, old)))
        {
            gone.connections.clear();
        }
    }

    /// The less busy of two instances, taken at random from those against which nothing speaks; where there is none,
    /// from the least bad ones. Those in `but` are left out.
    pub fn pick(&self, but: &[Arc<Instance>], load: fn(&Instance) -> u32) -> Option<Arc<Instance>> {
        let now = Instant::now();
        let instances = self
            .instances
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        if let ([only], []) = (instances.as_slice(), but) {
            return Some(only.clone());
        }
        let left = || {
            instances
                .iter()
                .filter(|instance| !but.iter().any(|tried| Arc::ptr_eq(tried, instance)))
        };
        let best = left().map(|instance| instance.standing(now)).min()?;
        let equals = || left().filter(|instance| instance.standing(now) == best);
        let count = equals().count();
        // The clock did not move in between, but a standing may have.
        let nth = |index: usize| equals().nth(index).or_else(|| left().next());
        if count < 2 {
            return nth(0).cloned();
        }
        let one = rand::random_range(0..count);
        let other = (one + rand::random_range(1..count)) % count;
        let (one, other) = (nth(one)?, nth(other)?);
        Some(if load(other) < load(one) {
            other.clone()
        } else {
            one.clone()
        })
    }

    /// The very instance, where it is still there.
    pub fn find(&self, id: &str, address: &str) -> Option<Arc<Instance>> {
        let instances = self
            .instances
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        instances
            .iter()
            .find(|instance| instance.id == id && *instance.address == *address)
            .cloned()
    }

    /// Whether there is an instance to try beside those in `but`.
    pub fn has_other(&self, but: &[Arc<Instance>]) -> bool {
        let instances = self
            .instances
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        instances
            .iter()
            .any(|instance| !but.iter().any(|tried| Arc::ptr_eq(tried, instance)))
    }

    /// Leaves an instance alone for a while, unless half of them are already.
    pub fn eject(&self, instance: &Instance) {
        let now = Instant::now();
        let instances = self
            .instances
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let out = instances
            .iter()
            .filter(|other| other.standing(now) == Standing::Ejected)
            .count();
        if instance.standing(now) != Standing::Ejected && (out + 1) * 2 <= instances.len() {
            instance.eject(now);
            metrics::ejected(self.service);
            tracing::warn!(
                upstream.service = %self.service,
                upstream.id = instance.id,
                "{} at {} fails again and again and is left alone for a while", self.service, instance.address
            );
        }
    }

    /// What the report says of it.
    pub fn report(&self, now: Instant) -> GroupReport {
        let instances = self
            .instances
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let instances: Vec<_> = instances
            .iter()
            .map(|instance| instance.report(now))
            .collect();
        let stats = instances
            .iter()
            .fold(Stats::default(), |sum, instance| Stats {
                instances: sum.instances + 1,
                available: sum.available
                    + usize::from(instance.state != "OPEN" && !instance.draining),
                outstanding: sum.outstanding + instance.outstanding,
                requests: sum.requests + instance.requests,
                failures: sum.failures + instance.failures,
            });
        let state = match self.breaker.name(now) {
            "CLOSED"
                if instances.is_empty()
                    || instances.iter().all(|instance| instance.state == "OPEN") =>
            {
                "OPEN"
            }
            "CLOSED" if instances.iter().all(|instance| instance.state != "CLOSED") => "HALF_OPEN",
            state => state,
        };
        GroupReport {
            state,
            stats,
            instances,
        }
    }
}
