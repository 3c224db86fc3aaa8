//! A master and its replica under three sentinels.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;

use super::{PATIENCE, RedisServer, ask, at};
use crate::address::Address;
use crate::eventually::eventually;
use crate::server::Server;

const NAME: &str = "main";
const SERVERS: [u16; 2] = [6379, 6380];
const SENTINELS: [u16; 3] = [26379, 26380, 26381];

/// Two Redis servers, one of them the master, watched by three sentinels that agree on it.
pub struct Sentinels {
    servers: Vec<RedisServer>,
    _sentinels: Vec<Server>,
    address: Address,
    _folder: TempDir,
}

impl Sentinels {
    /// Starts all of them with further settings for the servers, and waits until the sentinels know each other and the
    /// replica. A master is taken for dead after a second of silence.
    pub async fn start(settings: &[&str]) -> anyhow::Result<Self> {
        let (folder, address) = (TempDir::with_prefix("sentinels-")?, Address::take()?);
        let ip = address.ip.to_string();
        let mut servers = Vec::new();
        for (number, port) in SERVERS.into_iter().enumerate() {
            let mut all = vec![
                "--replica-announce-ip",
                &ip,
                "--repl-diskless-sync-delay",
                "0",
            ];
            if number > 0 {
                all.extend(["--replicaof", &ip, "6379"]);
            }
            all.extend(settings);
            servers.push(RedisServer::start(
                at(address.ip, port),
                folder.path(),
                &all,
            )?);
        }
        let mut sentinels = Vec::new();
        for port in SENTINELS {
            let data = folder.path().join(port.to_string());
            std::fs::create_dir_all(&data)?;
            let file = data.join("sentinel.conf");
            let text = format!(
                "bind {ip}\nport {port}\ndir {}\nsentinel announce-ip {ip}\nsentinel monitor {NAME} {ip} 6379 2\n\
                 sentinel down-after-milliseconds {NAME} 1000\nsentinel failover-timeout {NAME} 3000\n\
                 sentinel parallel-syncs {NAME} 1\n",
                data.display()
            );
            std::fs::write(&file, text)
                .with_context(|| format!("could not write {}", file.display()))?;
            let arguments = vec![file.display().to_string(), "--sentinel".to_owned()];
            sentinels.push(Server::start("redis-server", arguments, data, "sentinel")?);
        }
        let started = Self {
            servers,
            _sentinels: sentinels,
            address,
            _folder: folder,
        };
        started.agree().await;
        Ok(started)
    }

    /// The URL for clients: every sentinel is in it.
    pub fn url(&self) -> String {
        let [first, second, third] = self.sentinels();
        format!("redis-sentinel://{first}/0?node={second}&node={third}&sentinelServiceName={NAME}")
    }

    /// The server that the sentinels name as the master now, and the other one.
    pub async fn roles(&self) -> anyhow::Result<(&RedisServer, &RedisServer)> {
        let command = ["sentinel", "get-master-addr-by-name", NAME];
        let answer = ask(self.sentinels()[0], &[], &command).await?;
        let port = answer.lines().last().unwrap_or_default();
        let first = self.servers[0].address().port().to_string() == port;
        let (master, replica) = if first { (0, 1) } else { (1, 0) };
        Ok((&self.servers[master], &self.servers[replica]))
    }

    /// Asks for a failover that is not needed, and waits until the other server is the master.
    pub async fn fail_over(&self) -> anyhow::Result<()> {
        let before = self.roles().await?.0.address();
        let command = ["sentinel", "failover", NAME];
        eventually(PATIENCE, "a failover is accepted", async || {
            let answer = ask(self.sentinels()[0], &[], &command).await?;
            ensure!(answer == "OK", "{answer}");
            Ok(())
        })
        .await;
        self.switched_from(before).await
    }

    /// Waits until another server than this one is the master.
    pub async fn switched_from(&self, before: SocketAddr) -> anyhow::Result<()> {
        eventually(PATIENCE, "the other server is the master", async || {
            let (master, _) = self.roles().await?;
            ensure!(master.address() != before, "{before} still is");
            let role = master.ask(&["role"]).await?;
            ensure!(role.starts_with("master"), "{role}");
            Ok(())
        })
        .await;
        Ok(())
    }

    /// Waits until the master has a replica that is up to date, and every sentinel knows the others and it.
    pub async fn agree(&self) {
        for server in &self.servers {
            server.ready().await;
        }
        for sentinel in self.sentinels() {
            eventually(PATIENCE, "the sentinels agree", async || {
                let quorum = ask(sentinel, &[], &["sentinel", "ckquorum", NAME]).await?;
                ensure!(quorum.starts_with("OK 3"), "{quorum}");
                let master = ask(sentinel, &[], &["sentinel", "master", NAME]).await?;
                let fields: Vec<&str> = master.lines().collect();
                let field = |name| fields.iter().position(|field| *field == name);
                let value = |name| field(name).and_then(|at| fields.get(at + 1)).copied();
                ensure!(value("num-slaves") == Some("1"), "{master}");
                Ok(())
            })
            .await;
        }
        eventually(PATIENCE, "the replica is up to date", async || {
            let (master, _) = self.roles().await?;
            let told = master.ask(&["info", "replication"]).await?;
            ensure!(told.contains("state=online"), "{told}");
            Ok(())
        })
        .await;
    }

    fn sentinels(&self) -> [SocketAddr; 3] {
        SENTINELS.map(|port| at(self.address.ip, port))
    }
}
