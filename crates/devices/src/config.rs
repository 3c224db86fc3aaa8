//! The settings of the devices service.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use coordination::PortRanges;
use platform::{Env, Profile};
use serde::{Deserialize, Serialize};

use crate::access;
use crate::node::placement::Policy;
use crate::node::settings::{self, NodeSettings};
use crate::quota::{Limit, Limits, UNLIMITED};
use crate::runtime::android::Android;

/// The settings of the devices service.
#[derive(Clone, Debug)]
pub struct Config {
    /// `DEVICE_RUNTIME`: auto (default), docker or simulated. Auto is docker where an engine answers and has the image.
    pub runtime: RuntimeChoice,
    /// `DEVICE_IMAGE`: the image that containers are made of.
    pub image: String,
    /// How Android is set up in its containers.
    pub android: Android,
    /// `DEVICE_NODES`: the nodes, as JSON or the path of a file with it; without it there is one, as the next settings say.
    pub nodes: Vec<NodeSettings>,
    /// `DEVICE_PLACEMENT`: spread (default) or pack: which of the nodes that have room gets a device.
    pub placement: Policy,
    /// `DEVICE_FAILOVER`: none (default), restart or snapshot: whether devices of a node that is down are made anew elsewhere, and
    /// of what.
    pub failover: Failover,
    /// `NODE_DOWN_AFTER_SECONDS`: how long nobody may reach the engine of a node before the node is down. Default 15.
    pub node_down_after: Duration,
    /// `NODE_PARALLEL_BOOTS`: how many devices boot on a node at a time, over all replicas; a boot lasts until Android says that
    /// it is over. Default: as many as its engine has processors, 2 at least. More boots make none of them faster, and
    /// take the processors from whatever else runs there.
    pub parallel_boots: Option<i64>,
    /// `NODE_PARALLEL_MOVES`: how many devices leave a node at a time that is drained. Default 2.
    pub parallel_moves: i64,
    /// `DEVICE_MOVE_SECONDS`: how long bringing a device with its snapshots to another node may take before it goes on where
    /// it was. Default 3600.
    pub move_deadline: Duration,
    /// `DEVICE_MOVE_STALL_SECONDS`: how long an image may be stuck on its way between two nodes. Default 60.
    pub move_stall: Duration,
    /// `DEVICE_BOOT_SECONDS`: how long Android may take in its container until it says by ADB that it has booted. Default 180.
    pub boot: Duration,
    /// `DEVICE_RECONCILE_SCHEDULE`: when engines, database and Redis are compared. Default every minute.
    pub reconcile_schedule: String,
    /// `DEVICE_ORPHAN_GRACE_SECONDS`: how long a container of ours that no device has is left alone. Default 300.
    pub orphan_grace: Duration,
    /// `DEVICE_DOCKER_HOST`: the engine, `unix:///path` or `tcp://host:port`.
    pub docker_host: String,
    /// `DEVICE_NODE`: the one node where `DEVICE_NODES` names no others; replicas of one cluster share it. Default `local`.
    pub node: String,
    /// `DEVICE_NODE_ADDRESS`: where the ports of the node are reached. Default 127.0.0.1.
    pub node_address: IpAddr,
    /// `DEVICE_ADB_PORTS`, `DEVICE_WEBRTC_PORTS`, `DEVICE_SCRCPY_PORTS`, as in `5555-6554`.
    pub ports: PortRanges,
    /// `DEVICE_PORT_LEASE_SECONDS`: how long a port stays leased that nobody renews. Default 120.
    pub port_lease: Duration,
    /// `DEVICE_PORT_QUARANTINE_SECONDS`: how long a port rests after its last lease. Default 60.
    pub port_quarantine: Duration,
    /// `DEVICE_PORT_FOREIGN_SECONDS`: how long a port rests on which another program was found. Default 600.
    pub port_foreign: Duration,
    /// `DEVICE_OPERATION_LEASE_SECONDS`: how long a silent worker keeps its operation. Default 15.
    pub operation_lease: Duration,
    /// `DEVICE_OPERATION_ATTEMPTS`: how often an operation is tried before the device is in error. Default 5.
    pub operation_attempts: i32,
    /// `DEVICE_OPERATION_DEADLINE_SECONDS`: how long an operation may take from its first attempt on before the device is in
    /// error. Default 300.
    pub operation_deadline: Duration,
    /// `DEVICE_OPERATIONS_AT_ONCE`: how many operations this replica works on at a time. Default 16.
    pub operations_at_once: usize,
    /// `DEVICE_METRICS_SECONDS`: how often each device is measured, 5 to 300. Default 15.
    pub measure_every: Duration,
    /// `DEVICE_OPERATION_DAYS`: for how many days it can be asked how an operation went. Default 7.
    pub operation_days: i64,
    /// `QUOTA_LIMITS`, as in `maxDevices=50,totalCpuCores=200`: what a user without a plan has, where it differs from the
    /// defaults of the profile; -1 is no limit.
    pub quota: Limits,
    /// `DEVICE_SNAPSHOTS_PER_DEVICE`: how many snapshots a device may have. Default 10.
    pub snapshots_per_device: i64,
    /// `SNAPSHOT_COPIES`: how many nodes keep each snapshot: 1, the default, is the one of its device.
    pub snapshot_copies: i64,
    /// `DEVICE_SNAPSHOTS_PER_USER`: how many snapshots all devices of a user may have. Default 200.
    pub snapshots_per_user: i64,
    /// `DEVICE_SNAPSHOT_DAYS`: after how many days a snapshot is deleted; 0, the default, keeps them all.
    pub snapshot_days: i64,
    /// `DEVICE_QUEUED_INSTALLATIONS`: how many installations of apps a user may have open at a time. Default 2000.
    pub queued_installations: i64,
    /// `DEVICE_HOST_LEASE_SECONDS`: how long a silent replica keeps the simulated devices it hosts. Default 4.
    pub host_lease: Duration,
    /// Remote access.
    pub access: access::Config,
}

