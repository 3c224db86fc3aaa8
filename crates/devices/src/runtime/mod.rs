//! What runs devices. Every call may be repeated: what is there is not made twice, what is gone is not missed.

pub mod docker;
pub mod hosts;
pub mod simulated;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use contracts::DeviceId;
use coordination::PortSet;
use futures::future::BoxFuture;
use platform::Platform;
use tracing::info;

use crate::config::RuntimeChoice;
use crate::device::{Device, RuntimeKind, pixels};
use crate::{Config, runtime::docker::Docker, runtime::simulated::Simulated};

/// What a runtime needs to know about a device.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its id.
    pub id: DeviceId,
    /// What its owner calls it.
    pub name: String,
    /// The fencing token of the worker that asks.
    pub fence: i64,
    /// The address its ports are on.
    pub address: IpAddr,
    /// Its ports.
    pub ports: PortSet,
    /// Processor cores.
    pub cpu_cores: i32,
    /// Memory.
    pub memory_mb: i32,
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
    /// Dots per inch.
    pub dpi: u32,
    /// The version of Android.
    pub android_version: String,
}

impl Spec {
    /// What a runtime needs to know of this device.
    pub fn of(device: &Device, fence: i64) -> Self {
        let (width, height) = pixels(&device.resolution).unwrap_or((1080, 1920));
        Self {
            id: device.id.clone(),
            name: device.name.clone(),
            fence,
            address: device
                .address
                .parse()
                .unwrap_or(std::net::Ipv4Addr::LOCALHOST.into()),
            ports: device.ports(),
            cpu_cores: device.cpu_cores,
            memory_mb: device.memory_mb,
            width,
            height,
            dpi: u32::try_from(device.dpi).unwrap_or(320),
            android_version: device.android_version.clone(),
        }
    }
}

/// What a runtime sees of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing.
    Absent,
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
    /// This worker no longer holds the operation.
    #[error("the operation went to another worker")]
    Fenced,
    /// This replica is leaving; another one does it.
    #[error("this replica is leaving")]
    Leaving,
    /// This replica has no such runtime.
    #[error("the runtime {0} is not available on this replica")]
    Unavailable(RuntimeKind),
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// What runs devices.
pub trait Runtime: Send + Sync {
    /// Makes what the device runs in, not running; anew where its ports are others by now.
    fn create<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Makes it run; after that its ports answer.
    fn start<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Makes it stop; after that its ports are free on its machine.
    fn stop<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Removes all of it.
    fn remove<'a>(&'a self, id: &'a DeviceId) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Looks at it.
    fn inspect<'a>(&'a self, id: &'a DeviceId) -> BoxFuture<'a, Result<Seen, RuntimeError>>;
}

/// The runtimes of this replica.
#[derive(Clone)]
pub struct Runtimes {
    chosen: RuntimeKind,
    /// Simulated devices.
    pub simulated: Simulated,
    docker: Option<Arc<Docker>>,
}

impl Runtimes {
    /// Looks which runtimes there are, and chooses the one for new devices.
    ///
    /// # Errors
    /// Where docker is demanded and cannot be used.
    pub async fn new(platform: &Platform, config: &Config) -> anyhow::Result<Self> {
        let simulated = Simulated::new(platform, config.host_lease);
        let docker = match config.runtime {
            RuntimeChoice::Simulated => None,
            RuntimeChoice::Docker => Some(Docker::connect(platform, config).await?),
            RuntimeChoice::Auto => match Docker::connect(platform, config).await {
                Ok(docker) => Some(docker),
                Err(reason) => {
                    info!("devices are simulated: {reason:#}");
                    None
                }
            },
        };
        let chosen = match docker {
            Some(_) => {
                info!(
                    "devices run in docker at {}, from the image {}",
                    config.docker_host, config.image
                );
                RuntimeKind::Docker
            }
            None => RuntimeKind::Simulated,
        };
        Ok(Self {
            chosen,
            simulated,
            docker: docker.map(Arc::new),
        })
    }

    /// The runtime of new devices.
    pub fn chosen(&self) -> RuntimeKind {
        self.chosen
    }

    /// The names of the runtimes that this replica can work with.
    pub fn available(&self) -> Vec<&'static str> {
        let docker = self.docker.as_ref().map(|_| RuntimeKind::Docker.as_str());
        [Some(RuntimeKind::Simulated.as_str()), docker]
            .into_iter()
            .flatten()
            .collect()
    }

    /// The runtime of a device.
    pub fn of(&self, kind: RuntimeKind) -> Result<&dyn Runtime, RuntimeError> {
        match (kind, &self.docker) {
            (RuntimeKind::Simulated, _) => Ok(&self.simulated),
            (RuntimeKind::Docker, Some(docker)) => Ok(docker.as_ref()),
            (RuntimeKind::Docker, None) => Err(RuntimeError::Unavailable(kind)),
        }
    }

    /// Removes whatever there is of a device.
    pub async fn remove_everywhere(&self, id: &DeviceId) -> Result<(), RuntimeError> {
        self.simulated.remove(id).await?;
        match &self.docker {
            Some(docker) => docker.remove(id).await,
            None => Ok(()),
        }
    }
}
