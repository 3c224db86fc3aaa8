//! The supervisor's Unix socket, at paths of any length.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

const NAME: &str = "stores.sock";
/// `sun_path` holds 108 bytes on Linux and 104 on macOS, with the closing zero.
pub const LONGEST: usize = 103;

/// Connects to the supervisor.
pub async fn connect(dir: &Path) -> io::Result<UnixStream> {
    let (path, _folder) = short(dir)?;
    UnixStream::connect(path).await
}

/// Listens for members; only the user (and root) may become one. The caller holds the supervisor's lock.
pub fn listen(dir: &Path) -> io::Result<UnixListener> {
    remove(dir)?;
    let (path, _folder) = short(dir)?;
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(dir.join(NAME), fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Takes the socket out of the folder.
pub fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A name for the socket that fits; it is valid as long as the open folder lives.
fn short(dir: &Path) -> io::Result<(PathBuf, Option<File>)> {
    let path = dir.join(NAME);
    if path.as_os_str().as_bytes().len() <= LONGEST || !cfg!(target_os = "linux") {
        return Ok((path, None));
    }
    let folder = File::open(dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(NAME);
    Ok((path, Some(folder)))
}
