//! A device: what it is, and how it shows itself to clients.

pub mod api;
pub mod browse;
pub mod clearing;
pub mod create;
pub mod db;
pub mod leaver;
pub mod list;
pub mod usage;

use contracts::{DeviceId, SnapshotId, Timestamp, UserId};
use coordination::{PortKind, PortSet};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::quota::Size;

/// A text that stands for no value of an enumeration.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("unknown {0}")]
pub struct Unknown(pub &'static str);

macro_rules! names {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in the store and on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::device::Unknown;

            fn from_str(text: &str) -> Result<Self, $crate::device::Unknown> {
                match text { $($text => Ok(Self::$variant),)+ _ => Err($crate::device::Unknown($what)) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::device::Unknown;

            fn try_from(text: String) -> Result<Self, $crate::device::Unknown> { text.parse() }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.as_str()) }
        }
    };
}

names! {
    /// Which form a device has.
    DeviceType, "type" {
        /// A phone.
        Phone = "phone",
        /// A tablet.
        Tablet = "tablet",
    }
}

names! {
    /// What stands behind a device, as clients name it.
    ProviderType, "provider" {
        /// Android in a container, or what stands in for it on a machine without an engine.
        Redroid = "redroid",
        /// A stand-in, always.
        Simulated = "simulated",
    }
}

names! {
    /// What really runs a device.
    RuntimeKind, "runtime" {
        /// A container of a Docker engine.
        Docker = "docker",
        /// A pod of a Kubernetes cluster.
        Kubernetes = "kubernetes",
        /// A stand-in within our own process.
        Simulated = "simulated",
    }
}

impl RuntimeKind {
    /// Whether it needs an engine, and devices are containers there.
    pub const fn has_engine(self) -> bool {
        match self {
            Self::Docker | Self::Kubernetes => true,
            Self::Simulated => false,
        }
    }

    /// Whether it can keep what is on a device, and make the device anew of it.
    pub const fn keeps_snapshots(self) -> bool {
        match self {
            Self::Docker | Self::Simulated => true,
            Self::Kubernetes => false,
        }
    }
}

names! {
    /// Where a device stands. Clients never see the last two.
    Status, "status" {
        /// Accepted; it comes into being.
        Creating = "creating",
        /// On its way to running.
        Starting = "starting",
        /// Usable.
        Running = "running",
        /// On its way to stopped.
        Stopping = "stopping",
        /// There, and not running.
        Stopped = "stopped",
        /// On its way from running to running.
        Rebooting = "rebooting",
        /// An operation failed for good.
        Error = "error",
        /// Deleted by its owner; it still holds its ports.
        Deleting = "deleting",
        /// Gone.
        Deleted = "deleted",
    }
}

/// The statuses that clients know, for filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShownStatus {
    /// See [`Status::Creating`].
    Creating,
    /// See [`Status::Stopped`].
    Stopped,
    /// See [`Status::Starting`].
    Starting,
    /// See [`Status::Running`].
    Running,
    /// See [`Status::Stopping`].
    Stopping,
    /// See [`Status::Rebooting`].
    Rebooting,
    /// See [`Status::Error`].
    Error,
}

impl ShownStatus {
    /// The name in the store and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Rebooting => "rebooting",
            Self::Error => "error",
        }
    }
}

