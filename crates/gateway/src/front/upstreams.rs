//! The instances of every service, kept up to date from the registry.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use contracts::Service;
use coordination::{Registry, Snapshot};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use crate::front::config::FrontConfig;
use crate::front::gate::{Gate, GateReport, Permit, Shed};
use crate::front::group::{Group, GroupReport};
use crate::front::locality::Locality;
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
    /// Where it stands.
    pub locality: Locality,
    /// It is leaving: it serves the sessions it has, and gets nothing new while there is another.
    pub draining: bool,
}

/// The instances of every service.
pub type Directory = HashMap<Service, Vec<Upstream>>;

/// The instances of every service, with what the front door learned about them. Clones share it.
#[derive(Clone, Debug)]
pub struct Upstreams(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    groups: HashMap<Service, Group>,
    gate: Gate,
    queue_within: Duration,
}

/// A request's place, until dropped.
#[derive(Debug)]
pub struct Place<'a> {
    _of_service: Permit<'a>,
    _of_all: Permit<'a>,
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
        let group = |service| (service, Group::new(service, config));
        let upstreams = Self(Arc::new(Inner {
            groups: Service::ALL.into_iter().map(group).collect(),
            gate: Gate::new(config.overload.places, config.overload.queue),
            queue_within: config.overload.queue_within,
        }));
        let every = config.balance.outlier_every;
        let config = config.clone();
        let update = {
            let drivers = drivers.clone();
            move |upstreams: &Self, latest: &Directory| {
                for group in upstreams.0.groups.values() {
                    let listed = latest.get(&group.service).map_or(&[][..], Vec::as_slice);
                    group.update(listed, &config, &drivers);
                }
            }
        };
        let first = source.borrow_and_update().clone();
        update(&upstreams, &directory(&first));
        let reviewed = Arc::downgrade(&upstreams.0);
        drivers.spawn(async move {
            sleep(every).await;
            while let Some(inner) = reviewed.upgrade() {
                for group in inner.groups.values() {
                    group.review();
                    group.publish();
                }
                metrics::all(&inner.gate.report());
                drop(inner);
                sleep(every).await;
            }
        });
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
            .groups
            .get(&service)
            .expect("there is a group for every service")
    }

    /// Takes a place for a request to a service: of the service's part first, then of all. It queues for a moment where
    /// there is none, and no longer than its reply may take.
    ///
    /// # Errors
    /// Why there is none: the queue is full, or it took too long.
    pub async fn enter<'a>(
        &'a self,
        group: &'a Group,
        within: Duration,
    ) -> Result<Place<'a>, Shed> {
        let began = Instant::now();
        let until = (began + self.0.queue_within.min(within)).into();
        let entered = async {
            let of_service = group.gate.enter(until).await?;
            let of_all = self.0.gate.enter(until).await?;
            Ok(Place {
                _of_service: of_service,
                _of_all: of_all,
            })
        };
        let entered = entered.await;
        match &entered {
            Ok(_) if began.elapsed() >= Duration::from_millis(1) => {
                metrics::queued(group.service, began.elapsed());
            }
            Ok(_) => {}
            Err(shed) => metrics::shed(group.service, *shed),
        }
        entered
    }

    /// All requests that are under way.
    pub fn requests(&self) -> GateReport {
        self.0.gate.report()
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
            locality: Locality {
                host: entry.announcement.host.clone(),
                zone: entry.announcement.zone.clone(),
            },
            draining: entry.load.draining,
        };
        (service, entries.map(upstream).collect())
    };
    Service::ALL.into_iter().map(upstreams).collect()
}
