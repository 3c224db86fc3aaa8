//! What runs devices. Every call may be repeated: what is there is not made twice, what is gone is not missed.

pub mod android;
mod boot;
pub mod docker;
pub mod engines;
pub mod hosts;
mod knock;
pub mod kubernetes;
pub mod presence;
pub mod recipe;
pub mod simulated;
pub mod transfer;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use contracts::{DeviceId, SnapshotId};
use coordination::PortSet;
use futures::future::BoxFuture;
use platform::Platform;
use sqlx::PgPool;

use crate::Config;
use crate::device::{Device, RuntimeKind, pixels};
use crate::measure::Counted;
use crate::node;
use engines::Engines;
use recipe::Recipe;
use simulated::Simulated;

/// What a runtime needs to know about a device.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its id.
    pub id: DeviceId,
    /// What its owner calls it.
    pub name: String,
    /// The fencing token of the worker that asks.
    pub fence: i64,
    /// The address on its node that its ports are bound to.
    pub address: IpAddr,
    /// Where clients, and we, reach that node.
    pub host: String,
    /// Its ports.
    pub ports: PortSet,
    /// Processor cores.
    pub cpu_cores: i32,
    /// Memory.
    pub memory_mb: i32,
    /// Storage.
    pub storage_mb: i32,
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
    /// Dots per inch.
    pub dpi: u32,
    /// The version of Android.
    pub android_version: String,
    /// The snapshot that its container is made of, in the place of the node's image.
    pub made_of: Option<SnapshotId>,
}

impl Spec {
    /// What a runtime needs to know of this device.
    pub fn of(device: &Device, fence: i64) -> Self {
        let (width, height) = pixels(&device.resolution).unwrap_or((1080, 1920));
        Self {
            id: device.id.clone(),
            name: device.name.clone(),
            fence,
            address: node::bind_address(&device.bind),
            host: device.address.clone(),
            ports: device.ports(),
            cpu_cores: device.cpu_cores,
            memory_mb: device.memory_mb,
            storage_mb: device.storage_mb,
            width,
            height,
            dpi: u32::try_from(device.dpi).unwrap_or(320),
            android_version: device.android_version.clone(),
            made_of: device.restored_from.clone(),
        }
    }
}

/// What a runtime sees of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing.
    Absent,
    /// It is there and never ran: nothing is in it that would be missed.
    Unused,
    /// It is there and does not run.
    Stopped,
    /// It runs.
    Running,
}