names! {
    /// What becomes of the devices of a node that is down.
    Failover, "failover" {
        /// They wait for it.
        None = "none",
        /// Those that shall run are made anew on other nodes; what was stored in them is lost.
        Restart = "restart",
        /// Those that shall run are made anew of their last snapshot that another node keeps; the others wait.
        Snapshot = "snapshot",
    }
}

/// How devices are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuntimeChoice {
    /// Docker where it can be used, else simulated.
    Auto,
    /// Docker, or the service does not start.
    Docker,
    /// Simulated, in the process itself.
    Simulated,
}

impl FromStr for RuntimeChoice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "docker" => Ok(Self::Docker),
            "simulated" => Ok(Self::Simulated),
            _ => Err("a device runtime is auto, docker or simulated"),
        }
    }
}

impl Config {
    /// The node that is meant where none is named.
    pub fn first_node(&self) -> &str {
        self.nodes.first().map_or(&self.node, |node| &node.name)
    }

    /// Reads the settings; what is wrong with them is recorded in `env`.
    pub fn from_env(env: &mut Env) -> Self {
        let ports = port_ranges(env);
        let node = env.text("DEVICE_NODE").unwrap_or_else(|| "local".into());
        if !contracts::id::is_valid(&node) {
            env.fault(
                "DEVICE_NODE",
                "a node name is 1 to 64 characters from A-Z a-z 0-9 _ . : -",
            );
        }
        let nodes = env.text("DEVICE_NODES").map(|text| settings::parse(&text));
        let nodes = match nodes.transpose() {
            Ok(nodes) => nodes.unwrap_or_default(),
            Err(error) => {
                env.fault("DEVICE_NODES", error);
                Vec::new()
            }
        };
        Self {
            nodes,
            placement: env.value("DEVICE_PLACEMENT", Policy::Spread),
            reconcile_schedule: env
                .text("DEVICE_RECONCILE_SCHEDULE")
                .unwrap_or_else(|| "* * * * *".into()),
            orphan_grace: env.seconds("DEVICE_ORPHAN_GRACE_SECONDS", Duration::from_secs(300)),
            snapshot_copies: env.within("SNAPSHOT_COPIES", 1, (1, 10)),
            failover: env.value("DEVICE_FAILOVER", Failover::None),
            node_down_after: env.seconds("NODE_DOWN_AFTER_SECONDS", Duration::from_secs(15)),
            boot: env.seconds("DEVICE_BOOT_SECONDS", Duration::from_secs(180)),
            parallel_boots: (env.text("NODE_PARALLEL_BOOTS").is_some())
                .then(|| env.within("NODE_PARALLEL_BOOTS", 2, (1, 1_000))),
            parallel_moves: env.within("NODE_PARALLEL_MOVES", 2, (1, 100)),
            move_deadline: env.seconds("DEVICE_MOVE_SECONDS", Duration::from_secs(3600)),
            move_stall: env.seconds("DEVICE_MOVE_STALL_SECONDS", Duration::from_secs(60)),
            runtime: env.value("DEVICE_RUNTIME", RuntimeChoice::Auto),
            image: env
                .text("DEVICE_IMAGE")
                .unwrap_or_else(|| "redroid/redroid:11.0.0-latest".into()),
            android: Android::from_env(env),
            docker_host: env
                .text("DEVICE_DOCKER_HOST")
                .or_else(|| env.text("DOCKER_HOST"))
                .unwrap_or_else(|| "unix:///var/run/docker.sock".into()),
            node,
            node_address: env.value("DEVICE_NODE_ADDRESS", Ipv4Addr::LOCALHOST.into()),
            ports,
            port_lease: env.seconds("DEVICE_PORT_LEASE_SECONDS", Duration::from_secs(120)),
            port_quarantine: env.seconds("DEVICE_PORT_QUARANTINE_SECONDS", Duration::from_secs(60)),
            port_foreign: env.seconds("DEVICE_PORT_FOREIGN_SECONDS", Duration::from_secs(600)),
            operation_lease: env.seconds("DEVICE_OPERATION_LEASE_SECONDS", Duration::from_secs(15)),
            operation_deadline: env.seconds(
                "DEVICE_OPERATION_DEADLINE_SECONDS",
                Duration::from_secs(300),
            ),
            operation_attempts: env.within("DEVICE_OPERATION_ATTEMPTS", 5, (1, 100)),
            operations_at_once: env.within("DEVICE_OPERATIONS_AT_ONCE", 16, (1, 256)),
            measure_every: Duration::from_secs(env.within("DEVICE_METRICS_SECONDS", 15, (5, 300))),
            operation_days: env.within("DEVICE_OPERATION_DAYS", 7, (1, 3_650)),
            quota: quota_limits(env),
            snapshots_per_device: env.within("DEVICE_SNAPSHOTS_PER_DEVICE", 10, (1, 1_000)),
            snapshots_per_user: env.within("DEVICE_SNAPSHOTS_PER_USER", 200, (1, 100_000)),
            snapshot_days: env.within("DEVICE_SNAPSHOT_DAYS", 0, (0, 36_500)),
            queued_installations: env.within("DEVICE_QUEUED_INSTALLATIONS", 2_000, (1, 100_000)),
            host_lease: env.seconds("DEVICE_HOST_LEASE_SECONDS", Duration::from_secs(4)),
            access: access::Config::from_env(env),
        }
    }
}

