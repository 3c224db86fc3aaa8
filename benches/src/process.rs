//! A server process with all its children: pinned, measured, ended.

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// How long it may take to end by itself.
const LEAVE: Duration = Duration::from_secs(15);

/// A process group. Dropped, it is killed.
pub struct Process {
    child: Child,
    group: Pid,
    log: String,
}

impl Process {
    /// Starts a program on some cores; what it says goes to a file in the folder.
    pub fn start(
        folder: &Path,
        name: &str,
        cores: &str,
        program: &str,
        arguments: &[&str],
        env: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let output = fs::File::create(&log)?;
        let child = Command::new("taskset")
            .args(["-c", cores, program])
            .args(arguments)
            .envs(env.iter().map(|(key, value)| (*key, value)))
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {program} by taskset (package util-linux)"))?;
        let pid = child.id().context("it has ended already")?;
        Ok(Self {
            child,
            group: Pid::from_raw(i32::try_from(pid)?),
            log: log.display().to_string(),
        })
    }

    /// An error with what it said, where it has ended.
    pub fn ensure_alive(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let said = fs::read_to_string(&self.log).unwrap_or_default();
            anyhow::bail!("it ended with {status}: {said}");
        }
        Ok(())
    }

    /// The processor time of all its processes.
    pub fn time(&self) -> anyhow::Result<Duration> {
        let ticks: u64 = self.members()?.iter().map(|member| member.ticks).sum();
        // A hundred ticks a second, whatever the kernel's own clock (proc(5)).
        Ok(Duration::from_millis(ticks * 10))
    }

    /// The memory that all its processes occupy.
    pub fn resident_mebibytes(&self) -> anyhow::Result<f64> {
        let pages: u64 = self.members()?.iter().map(|member| member.pages).sum();
        Ok(pages as f64 * 4096.0 / 1024.0 / 1024.0)
    }

    /// Asks it to leave, and kills what does not.
    pub async fn end(mut self) -> anyhow::Result<()> {
        let _ = killpg(self.group, Signal::SIGTERM);
        let _ = timeout(LEAVE, self.child.wait()).await;
        Ok(())
    }

    /// Its processes: the first one, and all that descend from it.
    fn members(&self) -> anyhow::Result<Vec<Member>> {
        let mut children: HashMap<i32, Vec<Member>> = HashMap::new();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            // It may end while we look.
            let Some(member) = Member::read(pid) else {
                continue;
            };
            match pid == self.group.as_raw() {
                true => found.push(member),
                false => children.entry(member.parent).or_default().push(member),
            }
        }
        ensure!(!found.is_empty(), "the process {} is gone", self.group);
        let mut looked_at = 0;
        while let Some(member) = found.get(looked_at) {
            found.extend(children.remove(&member.pid).unwrap_or_default());
            looked_at += 1;
        }
        Ok(found)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = killpg(self.group, Signal::SIGKILL);
    }
}

struct Member {
    pid: i32,
    parent: i32,
    ticks: u64,
    pages: u64,
}

impl Member {
    fn read(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything.
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            pid,
            parent: i32::try_from(number(4)?).ok()?,
            ticks: number(14)? + number(15)?,
            pages: number(24)?,
        })
    }
}

/// A free port of loopback, below those that Linux gives to outgoing connections: before the process that is to have it takes
/// it, one of many connections might.
pub async fn free_address() -> anyhow::Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        ensure!(port < 32_000, "no port from 20000 to 32000 is free");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).await.is_ok() {
            return Ok(address);
        }
    }
}