/// Why a runtime did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A program that is not ours listens on a port of the device.
    #[error("port {port} of the device is occupied by another program")]
    PortOccupied {
        /// Its number.
        port: u16,
    },
    /// The engine failed.
    #[error("could not {tried}")]
    Engine {
        /// What was tried, as a verb phrase.
        tried: &'static str,
        /// What the engine said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine was silent for too long.
    #[error("could not {tried} within {within:?}")]
    Silent {
        /// What was tried, as a verb phrase.
        tried: &'static str,
        /// How long it was waited for.
        within: Duration,
    },
    /// A runtime of this kind cannot do it, ever.
    #[error("{runtime} cannot {tried}")]
    Unsupported {
        /// The runtime.
        runtime: RuntimeKind,
        /// What was tried, as a verb phrase.
        tried: &'static str,
    },
    /// What it runs is made of too many snapshots, one upon another.
    #[error(
        "the device is made of {layers} layers, since snapshots were restored and taken upon one another: restore an early one, or make a new device"
    )]
    TooManyLayers {
        /// How many.
        layers: usize,
    },
    /// Android did not boot.
    #[error("the device did not boot within {within:?}")]
    NotBooted {
        /// How long it was waited for.
        within: Duration,
    },
    /// Android ended while it booted.
    #[error("the device ended while it booted; the log of its container says why")]
    BootEnded,
    /// This worker no longer holds the operation.
    #[error("the operation went to another worker")]
    Fenced,
    /// This replica is leaving; another one does it.
    #[error("this replica is leaving")]
    Leaving,
    /// The engine of a node is not there.
    #[error("could not {tried}: the engine of node {node} does not answer")]
    Unreachable {
        /// The node.
        node: String,
        /// What was tried, as a verb phrase.
        tried: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What answers at the endpoint of a node is not its engine.
    #[error("what answers at {endpoint} is not the engine of node {node}: {why}")]
    OtherEngine {
        /// The node.
        node: String,
        /// Where its engine is to be.
        endpoint: String,
        /// How that shows, and what to do.
        why: String,
    },
    /// Nobody reaches the engine of a node, for a while already.
    #[error("node {node} is down")]
    Down {
        /// The node.
        node: String,
    },
    /// This replica does not know the engine of a node.
    #[error("node {node} has no engine that this replica knows")]
    NoEngine {
        /// The node.
        node: String,
    },
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// What runs devices.
pub trait Runtime: Send + Sync {
    /// Makes what the device runs in, not running; anew where its ports are others by now.
    fn create<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Makes it run; after that its ports answer, and Android has booted.
    fn start<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Makes it stop; after that nothing answers on its ports.
    fn stop<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Removes all of it, and what was kept of it.
    fn remove<'a>(&'a self, id: &'a DeviceId) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Looks at it.
    fn inspect<'a>(&'a self, id: &'a DeviceId) -> BoxFuture<'a, Result<Seen, RuntimeError>>;
    /// Keeps what is on the device; how many bytes that takes. It may run meanwhile.
    fn snapshot<'a>(
        &'a self,
        spec: &'a Spec,
        snapshot: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<i64, RuntimeError>>;
    /// Makes the device anew of what was kept, not running. It does not run before, either.
    fn restore<'a>(
        &'a self,
        spec: &'a Spec,
        snapshot: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Removes what was kept, as far as no device is made of it; the rest goes with that device. Whether there was anything
    /// to be removed.
    fn forget<'a>(&'a self, snapshot: &'a SnapshotId) -> BoxFuture<'a, Result<bool, RuntimeError>>;
    /// Counts what a device uses; `None` where it does not run.
    fn measure<'a>(
        &'a self,
        id: &'a DeviceId,
    ) -> BoxFuture<'a, Result<Option<Counted>, RuntimeError>>;
    /// Of which snapshots it keeps anything.
    fn snapshots(&self) -> BoxFuture<'_, Result<Vec<SnapshotId>, RuntimeError>>;
}

/// What the containers of this cluster bear, and those of no other on the same engine.
///
/// # Errors
/// Where the database does not answer.
pub async fn cluster(db: &PgPool) -> sqlx::Result<String> {
    sqlx::query_scalar("select id from platform.cluster")
        .fetch_one(db)
        .await
}

/// The runtimes of this replica.
#[derive(Clone)]
pub struct Runtimes {
    /// Simulated devices.
    pub simulated: Simulated,
    /// The engines of all nodes.
    pub engines: Engines,
}

impl Runtimes {
    /// Knows no engine yet.
    ///
    /// # Errors
    /// Where the database does not answer.
    pub async fn new(platform: &Platform, config: &Config) -> sqlx::Result<Self> {
        let cluster = cluster(&platform.db).await?;
        Ok(Self {
            simulated: Simulated::new(platform, config.host_lease),
            engines: Engines::new(Recipe::new(&cluster, config), &platform.db),
        })
    }

    /// Every runtime that this replica reaches at the moment.
    pub fn all(&self) -> Vec<Arc<dyn Runtime>> {
        let engines = self.engines.answering().into_iter();
        let engines =
            engines.filter_map(|node| Some(self.engines.of(&node).ok()? as Arc<dyn Runtime>));
        let simulated = Arc::new(self.simulated.clone()) as Arc<dyn Runtime>;
        std::iter::once(simulated).chain(engines).collect()
    }

    /// The runtime of a device on a node.
    ///
    /// # Errors
    /// Where the node has no engine that is known here.
    pub fn of(&self, kind: RuntimeKind, node: &str) -> Result<Arc<dyn Runtime>, RuntimeError> {
        match kind {
            RuntimeKind::Simulated => Ok(Arc::new(self.simulated.clone())),
            RuntimeKind::Docker | RuntimeKind::Kubernetes => Ok(self.engines.of(node)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any device.
    pub fn spec() -> Spec {
        Spec {
            made_of: None,
            id: "device-1".parse().unwrap(),
            name: "n".into(),
            fence: 1,
            address: [127, 0, 0, 1].into(),
            host: "127.0.0.1".into(),
            ports: PortSet {
                adb: 5555,
                webrtc: 8080,
                scrcpy: 27183,
            },
            cpu_cores: 2,
            memory_mb: 4096,
            storage_mb: 10_240,
            width: 720,
            height: 1280,
            dpi: 240,
            android_version: "11".into(),
        }
    }
}
