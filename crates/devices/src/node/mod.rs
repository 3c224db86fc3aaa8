//! The nodes that devices run on: rows that all replicas share, each a machine with a port space, a capacity and, for
//! containers, an engine.

pub mod api;
pub mod check;
pub mod db;
pub mod down;
pub mod health;
pub mod placement;
pub mod reservation;
pub mod settings;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use contracts::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::types::Json;

use crate::device::RuntimeKind;
use crate::runtime::kubernetes::Endpoint;

/// Marks of a node, for placement.
pub type Labels = BTreeMap<String, String>;

names! {
    /// What an operator wants of a node.
    State, "node state" {
        /// It gets devices.
        Ready = "ready",
        /// It gets no further devices.
        Cordoned = "cordoned",
        /// It gets no further devices, and those it has are to leave it.
        Draining = "draining",
    }
}

/// Where a replica finds what it authenticates itself to an engine with. Paths only: what is in the files never leaves the
/// machine of the replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The authority that vouches for the engine.
    #[schema(value_type = String)]
    pub ca: PathBuf,
    /// The certificate of the replica.
    #[schema(value_type = String)]
    pub cert: PathBuf,
    /// Its key.
    #[schema(value_type = String)]
    pub key: PathBuf,
}

/// A node as it is stored.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Node {
    /// Its name, by which devices and ports are bound to it.
    pub name: String,
    /// What runs devices there.
    #[sqlx(try_from = "String")]
    pub runtime: RuntimeKind,
    /// Whether simulated devices are placed there, too.
    pub hosts_simulated: bool,
    /// Its engine.
    pub endpoint: Option<String>,
    /// What that engine calls itself; `None` until a replica has reached it.
    pub engine_id: Option<String>,
    /// How replicas authenticate themselves to it.
    pub tls: Option<Json<Tls>>,
    /// Where clients reach its ports.
    pub address: String,
    /// The address on the node that ports are bound to.
    pub bind: String,
    /// Its marks.
    pub labels: Json<Labels>,
    /// Thousandths of a core there are.
    pub cpu_millis: Option<i32>,
    /// How many times as many are promised.
    pub cpu_overcommit: f64,
    /// Memory there is.
    pub memory_mb: Option<i32>,
    /// Disk for snapshots and for what is stored on devices, where images are brought from other nodes.
    pub disk_mb: Option<i32>,
    /// How many devices it may have.
    pub most_devices: Option<i32>,
    /// Thousandths of a core that its devices have.
    pub used_cpu_millis: i64,
    /// Memory that its devices have.
    pub used_memory_mb: i64,
    /// Devices it has.
    pub used_devices: i32,
    /// What operators want of it.
    #[sqlx(try_from = "String")]
    pub state: State,
    /// Why.
    pub reason: Option<String>,
    /// Since when.
    pub since: Timestamp,
    /// When its engine last answered a replica.
    pub seen_at: Option<Timestamp>,
    /// How many seconds ago that is, by the clock of the database.
    pub unseen_seconds: Option<f64>,
    /// Since when nobody reaches its engine.
    pub down_since: Option<Timestamp>,
    /// Why not.
    pub down_reason: Option<String>,
    /// When it became known.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

impl Node {
    /// The address that ports are bound to.
    pub fn bind(&self) -> IpAddr {
        bind_address(&self.bind)
    }

    /// Whether the ports of the node may be this machine's, so that a replica can see who listens on them.
    pub fn may_be_here(&self) -> bool {
        self.endpoint
            .as_deref()
            .is_none_or(|endpoint| endpoint.starts_with("unix://"))
    }

    /// Thousandths of a core that can be promised to devices on all; `None` without a limit.
    pub fn promised_cpu_millis(&self) -> Option<i64> {
        let promised = |millis: i32| (f64::from(millis) * self.cpu_overcommit).floor() as i64;
        self.cpu_millis.map(promised)
    }

    /// Whether and how it is closed for devices. What operators and engines say of it is not for tenants.
    pub fn closed(&self) -> Option<&'static str> {
        match self.state {
            _ if self.down_since.is_some() => Some("down"),
            State::Ready => None,
            State::Cordoned | State::Draining => Some(self.state.as_str()),
        }
    }
}

/// The labels that the node of a device must have, from its metadata.
pub fn selector(metadata: &Map<String, Value>) -> Labels {
    let selector = metadata.get("nodeSelector");
    let selector = selector.and_then(|selector| Labels::deserialize(selector).ok());
    selector.unwrap_or_default()
}

/// The address in a text of ours; what is none stands for every address of the node.
pub fn bind_address(text: &str) -> IpAddr {
    text.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

/// Whether a text is a host name or an IP address that clients can use.
pub fn is_address(text: &str) -> bool {
    let is_name = || {
        (1..=253).contains(&text.len())
            && text.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            })
    };
    text.parse::<IpAddr>().is_ok() || is_name()
}

/// Whether a text names an engine.
pub fn is_endpoint(text: &str) -> bool {
    match text.split_once("://") {
        Some(("unix", path)) => path.starts_with('/'),
        Some(("tcp", host)) => host.rsplit_once(':').is_some_and(|(host, port)| {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            is_address(host) && port.parse::<u16>().is_ok_and(|port| port > 0)
        }),
        _ => false,
    }
}

/// Whether a text names an engine that runs devices in this way.
pub fn is_endpoint_of(runtime: RuntimeKind, endpoint: &str) -> bool {
    match runtime {
        RuntimeKind::Docker => is_endpoint(endpoint),
        RuntimeKind::Kubernetes => Endpoint::parse(endpoint).is_some(),
        RuntimeKind::Simulated => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_endpoints_are_told_from_other_texts() {
        for address in ["10.0.0.5", "::1", "node-1.example.org", "localhost"] {
            assert!(is_address(address), "{address}");
        }
        for other in ["", "-a", "a b", "http://x", "a..b"] {
            assert!(!is_address(other), "{other}");
        }
        for endpoint in [
            "unix:///run/docker.sock",
            "tcp://10.0.0.5:2376",
            "tcp://[::1]:2376",
        ] {
            assert!(is_endpoint(endpoint), "{endpoint}");
        }
        for other in [
            "/run/docker.sock",
            "unix://run",
            "tcp://host",
            "tcp://:1",
            "ssh://a:22",
        ] {
            assert!(!is_endpoint(other), "{other}");
        }
    }
}
