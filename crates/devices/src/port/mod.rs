//! The ports of devices: leased in Redis, decided in PostgreSQL.

pub mod api;
pub mod db;
pub mod invariants;
pub mod jobs;

use std::net::IpAddr;
use std::time::Duration;

use contracts::DeviceId;
use coordination::port_pool::{HeldSet, RestingPort, probe};
use coordination::{PortError, PortPool, PortSet, Recorded, Replication};
use platform::Platform;
use tracing::{info, warn};

use crate::{Config, Error, error::Result, metrics};

/// How many sets one request leases and finds occupied before it gives up: some milliseconds' worth.
const PROBES: u32 = 256;
/// How often one call builds the index: another loss may come in between.
const REBUILDS: u32 = 3;

/// The ports of one node.
#[derive(Clone, Debug)]
pub struct Ports {
    pool: PortPool,
    platform: Platform,
    node: String,
    address: IpAddr,
    lease: Duration,
    quarantine: Duration,
    foreign: Duration,
}

/// A set of ports that is leased to a device that may not exist yet.
#[derive(Clone, Debug)]
pub struct Leased {
    /// To which device.
    pub owner: DeviceId,
    /// Which ports.
    pub ports: PortSet,
}

impl Ports {
    /// The ports of the configured node.
    pub fn new(platform: &Platform, config: &Config) -> Self {
        Self {
            pool: PortPool::new(
                platform.redis.clone(),
                platform.keys.clone(),
                config.ports.clone(),
                config.port_quarantine,
            )
            .replicated(Replication::of(platform.settings.redis_wait_replicas)),
            platform: platform.clone(),
            node: config.node.clone(),
            address: config.node_address,
            lease: config.port_lease,
            quarantine: config.port_quarantine,
            foreign: config.port_foreign,
        }
    }

    /// The ports of another node, to look at: only on the node itself can they be probed.
    pub fn of_node(&self, node: &str) -> Self {
        Self {
            node: node.to_owned(),
            ..self.clone()
        }
    }

    /// Leases the lowest free port of each kind to a device. What another program listens on rests, and others are taken.
    ///
    /// # Errors
    /// Where none is free, or the stores do not answer.
    pub async fn lease(&self, owner: &DeviceId) -> Result<Leased> {
        for _ in 0..PROBES {
            let ports = self.lease_unseen(owner).await?;
            let taken = probe(self.address, ports).await;
            if taken.is_empty() {
                let owner = owner.clone();
                return Ok(Leased { owner, ports });
            }
            self.pool
                .reject(&self.node, owner.as_str(), ports, &taken, self.foreign)
                .await?;
            let now = self.platform.clock.now();
            let until = now + chrono::TimeDelta::from_std(self.foreign).unwrap_or_default();
            let mut conn = self.platform.db.acquire().await?;
            for (kind, reason) in taken {
                let port = ports.of(kind);
                metrics::ports_contended("occupied");
                warn!(device.id = %owner, "{kind} port {port} of node {} rests for {:?}: {reason}", self.node, self.foreign);
                db::quarantine(&mut conn, &self.node, (kind, port), reason, now, until).await?;
            }
        }
        Err(Error::PortsContended {
            node: self.node.clone(),
            attempts: PROBES,
        })
    }

    async fn lease_unseen(&self, owner: &DeviceId) -> Result<PortSet> {
        let mut rebuilds = 0;
        loop {
            let leased = self.pool.lease(&self.node, owner.as_str(), self.lease);
            match leased.await {
                Ok(ports) => return Ok(ports),
                Err(error) => self.build_for(error, &mut rebuilds).await?,
            }
        }
    }

    /// Lists who holds ports in Redis, lowest first.
    ///
    /// # Errors
    /// Where the stores do not answer.
    pub async fn leases(&self) -> Result<Vec<HeldSet>> {
        let mut rebuilds = 0;
        loop {
            match self.pool.leases(&self.node).await {
                Ok(leases) => return Ok(leases),
                Err(error) => self.build_for(error, &mut rebuilds).await?,
            }
        }
    }

    /// Lists what rests, and why.
    ///
    /// # Errors
    /// Where the stores do not answer.
    pub async fn resting(&self) -> Result<Vec<RestingPort>> {
        let mut rebuilds = 0;
        loop {
            match self.pool.resting(&self.node).await {
                Ok(resting) => return Ok(resting),
                Err(error) => self.build_for(error, &mut rebuilds).await?,
            }
        }
    }

    /// Builds the index where it is missing, so that it can be asked again; every other error is given on.
    async fn build_for(&self, error: PortError, rebuilds: &mut u32) -> Result<()> {
        if matches!(error, PortError::IndexMissing { .. }) && *rebuilds < REBUILDS {
            *rebuilds += 1;
            return self.rebuild().await;
        }
        Err(error.into())
    }

    /// Gives back a set that no device took. Where that fails the lease ends by itself.
    pub async fn give_up(&self, leased: Leased) {
        self.release(&leased.owner, leased.ports).await;
    }

    /// Gives back the ports of a device that is gone. Where that fails the lease ends by itself.
    pub async fn release(&self, owner: &DeviceId, ports: PortSet) {
        if let Err(error) = self.pool.release(&self.node, owner.as_str(), ports).await {
            warn!(device.id = %owner, "the ports of device {owner} were not returned and will expire: {error}");
        }
    }

    /// Builds the index where it is missing, from what the database knows.
    ///
    /// # Errors
    /// Where the stores do not answer.
    pub async fn rebuild(&self) -> Result<()> {
        let recorded = self.recorded().await?;
        if self.pool.rebuild(&self.node, &recorded, self.lease).await? {
            info!(
                "built the port index of node {} anew: {} devices hold ports, {} ports rest",
                self.node,
                recorded.held.len(),
                recorded.resting.len()
            );
        }
        Ok(())
    }

    /// Puts the index right although there is one, because it contradicts the database. Living leases stay.
    ///
    /// # Errors
    /// Where the stores do not answer.
    pub async fn reconcile(&self) -> Result<()> {
        let recorded = self.recorded().await?;
        self.pool
            .reconcile(&self.node, &recorded, self.lease)
            .await?;
        Ok(())
    }

    async fn recorded(&self) -> Result<Recorded> {
        let now = self.platform.clock.now();
        let mut conn = self.platform.db.acquire().await?;
        let mut resting = db::returned(&mut conn, &self.node, now, self.quarantine).await?;
        resting.extend(db::quarantined(&mut conn, &self.node, now).await?);
        Ok(Recorded {
            held: db::held(&mut conn, &self.node).await?,
            resting,
        })
    }
}

/// Tells whether the database refused ports because another device holds one.
pub fn is_conflict(error: &sqlx::Error) -> bool {
    let constraint = error
        .as_database_error()
        .and_then(|error| error.constraint());
    matches!(
        constraint,
        Some("devices_adb_port_key" | "devices_webrtc_port_key" | "devices_scrcpy_port_key")
    )
}
