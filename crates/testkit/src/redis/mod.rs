//! Redis as processes of the test's own: single servers, masters for Redlock, Sentinel, Cluster.

mod cluster;
mod sentinel;
mod tls;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::process::Command;

use crate::address::Address;
use crate::eventually::eventually;
use crate::server::Server;

pub use cluster::RedisCluster;
pub use sentinel::Sentinels;
pub use tls::TlsRedis;

/// How long a server may take to answer, and a group of them to agree.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// One Redis server.
pub struct RedisServer {
    address: SocketAddr,
    server: Server,
}

impl RedisServer {
    /// Starts a server with further settings, as on its command line, and its data in a folder; it may not answer yet.
    pub fn start(address: SocketAddr, folder: &Path, settings: &[&str]) -> anyhow::Result<Self> {
        let data = folder.join(address.port().to_string());
        std::fs::create_dir_all(&data)
            .with_context(|| format!("could not create {}", data.display()))?;
        let mut arguments = vec![
            "--bind".to_owned(),
            address.ip().to_string(),
            "--port".to_owned(),
            address.port().to_string(),
        ];
        arguments.extend(
            ["--save", "", "--appendonly", "no", "--loglevel", "notice"].map(str::to_owned),
        );
        arguments.extend(settings.iter().map(|setting| (*setting).to_owned()));
        let server = Server::start("redis-server", arguments, data, "redis")?;
        Ok(Self { address, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Waits until it answers.
    pub async fn ready(&self) {
        let what = format!("Redis answers at {}: {}", self.address, self.server.log());
        eventually(PATIENCE, &what, async || {
            let answer = self.ask(&["ping"]).await?;
            ensure!(answer == "PONG", "{answer}");
            Ok(())
        })
        .await;
    }

    /// Ends it at once.
    pub fn kill9(&self) {
        self.server.end(Signal::SIGKILL);
    }

    /// Freezes it: its connections stay and nothing is answered.
    pub fn stop(&self) {
        self.server.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn cont(&self) {
        self.server.signal(Signal::SIGCONT);
    }

    /// Starts it again after [`RedisServer::kill9`], with the data it saved, and waits until it answers.
    pub async fn start_again(&self) -> anyhow::Result<()> {
        self.server.start_again()?;
        self.ready().await;
        Ok(())
    }

    /// The answer to a command.
    pub async fn ask(&self, command: &[&str]) -> anyhow::Result<String> {
        ask(self.address, &[], command).await
    }
}

/// The answer of a server to a command, given by `redis-cli` with further options.
async fn ask(address: SocketAddr, options: &[&str], command: &[&str]) -> anyhow::Result<String> {
    let mut asking = Command::new("redis-cli");
    asking
        .args([
            "-h",
            &address.ip().to_string(),
            "-p",
            &address.port().to_string(),
        ])
        .args(options)
        .args(command)
        .kill_on_drop(true);
    let output = tokio::time::timeout(ANSWER, asking.output())
        .await
        .with_context(|| format!("{address} did not answer {command:?}"))?
        .context("redis-cli does not start: tests/install installs it")?;
    let answer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(
        output.status.success() && said.is_empty(),
        "{command:?} at {address}: {answer} {said}"
    );
    Ok(answer)
}

/// Independent servers, side by side on an address of their own: one as a store, several as masters for Redlock.
pub struct RedisServers {
    // The servers end before their files go.
    servers: Vec<RedisServer>,
    _folder: TempDir,
    _address: Address,
}

impl RedisServers {
    /// Starts some servers with further settings, and waits until they answer.
    pub async fn start(count: u16, settings: &[&str]) -> anyhow::Result<Self> {
        let (folder, address) = (TempDir::with_prefix("redis-")?, Address::take()?);
        let mut servers = Vec::new();
        for number in 0..count {
            let at = SocketAddr::from((address.ip, 6379 + number));
            servers.push(RedisServer::start(at, folder.path(), settings)?);
        }
        for server in &servers {
            server.ready().await;
        }
        Ok(Self {
            servers,
            _folder: folder,
            _address: address,
        })
    }

    /// One of them, by its number from 0.
    pub fn server(&self, number: usize) -> &RedisServer {
        &self.servers[number]
    }

    /// Their URLs, separated by commas as in `REDLOCK_URLS`.
    pub fn urls(&self) -> String {
        let urls: Vec<String> = self.servers.iter().map(RedisServer::url).collect();
        urls.join(",")
    }
}

fn at(ip: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::from((ip, port))
}
