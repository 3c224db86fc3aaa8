//! One replica: a process that can be hurt.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixDatagram;
use tokio::time::{Instant, sleep, timeout};

use crate::logs;
use crate::spawn::spawn;

/// How long a replica may take to start: the first one creates a database cluster and migrates it.
const START: Duration = Duration::from_secs(90);
/// How long a replica that was asked to leave may take.
const LEAVE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// What the processes of a replica are started from, first and again.
#[derive(Clone)]
pub struct Recipe {
    pub program: PathBuf,
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub home: PathBuf,
}

/// One replica of a cluster.
pub struct Replica {
    number: usize,
    recipe: Recipe,
    log: PathBuf,
    process: Mutex<Process>,
}

struct Process {
    child: Child,
    exit: Option<ExitStatus>,
    /// How many processes this replica has had.
    generation: usize,
    /// Where the replica says that it is ready, as to systemd.
    notices: Arc<UnixDatagram>,
    is_ready: bool,
}

impl Replica {
    /// Starts a replica; it is not ready yet.
    pub fn start(number: usize, recipe: Recipe) -> anyhow::Result<Self> {
        let log = recipe.home.join(format!("replica-{number}.log"));
        let process = Process::start(number, &recipe, &log, 1)?;
        Ok(Self {
            number,
            recipe,
            log,
            process: Mutex::new(process),
        })
    }

    /// Its place in the cluster, from 0.
    pub fn number(&self) -> usize {
        self.number
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.process().child.id()
    }

    /// Whether its process lives; one that is stopped lives, too.
    pub fn is_running(&self) -> bool {
        self.exit_status().is_none()
    }

    /// Waits until it says that it serves.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        let notices = self.process().notices.clone();
        let mut notice = [0; 1024];
        while !self.process().is_ready {
            if let Some(status) = self.exit_status() {
                anyhow::bail!(
                    "replica {} ended ({status}) before it was ready:\n{}",
                    self.number,
                    logs::tail(&self.log)
                );
            }
            if started.elapsed() > START {
                anyhow::bail!(
                    "replica {} is not ready after {START:?}:\n{}",
                    self.number,
                    logs::tail(&self.log)
                );
            }
            if let Ok(length) = timeout(Duration::from_millis(100), notices.recv(&mut notice)).await
            {
                let text = String::from_utf8_lossy(&notice[..length?]).into_owned();
                self.process().is_ready = text.lines().any(|line| line == "READY=1");
            }
        }
        Ok(())
    }

    /// Ends it at once, in the middle of whatever it does.
    pub fn kill9(&self) {
        self.signal(Signal::SIGKILL);
        let mut process = self.process();
        if process.exit.is_none() {
            process.exit = process.child.wait().ok();
        }
    }

    /// Asks it to leave.
    pub fn sigterm(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Freezes it: it does nothing and notices nothing until [`Replica::cont`].
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn cont(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Sends a signal to its process, if that lives.
    pub fn signal(&self, signal: Signal) {
        let mut process = self.process();
        if process.exit_status().is_none() {
            // Not waited for yet, so the number is still its own.
            let _ = kill(Pid::from_raw(process.child.id().cast_signed()), signal);
        }
    }

    /// Waits for its end.
    pub async fn wait_exit(&self) -> anyhow::Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.exit_status() {
                return Ok(status);
            }
            if started.elapsed() > LEAVE {
                anyhow::bail!(
                    "replica {} still runs after {LEAVE:?}:\n{}",
                    self.number,
                    logs::tail(&self.log)
                );
            }
            sleep(POLL).await;
        }
    }

    /// Starts it again, asking it to leave first if it still runs, and waits until it is ready.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.sigterm();
        self.wait_exit().await?;
        self.begin_again()?;
        self.ready().await
    }

    /// Starts it again after its end; it is not ready yet.
    pub fn begin_again(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.is_running(), "replica {} still runs", self.number);
        let generation = self.process().generation + 1;
        let process = Process::start(self.number, &self.recipe, &self.log, generation)?;
        *self.process() = process;
        Ok(())
    }

    /// Everything it has written.
    pub fn logs(&self) -> String {
        logs::read(&self.log)
    }

    /// The lines it has written that contain a text.
    pub fn logs_containing(&self, text: &str) -> Vec<String> {
        logs::containing(&self.log, text)
    }

    /// How its process ended, if it has.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.process().exit_status()
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill9();
    }
}

impl Process {
    fn start(
        number: usize,
        recipe: &Recipe,
        log: &Path,
        generation: usize,
    ) -> anyhow::Result<Self> {
        let socket = recipe.home.join(format!("notify-{number}-{generation}"));
        let notices = UnixDatagram::bind(&socket)
            .with_context(|| format!("could not bind {}", socket.display()))?;
        let output = OpenOptions::new().create(true).append(true).open(log);
        let output = output.with_context(|| format!("could not write {}", log.display()))?;

        let mut command = Command::new(&recipe.program);
        command
            .args(&recipe.args)
            .env_clear()
            .envs(&recipe.env)
            .env("NOTIFY_SOCKET", &socket);
        command
            .current_dir(&recipe.home)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = spawn(command)
            .with_context(|| format!("could not start {}", recipe.program.display()))?;
        Ok(Self {
            child,
            exit: None,
            generation,
            notices: Arc::new(notices),
            is_ready: false,
        })
    }

    fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().ok().flatten();
        }
        self.exit
    }
}