fn quota_limits(env: &mut Env) -> Limits {
    let production = env.value("PROFILE", Profile::Development) == Profile::Production;
    let mut limits = Limits::defaults(production);
    for pair in env.list("QUOTA_LIMITS") {
        let read = pair.split_once('=').and_then(|(name, value)| {
            let limit = Limit::ALL
                .into_iter()
                .find(|limit| limit.key() == name.trim())?;
            let value = value
                .trim()
                .parse()
                .ok()
                .filter(|value| *value >= UNLIMITED)?;
            Some((limit, value))
        });
        match read {
            Some((limit, value)) => _ = limits.0.insert(limit, value),
            None => env.fault(
                "QUOTA_LIMITS",
                format!("`{pair}` is no limit: it looks like maxDevices=50, and -1 is no limit"),
            ),
        }
    }
    limits
}

fn port_ranges(env: &mut Env) -> PortRanges {
    let default = PortRanges::default();
    let ports = PortRanges {
        adb: range(env, "DEVICE_ADB_PORTS", default.adb),
        webrtc: range(env, "DEVICE_WEBRTC_PORTS", default.webrtc),
        scrcpy: range(env, "DEVICE_SCRCPY_PORTS", default.scrcpy),
    };
    // Each kind is given out by itself: a number of two kinds would be given out twice.
    let meet = |a: &RangeInclusive<u16>, b: &RangeInclusive<u16>| {
        a.start() <= b.end() && b.start() <= a.end()
    };
    let text = "has ports in common with another kind's range";
    if meet(&ports.adb, &ports.webrtc) || meet(&ports.adb, &ports.scrcpy) {
        env.fault("DEVICE_ADB_PORTS", text);
    }
    if meet(&ports.webrtc, &ports.scrcpy) {
        env.fault("DEVICE_WEBRTC_PORTS", text);
    }
    ports
}