/// A device as it is stored.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Device {
    /// Its id.
    pub id: DeviceId,
    /// Its owner.
    pub user_id: UserId,
    /// The tenant of its owner.
    pub tenant_id: Option<String>,
    /// What its owner calls it.
    pub name: String,
    /// What its owner says about it.
    pub description: Option<String>,
    /// Its form.
    #[sqlx(rename = "type", try_from = "String")]
    pub kind: DeviceType,
    /// What stands behind it.
    #[sqlx(try_from = "String")]
    pub provider_type: ProviderType,
    /// What really runs it.
    #[sqlx(try_from = "String")]
    pub runtime: RuntimeKind,
    /// Where it stands.
    #[sqlx(try_from = "String")]
    pub status: Status,
    /// Where its creation shall end.
    #[sqlx(try_from = "String")]
    pub wanted: Status,
    /// Why it is in error.
    pub error: Option<String>,
    /// What is being done with it, or is next.
    #[sqlx(default)]
    pub doing: Option<String>,
    /// The snapshot that its container was last made of.
    pub restored_from: Option<SnapshotId>,
    /// Processor cores.
    pub cpu_cores: i32,
    /// Memory.
    pub memory_mb: i32,
    /// Storage.
    pub storage_mb: i32,
    /// Pixels, as in `1080x1920`.
    pub resolution: String,
    /// Dots per inch.
    pub dpi: i32,
    /// The version of Android.
    pub android_version: String,
    /// The group it is in.
    pub group_name: Option<String>,
    /// Marks of its owner.
    pub tags: Vec<String>,
    /// Whatever else its owner wants to keep with it.
    pub metadata: sqlx::types::Json<Map<String, Value>>,
    /// The node it runs on.
    pub node: String,
    /// Where clients reach that node.
    pub address: String,
    /// The address on the node that its ports are bound to.
    pub bind: String,
    /// Whether that node is down, and the device with it.
    pub node_down: bool,
    /// Its ADB port.
    pub adb_port: i32,
    /// Its WebRTC port.
    pub webrtc_port: i32,
    /// Its scrcpy port.
    pub scrcpy_port: i32,
    /// When it was last heard of: by a heartbeat, or since it was measured.
    pub last_heartbeat_at: Option<Timestamp>,
    /// When it last became running.
    pub last_started_at: Option<Timestamp>,
    /// When it last became stopped.
    pub last_stopped_at: Option<Timestamp>,
    /// When its rent ends.
    pub expires_at: Option<Timestamp>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// A device as clients see it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Device)]
pub struct DeviceView {
    id: DeviceId,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    user_id: UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant_id: Option<String>,
    #[serde(rename = "type")]
    kind: DeviceType,
    provider_type: ProviderType,
    /// Whether a stand-in within our own process runs it.
    simulated: bool,
    /// One of creating, stopped, starting, running, stopping, rebooting, error.
    status: Status,
    cpu_cores: i32,
    #[serde(rename = "memoryMB")]
    memory_mb: i32,
    #[serde(rename = "storageMB")]
    storage_mb: i32,
    resolution: String,
    dpi: i32,
    android_version: String,
    adb_host: String,
    adb_port: i32,
    webrtc_port: i32,
    scrcpy_port: i32,
    access: Endpoints,
    #[serde(skip_serializing_if = "Option::is_none")]
    group_name: Option<String>,
    tags: Vec<String>,
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
    /// 0 to 100.
    health_score: u8,
    /// The finer state, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// When it was last heard of: by a heartbeat, or since it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_heartbeat_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_started_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_stopped_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

/// Where a device is reached from within the network of its node.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = DeviceEndpoints)]
pub struct Endpoints {
    /// What connects Android's tools to it.
    adb: String,
    /// The page of its screen.
    webrtc: String,
    /// The stream of its screen.
    scrcpy: String,
}

/// A device, and one sentence about what was done.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct DeviceReply {
    /// The device.
    #[serde(flatten)]
    pub device: DeviceView,
    /// The sentence.
    pub message: String,
}

impl Device {
    /// Its ports as the pool knows them.
    pub fn ports(&self) -> PortSet {
        port_set(self.adb_port, self.webrtc_port, self.scrcpy_port)
    }

    /// What it has of its node: processor cores and memory.
    pub fn size(&self) -> (i32, i32) {
        (self.cpu_cores, self.memory_mb)
    }

    /// How large it is, in all that quotas count.
    pub fn sizes(&self) -> Size {
        Size {
            cpu_cores: self.cpu_cores,
            memory_mb: self.memory_mb,
            storage_mb: self.storage_mb,
        }
    }

    /// Has these ports from now on.
    pub fn take_ports(&mut self, ports: PortSet) {
        self.adb_port = ports.adb.into();
        self.webrtc_port = ports.webrtc.into();
        self.scrcpy_port = ports.scrcpy.into();
    }

    /// What connects Android's tools to it.
    pub fn adb_command(&self) -> String {
        format!("adb connect {}", self.endpoint(self.adb_port))
    }

    fn endpoint(&self, port: i32) -> String {
        match self.address.contains(':') {
            true => format!("[{}]:{port}", self.address),
            false => format!("{}:{port}", self.address),
        }
    }

