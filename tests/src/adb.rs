//! Debian's `adb`, with a server of its own for each test.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

/// How long one command may take before it is taken to hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server of `adb`, and its home. Both end with the value.
pub struct Adb {
    port: u16,
    home: TempDir,
}

/// What a command said, and its exit code.
#[derive(Debug)]
pub struct Said {
    /// Both outputs.
    pub text: String,
    /// The exit code.
    pub code: Option<i32>,
}

impl Adb {
    /// A server on a free port; it starts with the first command.
    ///
    /// # Errors
    /// Where no port is free.
    pub fn new() -> anyhow::Result<Self> {
        let free = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
        Ok(Self {
            port: free.local_addr()?.port(),
            home: TempDir::with_prefix("adb-")?,
        })
    }

    /// Runs a command.
    ///
    /// # Errors
    /// Where `adb` is not installed, or hangs.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<Said> {
        let mut command = Command::new("adb");
        command
            .args(["-P", &self.port.to_string()])
            .args(arguments)
            .env("HOME", self.home.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = timeout(PATIENCE, command.output()).await;
        let output = output.with_context(|| format!("adb {arguments:?} hangs"))?;
        let output = output.context("running adb; tests/install installs it")?;
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        Ok(Said {
            text: String::from_utf8_lossy(&text).into_owned(),
            code: output.status.code(),
        })
    }

    /// Runs a command on a device that is connected.
    ///
    /// # Errors
    /// Where `adb` is not installed, or hangs.
    pub async fn on(&self, serial: &str, arguments: &[&str]) -> anyhow::Result<Said> {
        self.run(&[&["-s", serial][..], arguments].concat()).await
    }
}

impl Drop for Adb {
    fn drop(&mut self) {
        let _ = std::process::Command::new("adb")
            .args(["-P", &self.port.to_string(), "kill-server"])
            .env("HOME", self.home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}
