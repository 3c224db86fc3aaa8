//! Redis servers of a test's own, which it may stop, freeze and kill.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use coordination::Keys;
use fred::clients::{Client, Pool};
use fred::prelude::{Builder, ClientLike, Config, ReconnectPolicy};
use fred::types::RespVersion;

use crate::stores::until;

/// A Redis process. It ends with the test.
pub struct RedisServer {
    process: Child,
    pub port: u16,
    folder: std::path::PathBuf,
}

impl RedisServer {
    /// Starts a server with further settings, such as `["--requirepass", "secret"]`, and waits until it listens.
    pub async fn start(settings: &[&str]) -> Self {
        for _ in 0..5 {
            let port = free_port();
            let folder = std::env::temp_dir().join(format!("redis-{}", uuid::Uuid::new_v4()));
            std::fs::create_dir_all(&folder).unwrap();
            let process = Command::new("redis-server")
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
                .args([
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                    "--repl-diskless-sync-delay",
                    "0",
                ])
                .arg("--dir")
                .arg(&folder)
                .args(settings)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .expect("redis-server is installed");
            let mut server = Self {
                process,
                port,
                folder,
            };
            if server.listens().await {
                return server;
            }
        }
        panic!("no redis-server came up on any of five free ports");
    }

    async fn listens(&mut self) -> bool {
        for _ in 0..500 {
            if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return true;
            }
            // Another process was quicker to take the port.
            if self.process.try_wait().unwrap().is_some() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Stops or continues the process: `STOP`, `CONT`.
    pub fn signal(&self, signal: &str) {
        let id = self.process.id().to_string();
        let sent = Command::new("kill")
            .args([&format!("-{signal}"), &id])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Kills the process.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Sends one command.
    pub fn run(&self, words: &[&str]) {
        self.ask(words);
    }

    /// Sends one command and gives what is answered.
    pub fn ask(&self, words: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port.to_string()]).args(words);
        let output = command.output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A pool of one connection.
    pub async fn pool(&self) -> Pool {
        pool(&self.url(), 1).await
    }

    /// Waits until so many replicas follow.
    pub async fn has_replicas(&self, client: &Client, count: usize) {
        until("the replicas follow", async || {
            let info = fred::types::CustomCommand::new_static("INFO", None::<u16>, false);
            let words = vec!["replication".to_owned()];
            let text: String = client.custom(info, words).await.unwrap();
            text.matches("state=online").count() == count
        })
        .await;
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Keys without a prefix, for servers that nobody else uses.
pub fn bare() -> Keys {
    Keys::new("")
}

/// A pool of so many connections.
pub async fn pool(url: &str, size: usize) -> Pool {
    let mut config = Config::from_url(url).unwrap();
    config.version = RespVersion::RESP3;
    let mut builder = Builder::from_config(config);
    builder
        .set_policy(ReconnectPolicy::new_exponential(0, 50, 1000, 2))
        .with_performance_config(|performance| {
            performance.default_command_timeout = Duration::from_secs(5);
        });
    let pool = builder.build_pool(size).unwrap();
    pool.init().await.unwrap();
    pool
}