fn range(env: &mut Env, name: &str, default: RangeInclusive<u16>) -> RangeInclusive<u16> {
    let Some(text) = env.text(name) else {
        return default;
    };
    let bounds = text.split_once('-').and_then(|(low, high)| {
        let (low, high) = (low.trim().parse().ok()?, high.trim().parse().ok()?);
        (0 < low && low <= high).then_some(low..=high)
    });
    bounds.unwrap_or_else(|| {
        env.fault(
            name,
            format!("`{text}` is no range of ports such as 5555-6554"),
        );
        default
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_configured_gives_the_ranges_of_the_contract() {
        let mut env = Env::of([]);

        let config = Config::from_env(&mut env);

        assert!(env.finish().is_ok());
        assert_eq!(
            config.ports.layout(),
            "3;adb=5555-6554;webrtc=8080-9079;scrcpy=27183-28182"
        );
    }

    #[test]
    fn kinds_of_ports_share_no_number() {
        let mut env = Env::of([
            ("DEVICE_ADB_PORTS", "8000-8080"),
            ("DEVICE_SCRCPY_PORTS", "9079-9100"),
        ]);

        Config::from_env(&mut env);

        let text = env.finish().unwrap_err().to_string();
        for name in ["DEVICE_ADB_PORTS", "DEVICE_WEBRTC_PORTS"] {
            assert!(text.contains(name), "{name} is not told in {text}");
        }
    }

    #[test]
    fn every_fault_is_told() {
        let mut env = Env::of([
            ("DEVICE_RUNTIME", "podman"),
            ("DEVICE_ADB_PORTS", "9-5"),
            ("DEVICE_NODE", "a b"),
            ("DEVICE_NODE_ADDRESS", "here"),
            ("DEVICE_NODES", "[{}]"),
            ("DEVICE_PLACEMENT", "anywhere"),
            ("QUOTA_LIMITS", "maxDevices=5,maxPhones=7"),
        ]);

        Config::from_env(&mut env);

        let text = env.finish().unwrap_err().to_string();
        for name in [
            "DEVICE_RUNTIME",
            "DEVICE_ADB_PORTS",
            "DEVICE_NODE:",
            "DEVICE_NODE_ADDRESS",
            "DEVICE_NODES:",
            "DEVICE_PLACEMENT",
            "QUOTA_LIMITS",
        ] {
            assert!(text.contains(name), "{name} is not told in {text}");
        }
    }
}
