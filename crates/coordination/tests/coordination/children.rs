//! Other processes: a test of this binary, run as a child with stores of the test that starts it.

use std::io::Write;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::PgPool;

use crate::stores::Stores;

/// A child process. Dropped, it is killed and reaped.
pub struct Process(Child);

impl Process {
    /// Starts a test that is ignored otherwise. What it shall do it reads from the variables `CHILD_*`.
    pub fn start(test: &str, stores: &Stores, db: Option<&PgPool>, name: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([test, "--exact", "--ignored", "--nocapture"])
            .env("CHILD_PREFIX", &stores.prefix)
            .env("CHILD_NAME", name)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        if let Some(db) = db {
            let url = sqlx::ConnectOptions::to_url_lossy(&*db.connect_options());
            command.env("CHILD_DATABASE_URL", url.as_str());
        }
        Self(command.spawn().unwrap())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        kill(pid, signal).unwrap();
    }

    /// Lets it end by itself: its standard input ends.
    pub fn dismiss(&mut self) {
        drop(self.0.stdin.take());
    }

    /// Tells it a line.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a child was told by the test that started it.
pub fn told(variable: &str) -> String {
    std::env::var(variable).expect("started by another test")
}

/// Waits, in a child, until its standard input says something or ends.
pub async fn dismissed() {
    let line = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    let _ = line.await;
}
