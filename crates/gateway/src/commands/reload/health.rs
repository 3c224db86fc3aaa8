//! Which instances of the cluster are well, as they say themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use coordination::{Entry, Registry};
use futures::{StreamExt, stream};

use super::process::listens;

/// How long an instance may take to say that it is ready.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// How many are asked at once.
const ASKED: usize = 64;

/// The registry, and a client to ask those who are in it.
pub struct Cluster {
    registry: Registry,
    client: reqwest::Client,
}

/// A replica of this machine: one process, with its instances of one or more services.
pub struct Replica {
    /// Its name, which no other has.
    pub id: String,
    /// The number of its process, which one in another container of this machine may have too.
    pub pid: u32,
    /// What it runs.
    pub version: String,
    /// Its instances.
    pub entries: Vec<Entry>,
}

impl Replica {
    /// The services that it serves.
    pub fn services(&self) -> BTreeSet<String> {
        let services = self.entries.iter();
        services
            .map(|entry| entry.announcement.service.clone())
            .collect()
    }

    /// The instances by service and slot, for people.
    pub fn instances(&self) -> String {
        let names = self.entries.iter().map(|entry| {
            let service = &entry.announcement.service;
            format!("{service} {}", entry.instance)
        });
        names.collect::<Vec<_>>().join(", ")
    }

    /// An address at which its process listens alone.
    ///
    /// # Errors
    /// Where the registry has no address of numbers.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        let first = self
            .entries
            .first()
            .context("a replica without instances")?;
        address(first)
    }

    /// Whether its process listens at every address that the registry has.
    fn is_here(&self) -> bool {
        let mut addresses = self.entries.iter().map(address);
        addresses.all(|address| address.is_ok_and(|address| listens(self.pid, address.port())))
    }
}

fn address(entry: &Entry) -> anyhow::Result<SocketAddr> {
    let address = &entry.announcement.address;
    address
        .parse()
        .with_context(|| format!("the registry has a strange address, {address}"))
}

/// One look at the cluster, or at a part of it.
pub struct Look {
    /// The instances that want requests, and the others with what they said.
    instances: Vec<(Entry, Result<(), String>)>,
}

impl Cluster {
    /// Asks nobody yet.
    pub fn new(registry: Registry) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(ANSWER_WITHIN)
            .build()?;
        Ok(Self { registry, client })
    }

    /// Asks every instance in the registry how it does.
    ///
    /// # Errors
    /// Where the registry cannot be read.
    pub async fn look(&self) -> anyhow::Result<Look> {
        self.look_at(|_| true).await
    }

    /// The same of the processes with a number, on a machine.
    ///
    /// # Errors
    /// Where the registry cannot be read.
    pub async fn look_for(&self, host: &str, pid: u32) -> anyhow::Result<Look> {
        self.look_at(|entry| entry.announcement.host == host && entry.announcement.pid == pid)
            .await
    }

    async fn look_at(&self, which: impl Fn(&Entry) -> bool) -> anyhow::Result<Look> {
        let snapshot = self.registry.read().await?;
        let entries: Vec<Entry> = snapshot
            .entries()
            .filter(|entry| which(entry))
            .cloned()
            .collect();
        let asked = stream::iter(entries).map(|entry| async move {
            let health = self.ask(&entry).await;
            (entry, health)
        });
        Ok(Look {
            instances: asked.buffered(ASKED).collect().await,
        })
    }

    async fn ask(&self, entry: &Entry) -> Result<(), String> {
        if entry.load.draining {
            return Err("is leaving".to_owned());
        }
        let url = format!("http://{}/health/readiness", entry.announcement.address);
        match self.client.get(url).send().await {
            Ok(reply) if reply.status().is_success() => Ok(()),
            Ok(reply) => Err(format!("says {} to /health/readiness", reply.status())),
            Err(error) if error.is_timeout() => Err("does not answer /health/readiness".to_owned()),
            Err(_) => Err("cannot be reached".to_owned()),
        }
    }
}

impl Look {
    /// The replicas of a machine, by the number of their process.
    pub fn replicas_on(&self, host: &str) -> Vec<Replica> {
        let mut replicas: BTreeMap<(u32, &str), Vec<Entry>> = BTreeMap::new();
        for (entry, _) in &self.instances {
            let told = &entry.announcement;
            if told.host == host {
                let entries = replicas.entry((told.pid, &told.replica)).or_default();
                entries.push(entry.clone());
            }
        }
        let replicas = replicas.into_iter().map(|((pid, id), entries)| Replica {
            id: id.to_owned(),
            pid,
            version: entries[0].announcement.version.clone(),
            entries,
        });
        replicas.collect()
    }

    /// Whether a replica that runs here serves all of these services and wants requests.
    pub fn is_ready(&self, replica: &Replica, services: &BTreeSet<String>) -> bool {
        let ready = self
            .instances
            .iter()
            .filter(|(entry, health)| entry.announcement.replica == replica.id && health.is_ok());
        let ready: BTreeSet<_> = ready
            .map(|(entry, _)| &entry.announcement.service)
            .collect();
        services.iter().all(|service| ready.contains(service)) && replica.is_here()
    }

    /// How many instances of a service are well; those of one replica can be left out.
    pub fn healthy(&self, service: &str, without: Option<&Replica>) -> usize {
        let left_out = |entry: &Entry| {
            without.is_some_and(|replica| {
                let own = &replica.entries;
                own.iter()
                    .any(|own| own.announcement.replica == entry.announcement.replica)
            })
        };
        let healthy = self.instances.iter().filter(|(entry, health)| {
            entry.announcement.service == service && health.is_ok() && !left_out(entry)
        });
        healthy.count()
    }

    /// Whether every instance in the registry is well.
    pub fn is_well(&self) -> bool {
        self.instances.iter().all(|(_, health)| health.is_ok())
    }

    /// What ails the instances of these services that are not well.
    pub fn ailing(&self, services: &BTreeSet<String>) -> Vec<String> {
        let ailing = self.instances.iter().filter_map(|(entry, health)| {
            let told = &entry.announcement;
            let ails = health.as_ref().err()?;
            services.contains(&told.service).then(|| {
                format!(
                    "{} {} ({}:{}) {ails}",
                    told.service, entry.instance, told.host, told.pid
                )
            })
        });
        ailing.collect()
    }
}
