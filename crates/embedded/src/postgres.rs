//! The private PostgreSQL: it makes its cluster at the first start and opens it again at every later one.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::process::die_with_parent;
use crate::redis::write_private;
use crate::socket;
use crate::store::{Shared, Store};

const SETTINGS: &[&str] = &[
    "listen_addresses=127.0.0.1",
    "max_connections=300",
    "shared_buffers=64MB",
    "max_wal_size=512MB",
    "password_encryption=scram-sha-256",
    "log_checkpoints=off",
    "log_min_messages=warning",
    "logging_collector=off",
];

/// The private PostgreSQL of a folder.
pub struct Postgres {
    shared: Rc<Shared>,
    /// The passwords are newer than the cluster may be.
    password_is_new: bool,
}

impl Postgres {
    /// Describes it; nothing starts yet.
    pub fn new(shared: Rc<Shared>, password_is_new: bool) -> Self {
        Self {
            shared,
            password_is_new,
        }
    }

    async fn create(&self, folder: &Path, data: &Path) -> anyhow::Result<()> {
        let draft = folder.join("data.tmp");
        if draft.exists() {
            fs::remove_dir_all(&draft)
                .with_context(|| format!("could not remove {}", draft.display()))?;
        }
        let programs = self.shared.binaries.postgres(None)?;
        let password = folder.join("password");
        write_private(&password, &self.shared.record.borrow().postgres_password)?;
        self.shared.place.give(&password)?;

        let mut command = self.shared.place.command(&programs.join("initdb"));
        command.arg("-D").arg(&draft).arg("--pwfile").arg(&password);
        command.args([
            "-U",
            "cloudphone",
            "-A",
            "scram-sha-256",
            "-E",
            "UTF8",
            "--no-sync",
        ]);
        command.arg(if cfg!(target_os = "linux") {
            "--locale=C.UTF-8"
        } else {
            "--locale=C"
        });
        let created = run(command, "").await;
        let _ = fs::remove_file(&password);
        created.context("could not create the PostgreSQL cluster")?;

        self.execute(programs, &draft, "create database cloudphone\n")
            .await?;
        // Only a whole cluster ever has the final name.
        fs::rename(&draft, data).with_context(|| format!("could not create {}", data.display()))
    }

    /// Executes one statement without a server, and so without a password.
    async fn execute(&self, programs: &Path, data: &Path, statement: &str) -> anyhow::Result<()> {
        let mut command = self.shared.place.command(&programs.join("postgres"));
        command.args(["--single", "-D"]).arg(data).arg("postgres");
        let said = run(command, statement)
            .await
            .context("could not run PostgreSQL on its own")?;
        anyhow::ensure!(
            !said.contains("ERROR:"),
            "could not set PostgreSQL up: {said}"
        );
        Ok(())
    }
}

impl Store for Postgres {
    const NAME: &'static str = "PostgreSQL";
    /// Fast, immediate, and at last by force.
    const ENDINGS: &'static [(Signal, Duration)] = &[
        (Signal::SIGINT, Duration::from_secs(10)),
        (Signal::SIGQUIT, Duration::from_secs(5)),
        (Signal::SIGKILL, Duration::from_secs(2)),
    ];

    async fn prepare(&mut self) -> anyhow::Result<Command> {
        let shared = &self.shared;
        let folder = shared.place.folder("postgres")?;
        let data = folder.join("data");
        let version = data.join("PG_VERSION");
        if !version.exists() {
            let shown = folder.display();
            shared.news.step(format!(
                "starting a private PostgreSQL in {shown} (first start creates the cluster)"
            ));
            self.create(&folder, &data).await?;
            self.password_is_new = false;
        } else {
            shared.news.step(format!(
                "starting the private PostgreSQL in {}",
                folder.display()
            ));
        }
        end_leftover(&data).await?;

        let major = fs::read_to_string(&version)
            .with_context(|| format!("could not read {}", version.display()))?;
        let programs = shared.binaries.postgres(Some(major.trim()))?;
        if self.password_is_new {
            let statement = {
                let record = shared.record.borrow();
                format!(
                    "alter user cloudphone password '{}'\n",
                    record.postgres_password
                )
            };
            self.execute(programs, &data, &statement).await?;
            self.password_is_new = false;
        }
        let port = shared.port(|record| &mut record.postgres_port)?;

        let mut command = shared.place.command(&programs.join("postgres"));
        command
            .arg("-D")
            .arg(&data)
            .arg("-p")
            .arg(port.to_string())
            .arg("-k")
            .arg(socket_folder(&folder));
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        command.stdin(Stdio::null());
        Ok(command)
    }

    async fn answers(&self) -> bool {
        let port = self.shared.record.borrow().postgres_port;
        asks_for_a_password(port).await.unwrap_or(false)
    }
}

