//! A replica's side: it joins the stores, keeps its place, and starts a supervisor that is not there.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{error, info, warn};

use crate::binaries::Binaries;
use crate::news::Message;
use crate::process::detach;
use crate::record::Addresses;
use crate::supervisor::turn_log;
use crate::{Error, lock, place, socket};

/// How long the stores may be silent while they start; every step they report begins it anew.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// How the supervisor is started: the program, and arguments that end in a call of [`crate::supervise`] for the folder.
#[derive(Clone, Debug)]
pub struct SupervisorCommand {
    pub program: PathBuf,
    pub args: Vec<std::ffi::OsString>,
}

/// A place among those who use the private stores; dropping it leaves.
pub struct Stores {
    /// `redis://default:password@127.0.0.1:port`; it stays the same for as long as any replica runs.
    pub redis_url: String,
    /// `postgres://cloudphone:password@127.0.0.1:port/cloudphone`; it stays the same likewise.
    pub database_url: String,
    _left: DropGuard,
    watcher: JoinHandle<()>,
}

/// Joins the private stores of a folder, starting them if nobody has, and waits until both answer.
pub async fn join(dir: &Path, supervisor: SupervisorCommand) -> Result<Stores, Error> {
    let dir = place::open(dir)?;
    let (connection, addresses) = enter(&dir, &supervisor).await?;
    let presence = lock::shared(&dir, lock::MEMBERS).await;
    let presence = presence.map_err(|source| Error::Folder {
        path: dir.clone(),
        source,
    })?;
    info!("the private stores in {} answer", dir.display());

    let left = CancellationToken::new();
    let stay = stay(
        dir,
        supervisor,
        connection,
        addresses.clone(),
        presence,
        left.clone(),
    );
    #[expect(
        clippy::disallowed_methods,
        reason = "it ends with `Stores`, before which no task of the process may end it"
    )]
    let watcher = tokio::spawn(stay);
    let Addresses {
        redis_url,
        database_url,
    } = addresses;
    Ok(Stores {
        redis_url,
        database_url,
        _left: left.drop_guard(),
        watcher,
    })
}

impl Stores {
    /// Gives the place up. When it was the last one, the stores end about a second later.
    pub async fn leave(self) {
        drop(self._left);
        let _ = self.watcher.await;
    }
}

/// A member's line to the supervisor.
type Connection = Lines<BufReader<UnixStream>>;

/// Holds the place until told to leave; a supervisor that ends meanwhile is started again.
async fn stay(
    dir: PathBuf,
    supervisor: SupervisorCommand,
    mut connection: Connection,
    addresses: Addresses,
    _presence: File,
    left: CancellationToken,
) {
    let stay = async {
        loop {
            while let Ok(Some(_)) = connection.next_line().await {}
            warn!("lost the supervisor of the private stores: starting it again");
            connection = enter_again(&dir, &supervisor, &addresses).await;
        }
    };
    left.run_until_cancelled(stay).await;
}

async fn enter_again(dir: &Path, supervisor: &SupervisorCommand, before: &Addresses) -> Connection {
    let mut pause = Duration::from_millis(100);
    loop {
        match enter(dir, supervisor).await {
            Ok((connection, addresses)) => {
                if addresses == *before {
                    info!("the private stores are back");
                } else {
                    error!(
                        "the private stores came back at other addresses: this replica has to be restarted"
                    );
                }
                return connection;
            }
            Err(failure) => {
                warn!(error = %anyhow::Error::from(failure), "the private stores are still away")
            }
        }
        sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// Connects to the supervisor, starting one if there is none, and waits until the stores answer.
async fn enter(
    dir: &Path,
    supervisor: &SupervisorCommand,
) -> Result<(Connection, Addresses), Error> {
    let log = dir.join("stores.log");
    let mut step = "waiting for the supervisor".to_owned();
    let mut is_silent = true;
    let mut deadline = Instant::now() + PATIENCE;
    loop {
        let stream = connect_or_start(dir, supervisor, &log).await?;
        let mut connection = BufReader::new(stream).lines();
        loop {
            let Ok(line) = timeout_at(deadline, connection.next_line()).await else {
                return Err(Error::Deadline { step, log });
            };
            let Ok(Some(line)) = line else { break };
            match serde_json::from_str(&line) {
                Ok(Message::Step(text)) => {
                    info!("{text}");
                    is_silent = false;
                    step = text;
                    deadline = Instant::now() + PATIENCE;
                }
                Ok(Message::Ready(addresses)) => {
                    if is_silent {
                        info!(
                            "joining the private PostgreSQL and Redis of {}, which run already",
                            dir.display()
                        );
                    }
                    return Ok((connection, addresses));
                }
                Ok(Message::Failed(reason)) => return Err(Error::Failed { reason, log }),
                // A supervisor of another version may say more than we understand.
                Err(_) => {}
            }
        }
        // It was just leaving; the next one takes its place.
        if Instant::now() >= deadline {
            return Err(Error::Deadline { step, log });
        }
        sleep(POLL).await;
    }
}

async fn connect_or_start(
    dir: &Path,
    supervisor: &SupervisorCommand,
    log: &Path,
) -> Result<UnixStream, Error> {
    if let Ok(stream) = socket::connect(dir).await {
        return Ok(stream);
    }
    let folder = |source| Error::Folder {
        path: dir.to_owned(),
        source,
    };
    let _starting = lock::exclusive(dir, lock::START, PATIENCE)
        .await
        .map_err(folder)?;
    if let Ok(stream) = socket::connect(dir).await {
        return Ok(stream);
    }
    Binaries::find()?;
    info!("starting the private stores in {}", dir.display());
    turn_log(log);
    let output = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(log)
        .map_err(folder)?;
    let mut child = spawn(supervisor, output).map_err(|source| Error::Spawn {
        program: supervisor.program.clone(),
        source,
    })?;

    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(stream) = socket::connect(dir).await {
            // From here on the runtime collects the child when it ends.
            return Ok(stream);
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(Error::Failed {
                reason: format!("the supervisor ended: {status}"),
                log: log.to_owned(),
            });
        }
        if Instant::now() >= deadline {
            return Err(Error::Deadline {
                step: "starting the supervisor".into(),
                log: log.to_owned(),
            });
        }
        sleep(POLL).await;
    }
}

fn spawn(supervisor: &SupervisorCommand, output: File) -> io::Result<tokio::process::Child> {
    let mut command = Command::new(&supervisor.program);
    command.args(&supervisor.args).current_dir("/");
    // What a process manager told us about ourselves is not for the child.
    for name in [
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "NOTIFY_SOCKET",
        "NODE_CHANNEL_FD",
    ] {
        command.env_remove(name);
    }
    command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    detach(&mut command);
    tokio::process::Command::from(command).spawn()
}
