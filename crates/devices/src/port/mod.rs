//! The ports of devices: leased in Redis, decided in PostgreSQL.

pub mod api;
pub mod db;
pub mod invariants;
pub mod jobs;

use std::convert::Infallible;
use std::net::IpAddr;
use std::time::Duration;

use contracts::DeviceId;
use coordination::port_pool::{HeldSet, RestingPort, probe};
use coordination::{PortError, PortPool, PortSet, Recorded, Replication};
use platform::Platform;
use sqlx::Connection;
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::node::Node;
use crate::{Config, Error, error::Result, metrics};

/// How many sets one request leases and finds occupied before it gives up, if its deadline does not come first.
const PROBES: u32 = 256;
/// How long another replica that probes the same ports at the same moment may be in the way.
const SECOND_LOOK: Duration = Duration::from_millis(20);
/// How long giving back a set that its creation left behind may take.
const GIVE_BACK: Duration = Duration::from_secs(10);
/// How long after the first try the second one to give back follows; each further one after twice the time.
const GIVE_BACK_AGAIN: Duration = Duration::from_millis(250);
/// How often one call builds the index: another loss may come in between.
const REBUILDS: u32 = 3;

/// The ports of one node, and the way to those of the others.
#[derive(Clone, Debug)]
pub struct Ports {
    pool: PortPool,
    platform: Platform,
    node: String,
    /// Where to see who listens, if that may be on this machine.
    probed: Option<IpAddr>,
    lease: Duration,
    /// How long ports that came back rest.
    pub quarantine: Duration,
    /// How long ports rest on which a foreign program listens.
    pub foreign: Duration,
}

/// A set of ports that is leased to a device that does not exist yet. Dropped, it gives them back by itself, free at
/// once: nobody has ever seen them.
#[derive(Debug)]
pub struct Leased {
    /// To which device.
    pub owner: DeviceId,
    /// Which ports.
    pub ports: PortSet,
    /// To whom to give them back.
    from: Option<Ports>,
}

impl Leased {
    /// From here on the device may exist: the ports are left to it. If it does not, the lease ends by itself.
    pub fn keep(&mut self) {
        self.from = None;
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        let (Some(from), Ok(runtime)) = (self.from.take(), Handle::try_current()) else {
            return;
        };
        let (owner, ports) = (self.owner.clone(), self.ports);
        runtime.spawn(async move {
            let rejected = from
                .pool
                .reject(&from.node, owner.as_str(), ports, &[], Duration::ZERO);
            if !matches!(timeout(GIVE_BACK, rejected).await, Ok(Ok(()))) {
                debug!(device.id = %owner, "ports {ports:?} were not given back and will expire");
            }
        });
    }
}