/// PostgreSQL puts a socket beside its data too, where the path leaves room for it.
fn socket_folder(folder: &Path) -> PathBuf {
    let longest = socket::LONGEST - "/.s.PGSQL.65535.lock".len();
    if folder.as_os_str().as_bytes().len() <= longest {
        folder.to_owned()
    } else {
        PathBuf::new()
    }
}

/// A server that still starts refuses before it asks for the password.
async fn asks_for_a_password(port: u16) -> io::Result<bool> {
    let mut greeting = Vec::from(196_608_u32.to_be_bytes());
    greeting.extend_from_slice(b"user\0cloudphone\0database\0cloudphone\0\0");
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    connection.write_u32(greeting.len() as u32 + 4).await?;
    connection.write_all(&greeting).await?;
    Ok(connection.read_u8().await? == b'R')
}

/// Waits for a PostgreSQL on these data that outlived its supervisor, and ends it if need be: there are never two.
async fn end_leftover(data: &Path) -> anyhow::Result<()> {
    let file = data.join("postmaster.pid");
    let started = Instant::now();
    let mut sent = None;
    loop {
        let Some(pid) = recorded_pid(&file) else {
            return Ok(());
        };
        if kill(pid, None) == Err(nix::errno::Errno::ESRCH) {
            // PostgreSQL itself looks after the file of a dead one.
            return Ok(());
        }
        if !serves(pid, data) {
            warn!(
                "process {pid} is not the PostgreSQL that {} names",
                file.display()
            );
            return fs::remove_file(&file)
                .with_context(|| format!("could not remove {}", file.display()));
        }
        let signal = match started.elapsed().as_secs() {
            0..3 => None,
            3..10 => Some(Signal::SIGINT),
            10..20 => Some(Signal::SIGQUIT),
            _ => anyhow::bail!("process {pid} uses the data and does not end"),
        };
        if signal != sent
            && let Some(signal) = signal
        {
            warn!("ending a PostgreSQL that outlived its supervisor, process {pid}");
            let _ = kill(pid, signal);
            sent = Some(signal);
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn recorded_pid(file: &Path) -> Option<Pid> {
    let text = fs::read_to_string(file).ok()?;
    let number = text.lines().next()?.trim().parse().ok()?;
    Some(Pid::from_raw(number))
}

/// Tells whether a living process is the PostgreSQL of these data: the number may have been given to another.
fn serves(pid: Pid, data: &Path) -> bool {
    if cfg!(target_os = "linux") {
        return fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|folder| folder == data);
    }
    let shown = Command::new("ps")
        .args(["-o", "command=", "-p", &pid.to_string()])
        .output();
    shown.is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout).contains(&*data.to_string_lossy())
    })
}

/// Runs a program to its end; it dies with us, and when we no longer wait.
async fn run(mut command: Command, input: &str) -> anyhow::Result<String> {
    die_with_parent(&mut command, Signal::SIGKILL);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    anyhow::ensure!(output.status.success(), "{}: {said}", output.status);
    Ok(said)
}
