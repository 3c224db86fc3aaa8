//! The other replicas of this machine: how they are found, and what is said between them.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::fds;

/// How long a peer may take for one exchange. One that takes longer is frozen.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// How long a start waits for another replica that is just starting.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// What one replica asks another.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// A replica that starts asks for sockets that a departed replica left, one for each of its services. The answer
    /// is an [`Offer`] with the sockets, and the last word [`Taken`].
    Claim(BTreeMap<String, SocketAddr>),
    /// A replica that leaves gives its sockets, which come with this message. The answer is [`Taken`].
    Give(Vec<(String, SocketAddr)>),
}

/// What a peer has for a replica that starts.
#[derive(Debug, Serialize, Deserialize)]
pub struct Offer {
    /// Every service the peer listens for.
    pub serves: Vec<String>,
    /// The services of the sockets that come with this message.
    pub sockets: Vec<String>,
}

/// Which of the sockets were taken, by their place in the message.
#[derive(Debug, Serialize, Deserialize)]
pub struct Taken(pub Vec<usize>);

/// The folder in which the replicas of a machine find each other.
pub struct Folder {
    path: PathBuf,
    /// The same folder by a path that is short enough for a socket's address.
    short: PathBuf,
    _open: File,
}

impl Folder {
    /// Opens the folder, made for this user alone if it is not there.
    pub fn open(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let open = File::open(path)?;
        let about = open.metadata()?;
        if about.uid() != nix::unistd::geteuid().as_raw() || about.mode() & 0o022 != 0 {
            let text = format!(
                "{} belongs to, or may be written by, someone else",
                path.display()
            );
            return Err(io::Error::other(text));
        }
        Ok(Self {
            short: short(path, &open),
            path: path.to_owned(),
            _open: open,
        })
    }

    /// Waits until no other replica of the machine is in the middle of its start.
    pub async fn lock(&self) -> io::Result<Option<Flock<File>>> {
        let path = self.path.join("lock");
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Some(lock)),
                Err((_, error)) if error != nix::Error::EWOULDBLOCK => return Err(error.into()),
                Err(_) if Instant::now() > deadline => {
                    warn!(
                        "another replica has been starting for long, not waiting for it any more"
                    );
                    return Ok(None);
                }
                Err((same, _)) => file = same,
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Opens the door by which peers reach the replica of this name.
    pub fn publish(&self, name: &str) -> io::Result<Door> {
        // It appears under its name only when it answers: who finds it refused may take it for left behind.
        let hidden = self.short.join(format!(".{name}"));
        let listener = UnixListener::bind(&hidden)?;
        let path = self.path.join(format!("{name}.sock"));
        fs::rename(&hidden, &path)?;
        Ok(Door { listener, path })
    }

    /// The names of all peers, dead or alive, in random order.
    pub fn names(&self, own: &str) -> Vec<String> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| {
                Some(
                    entry
                        .file_name()
                        .to_str()?
                        .strip_suffix(".sock")?
                        .to_owned(),
                )
            })
            .filter(|name| name != own)
            .collect();
        names.shuffle(&mut rand::rng());
        names
    }

    /// Knocks at a peer's door. Removes the door when nobody lives behind it.
    pub async fn reach(&self, name: &str) -> Reached {
        let door = format!("{name}.sock");
        match UnixStream::connect(self.short.join(&door)).await {
            Ok(stream) => Reached::Alive(Peer { stream }),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                debug!("removed the door of {name}, which is gone");
                let _ = fs::remove_file(self.path.join(&door));
                Reached::Gone
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Reached::Gone,
            Err(error) => {
                debug!("could not reach peer {name}: {error}");
                Reached::Unknown
            }
        }
    }
}

/// A socket's address holds about a hundred bytes, a home can be deeper.
fn short(path: &Path, open: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    const ROOM: usize = 60;
    if cfg!(target_os = "linux") && path.as_os_str().len() > ROOM {
        return PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
    }
    path.to_owned()
}

/// Where peers knock; gone from the folder when it is dropped.
pub struct Door {
    /// Takes their connections.
    pub listener: UnixListener,
    path: PathBuf,
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// What came of a knock.
pub enum Reached {
    /// The peer can be talked to.
    Alive(Peer),
    /// The peer has left or died.
    Gone,
    /// The peer may live, but cannot be talked to.
    Unknown,
}

/// A live replica on this machine, reached for one exchange.
pub struct Peer {
    stream: UnixStream,
}

impl Peer {
    /// Asks for sockets that a departed replica left. Also tells what the peer serves.
    pub async fn claim(&self, wanted: &BTreeMap<String, SocketAddr>) -> io::Result<Claimed> {
        patiently(async {
            fds::write(&self.stream, &Request::Claim(wanted.clone()), &[]).await?;
            let (offer, sockets) = fds::read::<Offer>(&self.stream).await?;
            let mut taken = Vec::new();
            let mut claimed = Vec::new();
            for (place, (service, socket)) in offer.sockets.into_iter().zip(sockets).enumerate() {
                let fits = wanted
                    .get(&service)
                    .and_then(|address| listener(socket, *address));
                if let Some(listener) = fits {
                    taken.push(place);
                    claimed.push((service, listener));
                }
            }
            // When the peer does not hear this, both of us accept from the sockets, which harms nobody.
            fds::write(&self.stream, &Taken(taken), &[]).await?;
            Ok(Claimed {
                serves: offer.serves,
                sockets: claimed,
            })
        })
        .await
    }

    /// Gives sockets away. Returns the places of those that the peer accepts from now.
    pub async fn give(
        &self,
        sockets: &[(String, SocketAddr, Arc<TcpListener>)],
    ) -> io::Result<Vec<usize>> {
        patiently(async {
            let names = sockets
                .iter()
                .map(|(service, address, _)| (service.clone(), *address));
            let fds: Vec<_> = sockets
                .iter()
                .map(|(_, _, listener)| listener.as_fd())
                .collect();
            fds::write(&self.stream, &Request::Give(names.collect()), &fds).await?;
            let (Taken(taken), _) = fds::read(&self.stream).await?;
            Ok(taken)
        })
        .await
    }
}

/// What a peer passed to a replica that starts.
pub struct Claimed {
    /// Every service the peer listens for.
    pub serves: Vec<String>,
    /// Sockets of departed replicas, which are ours now.
    pub sockets: Vec<(String, std::net::TcpListener)>,
}

/// A received descriptor as a listening socket, if it is one for this address.
pub fn listener(fd: OwnedFd, address: SocketAddr) -> Option<std::net::TcpListener> {
    if !fds::is_listening(fd.as_fd()) {
        return None;
    }
    let listener = std::net::TcpListener::from(fd);
    (listener.local_addr().ok()? == address).then_some(listener)
}

async fn patiently<T>(exchange: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(PATIENCE, exchange).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