impl Ports {
    /// The ports of the first node of the settings.
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
            node: config.first_node().to_owned(),
            probed: config.nodes.is_empty().then_some(config.node_address),
            lease: config.port_lease,
            quarantine: config.port_quarantine,
            foreign: config.port_foreign,
        }
    }

    /// The ports of a node.
    pub fn of(&self, node: &Node) -> Self {
        Self {
            node: node.name.clone(),
            probed: node.may_be_here().then(|| node.bind()),
            ..self.clone()
        }
    }

    /// The ports of a node of which only the name is known: nobody looks who listens on them.
    pub fn of_name(&self, node: &str) -> Self {
        Self {
            node: node.to_owned(),
            probed: None,
            ..self.clone()
        }
    }

    /// Leases the lowest free port of each kind to a device. What another program listens on rests, and others are taken.
    ///
    /// # Errors
    /// Where none is free, or the stores do not answer.
    pub async fn lease(&self, owner: &DeviceId) -> Result<Leased> {
        for _ in 0..PROBES {
            // In a task of its own: what is leased for a caller who is gone comes back.
            let (this, device) = (self.clone(), owner.clone());
            #[expect(
                clippy::disallowed_methods,
                reason = "a few commands, each with a deadline; what it leased falls back when it is dropped"
            )]
            let leasing = tokio::spawn(async move { this.lease_unseen(device).await });
            let mut leased = leasing.await.map_err(|_| self.contended())??;
            let ports = leased.ports;
            let Some(address) = self.probed else {
                return Ok(leased);
            };
            if probe(address, ports).await.is_empty() {
                return Ok(leased);
            }
            sleep(SECOND_LOOK).await;
            let taken = probe(address, ports).await;
            if taken.is_empty() {
                return Ok(leased);
            }
            let mut conn = self.platform.db.acquire().await?;
            if db::is_held(&mut conn, &self.node, ports).await? {
                // The listener is a device's: Redis had forgotten it.
                drop(conn);
                metrics::ports_contended("held");
                self.give_up(leased).await;
                self.reconcile().await?;
                continue;
            }
            for (kind, reason) in &taken {
                let port = ports.of(*kind);
                metrics::ports_contended("occupied");
                warn!(device.id = %owner, "{kind} port {port} of node {} rests for {:?}: {reason}", self.node, self.foreign);
                db::quarantine(&mut conn, &self.node, (*kind, port), *reason, self.foreign).await?;
            }
            self.pool
                .reject(&self.node, owner.as_str(), ports, &taken, self.foreign)
                .await?;
            leased.keep();
        }
        Err(self.contended())
    }

    /// Does something that takes long while a set stays leased. Whoever does it may die: then the lease ends by itself. Where
    /// Redis forgets it, the database judges when the device takes the ports.
    pub async fn while_held<T>(&self, leased: &Leased, going: impl Future<Output = T>) -> T {
        tokio::select! {
            done = going => done,
            never = self.renew_for_ever(leased) => match never {},
        }
    }

    async fn renew_for_ever(&self, leased: &Leased) -> Infallible {
        let held = [(leased.owner.to_string(), leased.ports)];
        loop {
            sleep(self.lease / 3).await;
            if let Err(error) = self.pool.renew_many(&self.node, &held, self.lease).await {
                debug!(device.id = %leased.owner, "the lease of ports was not renewed yet: {error}");
            }
        }
    }

    fn contended(&self) -> Error {
        Error::PortsContended {
            node: self.node.clone(),
            attempts: PROBES,
        }
    }

    async fn lease_unseen(&self, owner: DeviceId) -> Result<Leased> {
        let mut rebuilds = 0;
        loop {
            let leased = self.pool.lease(&self.node, owner.as_str(), self.lease);
            match leased.await {
                Ok(ports) => {
                    let from = Some(self.clone());
                    return Ok(Leased { owner, ports, from });
                }
                Err(error) => {
                    if matches!(error, PortError::Store(_)) {
                        self.take_back(owner.clone());
                    }
                    self.build_for(error, &mut rebuilds).await?;
                }
            }
        }
    }

    /// Takes back, in the background, what Redis may have leased although the answer was an error: nobody asks for this
    /// owner again. What is leased later than [`GIVE_BACK`] from now ends by itself.
    fn take_back(&self, owner: DeviceId) {
        let this = self.clone();
        let taking_back = async move {
            let mut pause = GIVE_BACK_AGAIN;
            // Until there was something: the request may arrive later than what takes it back.
            while !matches!(
                this.pool.take_back(&this.node, owner.as_str()).await,
                Ok(true)
            ) {
                sleep(pause).await;
                pause *= 2;
            }
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "nobody waits for it, and it ends after a bounded time"
        )]
        tokio::spawn(timeout(GIVE_BACK, taking_back));
    }

    /// Lists who holds ports in Redis, lowest first. It builds no index: that of another node is for its own replicas.
    ///
    /// # Errors
    /// Where Redis does not answer, or has no index.
    pub async fn leases(&self) -> Result<Vec<HeldSet>> {
        Ok(self.pool.leases(&self.node).await?)
    }

    /// Lists what rests, and why. It builds no index either.
    ///
    /// # Errors
    /// Where Redis does not answer, or has no index.
    pub async fn resting(&self) -> Result<Vec<RestingPort>> {
        Ok(self.pool.resting(&self.node).await?)
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
    pub async fn give_up(&self, mut leased: Leased) {
        leased.keep();
        self.release(&leased.owner, leased.ports).await;
    }

    /// Gives back a set that nobody has seen: it is free at once, and free when this returns.
    ///
    /// # Errors
    /// Where Redis does not say so: the set may be given back later, and is not to be leased to the same owner again.
    pub async fn hand_back(&self, mut leased: Leased) -> Result<()> {
        leased.keep();
        let (owner, ports) = (leased.owner.as_str(), leased.ports);
        let handing_back = self
            .pool
            .reject(&self.node, owner, ports, &[], Duration::ZERO);
        Ok(handing_back.await?)
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
        let mut conn = self.platform.db.acquire().await?;
        // One snapshot: a device that is deleted meanwhile is still held in it, or its ports rest.
        let mut tx = conn
            .begin_with("begin isolation level repeatable read read only")
            .await?;
        let held = db::held(&mut tx, &self.node).await?;
        let mut resting = db::returned(&mut tx, &self.node, self.quarantine).await?;
        resting.extend(db::quarantined(&mut tx, &self.node).await?);
        tx.commit().await?;
        Ok(Recorded { held, resting })
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
