//! A Redis Cluster of three masters, with or without a replica each.

use anyhow::ensure;
use tempfile::TempDir;
use tokio::process::Command;

use super::{PATIENCE, RedisServer, at};
use crate::address::Address;
use crate::eventually::eventually;

const MASTERS: u16 = 3;
const FIRST: u16 = 7001;

/// Nodes that share the slots.
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
    _address: Address,
    _folder: TempDir,
}

impl RedisCluster {
    /// Starts three masters with so many replicas each, and waits until they serve all slots. A node is taken for dead
    /// after a second of silence.
    pub async fn start(replicas: u16) -> anyhow::Result<Self> {
        let (folder, address) = (TempDir::with_prefix("redis-cluster-")?, Address::take()?);
        let ip = address.ip.to_string();
        let settings = [
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "1000",
            "--cluster-announce-ip",
            &ip,
            "--repl-diskless-sync-delay",
            "0",
        ];
        let mut nodes = Vec::new();
        for port in FIRST..FIRST + MASTERS * (1 + replicas) {
            nodes.push(RedisServer::start(
                at(address.ip, port),
                folder.path(),
                &settings,
            )?);
        }
        for node in &nodes {
            node.ready().await;
        }
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]);
        create.args(nodes.iter().map(|node| node.address().to_string()));
        create.args(["--cluster-replicas", &replicas.to_string(), "--cluster-yes"]);
        let created = tokio::time::timeout(PATIENCE, create.kill_on_drop(true).output()).await??;
        ensure!(
            created.status.success(),
            "the nodes do not make a cluster: {}",
            String::from_utf8_lossy(&created.stdout)
        );
        let cluster = Self {
            nodes,
            _address: address,
            _folder: folder,
        };
        cluster.whole().await;
        Ok(cluster)
    }

    /// The URL for clients: every node is in it.
    pub fn url(&self) -> String {
        let mut addresses = self.nodes.iter().map(|node| node.address().to_string());
        let first = addresses.next().unwrap_or_default();
        let others: Vec<String> = addresses.map(|address| format!("node={address}")).collect();
        format!("redis-cluster://{first}?{}", others.join("&"))
    }

    /// A node, by its number from 0.
    pub fn node(&self, number: usize) -> &RedisServer {
        &self.nodes[number]
    }

    /// The number of the master that has the slot of a key.
    pub async fn master_of(&self, key: &str) -> anyhow::Result<usize> {
        for (number, node) in self.nodes.iter().enumerate() {
            let role = node.ask(&["role"]).await?;
            let found =
                role.starts_with("master") && !node.ask(&["get", key]).await?.contains("MOVED");
            if found {
                return Ok(number);
            }
        }
        anyhow::bail!("no master serves {key}")
    }

    /// Waits until every node but one says that all slots are served.
    pub async fn serves_without(&self, missing: usize) {
        for (_, node) in self
            .nodes
            .iter()
            .enumerate()
            .filter(|(number, _)| *number != missing)
        {
            all_slots(node, "cluster_state:ok").await;
        }
    }

    /// Waits until every node says that all slots are served, and has its part in it.
    pub async fn whole(&self) {
        for node in &self.nodes {
            all_slots(node, "cluster_state:ok").await;
            let wanted = self.nodes.len();
            eventually(PATIENCE, "every node has its part", async || {
                let told = node.ask(&["cluster", "nodes"]).await?;
                let alive = told.lines().filter(|line| !line.contains("fail")).count();
                let masters = told.lines().filter(|line| line.contains("master")).count();
                ensure!(alive == wanted && masters == usize::from(MASTERS), "{told}");
                Ok(())
            })
            .await;
        }
    }
}

async fn all_slots(node: &RedisServer, wanted: &str) {
    eventually(PATIENCE, "all slots are served", async || {
        let told = node.ask(&["cluster", "info"]).await?;
        ensure!(
            told.contains(wanted) && told.contains("cluster_slots_ok:16384"),
            "{told}"
        );
        Ok(())
    })
    .await;
}
