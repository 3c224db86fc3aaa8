//! A store as a process of its own that can be hurt: killed, frozen, started again.

use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::logs;
use crate::spawn::spawn;

/// A process that is started from the same arguments again and again; it ends with this value.
pub struct Server {
    program: &'static str,
    arguments: Vec<String>,
    folder: PathBuf,
    log: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Server {
    /// Starts a program of the search path in a folder; what it says goes to `name.log` there.
    pub fn start(
        program: &'static str,
        arguments: Vec<String>,
        folder: PathBuf,
        name: &str,
    ) -> anyhow::Result<Self> {
        let server = Self {
            program,
            arguments,
            log: folder.join(format!("{name}.log")),
            folder,
            child: Mutex::new(None),
        };
        server.start_again()?;
        Ok(server)
    }

    /// Starts it again, where it does not run.
    pub fn start_again(&self) -> anyhow::Result<()> {
        let mut child = self.child();
        if child.is_none() {
            let output = OpenOptions::new().create(true).append(true).open(&self.log);
            let output =
                output.with_context(|| format!("could not write {}", self.log.display()))?;
            let mut command = Command::new(self.program);
            command.args(&self.arguments).current_dir(&self.folder);
            command
                .stdin(Stdio::null())
                .stdout(output.try_clone()?)
                .stderr(output);
            let started = spawn(command).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => anyhow::anyhow!(
                    "{} is not installed: tests/install installs it",
                    self.program
                ),
                _ => error.into(),
            })?;
            *child = Some(started);
        }
        Ok(())
    }

    /// Ends it by a signal, and waits until it is gone.
    pub fn end(&self, signal: Signal) {
        self.signal(signal);
        if let Some(mut child) = self.child().take() {
            let _ = child.wait();
        }
    }

    /// Sends it a signal, where it runs.
    pub fn signal(&self, signal: Signal) {
        if let Some(child) = self.child().as_ref() {
            // Not waited for yet, so the number is still its own.
            let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
        }
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        let mut child = self.child();
        (child.as_mut()).is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The last lines it wrote.
    pub fn log(&self) -> String {
        logs::tail(&self.log)
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(Signal::SIGKILL);
    }
}
