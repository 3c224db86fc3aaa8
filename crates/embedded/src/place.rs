//! Where the stores keep their files, and as whom they run.

use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use nix::unistd::{User, geteuid};

use crate::Error;

/// Where root's stores go when the folder itself is closed to the user they run as.
const FALLBACK: &str = "/var/lib/cloudphone";

/// The user that the stores run as: PostgreSQL refuses to be root.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    uid: u32,
    gid: u32,
}

/// The files of one folder's stores.
#[derive(Clone, Debug)]
pub struct Place {
    /// The folder itself: the socket, the locks, the record, the log.
    pub dir: PathBuf,
    /// The folder that holds `postgres/` and `redis/`.
    pub data: PathBuf,
    /// Whom to become; `None` unless we are root.
    account: Option<Account>,
}

/// Creates the folder if need be, closed to others but for passing through when we are root, and resolves its name.
pub fn open(dir: &Path) -> Result<PathBuf, Error> {
    let failed = |source| Error::Folder {
        path: dir.to_owned(),
        source,
    };
    let mode = if geteuid().is_root() { 0o711 } else { 0o700 };
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(dir)
        .map_err(failed)?;
    let dir = dir.canonicalize().map_err(failed)?;
    let metadata = fs::metadata(&dir).map_err(failed)?;
    if geteuid().is_root() && metadata.uid() == 0 && metadata.mode() & 0o001 == 0 {
        let permissions = fs::Permissions::from_mode(metadata.mode() & 0o7777 | 0o011);
        fs::set_permissions(&dir, permissions).map_err(failed)?;
    }
    Ok(dir)
}

impl Place {
    /// Decides whom the stores run as and where their data lies; `recorded` is where it lay before.
    pub fn choose(dir: &Path, recorded: Option<&Path>) -> anyhow::Result<Self> {
        let dir = dir.to_owned();
        if !geteuid().is_root() {
            return Ok(Self {
                data: dir.clone(),
                dir,
                account: None,
            });
        }
        let data = recorded.unwrap_or(&dir).to_owned();
        let account = owner(&data.join("postgres"))?.map_or_else(unprivileged, Ok)?;
        let data = match closed_ancestor(&data, account)? {
            None => data,
            Some(closed) if recorded.is_some() => {
                anyhow::bail!(
                    "the data lies in {}, but {} is closed to the user it belongs to",
                    data.display(),
                    closed.display()
                )
            }
            Some(_) => Path::new(FALLBACK).join(fingerprint(&dir)),
        };
        let account = owner(&data.join("postgres"))?.unwrap_or(account);
        Ok(Self {
            dir,
            data,
            account: Some(account),
        })
    }

    /// A folder of one store, owned by the user it runs as and closed to all others.
    pub fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.data.join(name);
        self.create(&folder).with_context(|| {
            format!(
                "could not prepare {} (CLOUDPHONE_HOME names another folder for the stores)",
                folder.display()
            )
        })?;
        Ok(folder)
    }

    fn create(&self, folder: &Path) -> io::Result<()> {
        if self.data != self.dir {
            DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(&self.data)?;
            for passed in [Path::new(FALLBACK), &self.data] {
                fs::set_permissions(passed, fs::Permissions::from_mode(0o711))?;
            }
        }
        if !folder.is_dir() {
            DirBuilder::new().mode(0o700).create(folder)?;
        }
        self.give(folder)
    }

    /// Gives a file to the user the stores run as.
    pub fn give(&self, path: &Path) -> io::Result<()> {
        match self.account {
            Some(account) => chown(path, Some(account.uid), Some(account.gid)),
            None => Ok(()),
        }
    }

    /// A command that runs as the stores' user, in `/`, with an empty environment and a process group of its own.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("LC_ALL", "C")
            .current_dir("/")
            .process_group(0);
        if let Some(account) = self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command
    }
}

/// The owner of files that are already there, unless it is root.
fn owner(path: &Path) -> anyhow::Result<Option<Account>> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.uid() != 0 => Ok(Some(Account {
            uid: metadata.uid(),
            gid: metadata.gid(),
        })),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("could not look at {}", path.display())),
    }
}

fn unprivileged() -> anyhow::Result<Account> {
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name).context("could not read the list of users")? {
            return Ok(Account {
                uid: user.uid.as_raw(),
                gid: user.gid.as_raw(),
            });
        }
    }
    anyhow::bail!(
        "PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody"
    )
}

/// The first folder on the way down that a user may not pass.
fn closed_ancestor(path: &Path, account: Account) -> anyhow::Result<Option<PathBuf>> {
    let mut ancestors: Vec<_> = path
        .ancestors()
        .filter(|ancestor| ancestor.exists())
        .collect();
    ancestors.reverse();
    for ancestor in ancestors {
        let metadata = fs::metadata(ancestor)
            .with_context(|| format!("could not look at {}", ancestor.display()))?;
        if !is_searchable(&metadata, account) {
            return Ok(Some(ancestor.to_owned()));
        }
    }
    Ok(None)
}

fn is_searchable(folder: &Metadata, account: Account) -> bool {
    let bit = if folder.uid() == account.uid {
        0o100
    } else if folder.gid() == account.gid {
        0o010
    } else {
        0o001
    };
    folder.mode() & bit != 0
}

/// A short name for a path that stays the same (FNV-1a).
fn fingerprint(path: &Path) -> String {
    let hash = path
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_folder_on_the_way_is_found() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("closed/inner");
        fs::create_dir_all(&inner).unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let stranger = Account {
            uid: 65_534,
            gid: 65_534,
        };

        assert_eq!(closed_ancestor(&inner, stranger).unwrap(), None);

        let closed = root.path().join("closed");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(closed_ancestor(&inner, stranger).unwrap(), Some(closed));
    }

    #[test]
    fn two_folders_have_two_fingerprints() {
        assert_ne!(
            fingerprint(Path::new("/root/a/.cloudphone")),
            fingerprint(Path::new("/root/b/.cloudphone"))
        );
    }
}
