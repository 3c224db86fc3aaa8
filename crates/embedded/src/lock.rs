//! Locks on files: the kernel gives them back when their holder dies, however it dies.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Held while a replica looks for the supervisor and starts one.
pub const START: &str = "lock";
/// Held by the supervisor for its life: there is never a second one.
pub const SUPERVISOR: &str = "supervisor.lock";
/// Shared by all replicas that know the addresses of the stores.
pub const MEMBERS: &str = "members.lock";

const POLL: Duration = Duration::from_millis(20);

/// Tells whether the supervisor of a folder lives, and so perhaps its stores.
pub fn is_running(dir: &Path) -> bool {
    dir.join(SUPERVISOR).exists() && !is_free(dir, SUPERVISOR).unwrap_or(false)
}

/// Takes a lock alone, waiting for its holder at most for a time.
pub async fn exclusive(dir: &Path, name: &str, patience: Duration) -> io::Result<File> {
    let file = open(dir, name)?;
    let deadline = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{name} is held by another process"),
                ));
            }
            Err(TryLockError::WouldBlock) => sleep(POLL).await,
        }
    }
}

/// Takes a lock together with others, waiting briefly for one who asks whether it is free.
pub async fn shared(dir: &Path, name: &str) -> io::Result<File> {
    let file = open(dir, name)?;
    for _ in 0..100 {
        match file.try_lock_shared() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) => sleep(POLL).await,
        }
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        format!("{name} is held by another process"),
    ))
}

/// Tells whether nobody holds a lock.
pub fn is_free(dir: &Path, name: &str) -> io::Result<bool> {
    match open(dir, name)?.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn open(dir: &Path, name: &str) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(dir.join(name))
}
