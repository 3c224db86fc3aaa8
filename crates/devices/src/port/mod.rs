//! The ports of devices: leased in Redis, decided in PostgreSQL.

pub mod api;
pub mod db;
pub mod invariants;
pub mod jobs;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use contracts::DeviceId;
use coordination::{PortError, PortKind, PortPool, PortSet, Replication};
use fred::interfaces::KeysInterface;
use platform::Platform;
use tokio::net::TcpListener;
use tracing::{info, warn};

use crate::{Config, error::Result};

/// The ports of one node.
#[derive(Clone, Debug)]
pub struct Ports {
    pool: PortPool,
    platform: Platform,
    node: String,
    lease: Duration,
    quarantine: Duration,
}

/// A set of ports that is leased to a device that may not exist yet.
#[derive(Clone, Debug)]
pub struct Leased {
    /// To which device.
    pub owner: DeviceId,
    /// Which ports.
    pub ports: PortSet,
}

/// A port on which another program listens.
#[derive(Debug, thiserror::Error)]
#[error("{kind}: {source}")]
pub struct Occupied {
    /// Its number.
    pub port: u16,
    /// What it would have been for.
    pub kind: PortKind,
    source: io::Error,
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
            lease: config.port_lease,
            quarantine: config.port_quarantine,
        }
    }

    /// Leases the lowest free port of each kind to a device.
    pub async fn lease(&self, owner: &DeviceId) -> Result<Leased> {
        // Another replica may lose the index again in between, hence not once but a few times.
        let mut rebuilds = 0;
        loop {
            let leased = self
                .pool
                .lease(&self.node, owner.as_str(), self.lease)
                .await;
            match leased {
                Ok(ports) => {
                    return Ok(Leased {
                        owner: owner.clone(),
                        ports,
                    });
                }
                Err(PortError::IndexMissing { .. }) if rebuilds < 3 => {
                    rebuilds += 1;
                    self.rebuild().await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
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
    pub async fn rebuild(&self) -> Result<()> {
        let now = self.platform.clock.now();
        let since = now - chrono::TimeDelta::from_std(self.quarantine).unwrap_or_default();
        let (held, resting) = {
            let mut conn = self.platform.db.acquire().await?;
            (
                db::held(&mut conn, &self.node).await?,
                db::resting(&mut conn, &self.node, since).await?,
            )
        };
        if self.pool.rebuild(&self.node, &held, &resting).await? {
            info!(
                "built the port index of node {} anew: {} devices hold ports, {} sets rest",
                self.node,
                held.len(),
                resting.len()
            );
        }
        Ok(())
    }

    /// Builds the index although there is one, because it contradicts the database. Living leases stay.
    pub async fn rebuild_anew(&self) -> Result<()> {
        let marker = self.platform.keys.port_index(&self.node);
        let forgotten: Result<(), _> = self.platform.redis.del(marker).await;
        forgotten.map_err(|error| {
            PortError::Store(coordination::StoreError::redis("forget the port index")(
                error,
            ))
        })?;
        self.rebuild().await
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

/// Looks whether nobody listens on the ports of a node that is this machine; of another machine nothing can be said.
pub async fn probe(address: IpAddr, ports: PortSet) -> Result<(), Occupied> {
    let all = [
        (PortKind::Adb, ports.adb),
        (PortKind::Webrtc, ports.webrtc),
        (PortKind::Scrcpy, ports.scrcpy),
    ];
    for (kind, port) in all {
        match TcpListener::bind(SocketAddr::new(address, port)).await {
            Err(source)
                if matches!(
                    source.kind(),
                    io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied
                ) =>
            {
                return Err(Occupied { port, kind, source });
            }
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}
