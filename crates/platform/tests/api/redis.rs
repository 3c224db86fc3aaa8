//! A Redis of a test's own, which may be frozen, killed and replaced.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::until;

/// A server on loopback that ends with the test.
pub struct PrivateRedis {
    port: u16,
    folder: tempfile::TempDir,
    server: Server,
    frozen: Vec<Server>,
}

struct Server(Child);

impl Server {
    fn start(port: u16, folder: &std::path::Path) -> Self {
        let port = port.to_string();
        let arguments = [
            "--port",
            &port,
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
        ];
        let mut command = Command::new("redis-server");
        command.args(arguments).arg(folder).stdout(Stdio::null());
        Self(command.spawn().expect("redis-server is installed"))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl PrivateRedis {
    pub async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(port, folder.path());
        let this = Self {
            port,
            folder,
            server,
            frozen: Vec::new(),
        };
        this.answers().await;
        this
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn freeze(&self) {
        self.server.signal(Signal::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.server.signal(Signal::SIGCONT);
    }

    /// Kills it and starts an empty one in its place.
    pub async fn restart(&mut self) {
        let _ = self.server.0.kill();
        let _ = self.server.0.wait();
        self.server = Server::start(self.port, self.folder.path());
        self.answers().await;
    }

    /// Freezes it with its connections open, and puts an empty one where new connections go.
    pub async fn replace_frozen(&mut self) {
        // The listening socket is closed, the connections are not.
        self.cli(&["config", "set", "bind", "127.0.0.2"]).await;
        let server = Server::start(self.port, self.folder.path());
        self.server.signal(Signal::SIGSTOP);
        self.frozen
            .push(std::mem::replace(&mut self.server, server));
        self.answers().await;
    }

    pub async fn cli(&self, arguments: &[&str]) -> String {
        let port = self.port.to_string();
        let output = tokio::process::Command::new("redis-cli")
            .args(["-p", &port])
            .args(arguments)
            .output()
            .await;
        String::from_utf8_lossy(&output.expect("redis-cli is installed").stdout).into_owned()
    }

    async fn answers(&self) {
        until("Redis answers", async || {
            self.cli(&["ping"]).await.trim() == "PONG"
        })
        .await;
    }
}