    /// The finer state behind its status, where there is one.
    fn activity(&self) -> Option<&'static str> {
        match (self.status, self.doing.as_deref()) {
            (Status::Rebooting, Some("restore")) => Some("restoring"),
            (Status::Rebooting | Status::Running | Status::Stopped, Some("move")) => Some("moving"),
            (Status::Rebooting, _) => Some("restarting"),
            (Status::Running | Status::Stopped, Some("snapshot")) => Some("snapshotting"),
            _ => None,
        }
    }

    /// How clients see it.
    pub fn view(self) -> DeviceView {
        DeviceView {
            access: Endpoints {
                adb: self.adb_command(),
                webrtc: format!("http://{}/", self.endpoint(self.webrtc_port)),
                scrcpy: format!("tcp://{}", self.endpoint(self.scrcpy_port)),
            },
            health_score: if self.status == Status::Error { 0 } else { 100 },
            operation: self.activity(),
            id: self.id,
            name: self.name,
            description: self.description,
            user_id: self.user_id,
            tenant_id: self.tenant_id,
            kind: self.kind,
            provider_type: self.provider_type,
            simulated: self.runtime == RuntimeKind::Simulated,
            status: self.status,
            cpu_cores: self.cpu_cores,
            memory_mb: self.memory_mb,
            storage_mb: self.storage_mb,
            resolution: self.resolution,
            dpi: self.dpi,
            android_version: self.android_version,
            adb_host: self.address,
            adb_port: self.adb_port,
            webrtc_port: self.webrtc_port,
            scrcpy_port: self.scrcpy_port,
            group_name: self.group_name,
            tags: self.tags,
            metadata: self.metadata.0,
            error: self.error,
            last_heartbeat_at: self.last_heartbeat_at,
            last_started_at: self.last_started_at,
            last_stopped_at: self.last_stopped_at,
            expires_at: self.expires_at,
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}

/// Ports as they are stored. The constraint that they are within the ranges is the pool's, which made them.
pub fn port_set(adb: i32, webrtc: i32, scrcpy: i32) -> PortSet {
    let port = |number: i32| u16::try_from(number).unwrap_or_default();
    PortSet {
        adb: port(adb),
        webrtc: port(webrtc),
        scrcpy: port(scrcpy),
    }
}

/// Ports as they are written, in the order of [`port_set`].
pub fn port_columns(ports: PortSet) -> [i32; 3] {
    PortKind::ALL.map(|kind| i32::from(ports.of(kind)))
}

/// Width and height of a resolution such as `1080x1920`.
pub fn pixels(resolution: &str) -> Option<(u32, u32)> {
    let (width, height) = resolution.split_once('x')?;
    let number = |text: &str| {
        ((3..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| text.parse().ok())?
    };
    Some((number(width)?, number(height)?))
}

/// Whether a text names a version of Android: `N` or `N.N`.
pub fn is_android_version(text: &str) -> bool {
    let number = |text: &str| {
        (1..=2).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    match text.split_once('.') {
        None => number(text),
        Some((major, minor)) => number(major) && number(minor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolutions_and_versions_are_as_the_contract_says() {
        assert_eq!(pixels("1080x1920"), Some((1080, 1920)));
        for text in [
            "1080",
            "10x1920",
            "1080x192000",
            "1080X1920",
            "1080x-920",
            "108ax1920",
        ] {
            assert_eq!(pixels(text), None, "{text}");
        }
        for text in ["11", "13.0", "9"] {
            assert!(is_android_version(text), "{text}");
        }
        for text in ["", "eleven", "11.", "11.0.1", "111"] {
            assert!(!is_android_version(text), "{text}");
        }
    }

    #[test]
    fn names_read_back() {
        for status in Status::ALL {
            assert_eq!(status.as_str().parse::<Status>().unwrap(), *status);
        }
        assert!("paused".parse::<Status>().is_err());
    }

    #[test]
    fn any_resolution_and_version_that_is_read_is_within_bounds() {
        const WORDS: [&str; 10] = ["1080", "x", "1920", "99999", "0", ".", "14", "+", "X", "٣"];
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(6)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                if let Some((width, height)) = pixels(&text) {
                    assert!(
                        width <= 99_999 && height <= 99_999 && text.is_ascii(),
                        "{text}"
                    );
                }
                assert!(
                    !is_android_version(&text)
                        || text.parse::<f64>().is_ok_and(|version| version < 100.0),
                    "{text}"
                );
            });
    }

    #[test]
    fn any_name_of_a_status_is_one_of_its_own() {
        bolero::check!()
            .with_type::<String>()
            .with_iterations(500)
            .for_each(|text| {
                assert_eq!(
                    text.parse::<Status>().is_ok(),
                    Status::ALL.iter().any(|status| status.as_str() == text)
                );
            });
    }
}
