//! Listening sockets that replicas of a machine hand to each other, so that a restart resets no connection.
//!
//! Every replica has one `SO_REUSEPORT` socket per service, and the kernel spreads new connections over them. Closing
//! such a socket loses what waits in its queue. So a replica that leaves passes its sockets to a peer, which *adopts*
//! them; a replica that starts *claims* sockets that were adopted before it binds new ones. Adopted sockets that
//! nobody claims are retired after a while: emptied without loss, then closed.

mod bind;
mod control;
pub(crate) mod fds;
mod peers;
mod socket;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use bind::Company;
use peers::{Folder, PATIENCE, Reached};
use socket::Origin;
use state::State;

pub use bind::Error;

/// The listening sockets of this replica, own and adopted. Open it last, when requests can be served: from then on
/// its share of new connections waits for it.
pub struct Listeners {
    name: String,
    folder: Option<Folder>,
    state: Arc<State>,
    control: TaskTracker,
    closed: CancellationToken,
}

/// What became of the sockets of a replica that left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandedOver {
    /// Sockets from which a peer accepts now.
    pub handed: usize,
    /// Sockets that were emptied and closed, since no peer took them.
    pub closed: usize,
}

impl Listeners {
    /// Takes over or binds one socket for each service at its well-known address. `folder` is where the replicas that
    /// share these addresses find each other; it belongs to one cluster on one machine.
    pub async fn open(folder: &Path, addresses: &[(String, SocketAddr)]) -> Result<Self, Error> {
        let name = format!("{}-{:08x}", std::process::id(), rand::random::<u32>());
        let folder = Folder::open(folder).inspect_err(|error| {
            warn!(
                "sockets cannot be handed over between replicas, since {} is unusable: {error}",
                folder.display()
            );
        });
        let this = Self {
            name,
            folder: folder.ok(),
            state: Arc::default(),
            control: TaskTracker::new(),
            closed: CancellationToken::new(),
        };
        let mut missing: BTreeMap<String, SocketAddr> = addresses.iter().cloned().collect();
        for (service, address) in &missing {
            this.state.add_service(service, *address);
        }
        this.take_inherited(&mut missing);

        let _starting = match &this.folder {
            Some(folder) => folder.lock().await.unwrap_or_else(|error| {
                warn!("could not wait for other replicas that are starting: {error}");
                None
            }),
            None => None,
        };
        let served = this.claim(&mut missing).await;
        for (service, address) in &missing {
            let listener = bind::shared(service, *address, served.company(service))?;
            this.install(service, listener, Origin::Own);
        }
        this.publish();
        Ok(this)
    }

    /// Opens a port of this replica alone, by which the registry names it, and tells which it is. It is not handed over.
    pub fn open_private(&self, service: &str, address: SocketAddr) -> Result<SocketAddr, Error> {
        let listener = bind::alone(service, address)?;
        let address = listener.local_addr().unwrap_or(address);
        self.install(service, listener, Origin::Private);
        Ok(address)
    }

    /// Begins to accept the connections of a service, from every socket it has and those it will adopt. The handler
    /// must not block: it starts a task for the connection.
    pub fn serve(
        &self,
        service: &str,
        handler: impl Fn(TcpStream, SocketAddr) + Send + Sync + 'static,
    ) {
        self.state.serve(service, Arc::new(handler));
    }

    /// Where a service listens, port 0 resolved.
    pub fn addresses(&self, service: &str) -> Vec<SocketAddr> {
        self.state.addresses(service)
    }

    /// How many sockets of departed replicas this one holds until a successor claims them.
    pub fn adopted(&self) -> usize {
        self.state.adopted()
    }

    /// Ends the accept without losing a connection: passes each socket to a live peer that serves the same, else
    /// empties it and closes it. When it returns, no handler is called any more.
    pub async fn hand_over(&self) -> HandedOver {
        let began = Instant::now();
        // From here on we adopt nothing and offer nothing, so what we hold cannot grow.
        self.state.leave();
        self.state.exchanges.close();
        // A claim under way ends first: its socket is the successor's or ours, never both closed.
        let _ = timeout(PATIENCE * 2, self.state.exchanges.wait()).await;
        let mut report = HandedOver::default();
        if let Some(folder) = &self.folder {
            report.handed = self.give(folder).await;
        }
        report.closed = self.state.retire_all();
        self.state.loops.close();
        self.state.loops.wait().await;
        self.closed.cancel();
        self.control.close();
        self.control.wait().await;
        info!(
            "handed {} sockets over and closed {} in {:.0?}",
            report.handed,
            report.closed,
            began.elapsed()
        );
        report
    }

    async fn give(&self, folder: &Folder) -> usize {
        let mut handed = 0;
        for name in folder.names(&self.name) {
            // One message holds so many; the peer is asked again while it takes what it gets.
            loop {
                let mut sockets = self.state.transferable();
                sockets.truncate(fds::MOST);
                if sockets.is_empty() {
                    return handed;
                }
                let Reached::Alive(peer) = folder.reach(&name).await else {
                    break;
                };
                let offer: Vec<_> = sockets.iter().map(|(_, socket)| socket.clone()).collect();
                let taken = peer.give(&offer).await.unwrap_or_else(|error| {
                    debug!("peer {name} did not answer: {error}");
                    Vec::new()
                });
                let ids = taken
                    .iter()
                    .filter_map(|place| Some(sockets.get(*place)?.0))
                    .collect();
                let released = self.state.release(&ids);
                debug!("peer {name} took {released} of {} sockets", sockets.len());
                handed += released;
                if released < sockets.len() {
                    break;
                }
            }
        }
        handed
    }

    fn take_inherited(&self, missing: &mut BTreeMap<String, SocketAddr>) {
        for listener in fds::inherited() {
            let Ok(address) = listener.local_addr() else {
                continue;
            };
            let fits = missing
                .iter()
                .find(|(_, wanted)| wanted.port() == address.port());
            let Some(service) = fits.map(|(service, _)| service.clone()) else {
                warn!("no service wants the inherited socket {address}");
                continue;
            };
            missing.remove(&service);
            self.install(&service, listener, Origin::Inherited);
        }
    }

    /// Claims adopted sockets from live peers, and finds out what those serve.
    async fn claim(&self, missing: &mut BTreeMap<String, SocketAddr>) -> Served {
        let Some(folder) = &self.folder else {
            return Served::Unknown;
        };
        let mut served = Served::By(BTreeSet::new());
        for name in folder.names(&self.name) {
            let claimed = match folder.reach(&name).await {
                Reached::Alive(peer) => peer.claim(missing).await,
                Reached::Gone => continue,
                Reached::Unknown => Err(std::io::ErrorKind::TimedOut.into()),
            };
            match claimed {
                Ok(claimed) => {
                    served.add(claimed.serves);
                    for (service, listener) in claimed.sockets {
                        if missing.remove(&service).is_some() {
                            debug!("claimed a socket of {service} from peer {name}");
                            self.install(&service, listener, Origin::Own);
                        }
                    }
                }
                Err(error) => {
                    debug!("peer {name} did not answer: {error}");
                    served = Served::Unknown;
                }
            }
        }
        served
    }

    fn publish(&self) {
        let Some(folder) = &self.folder else { return };
        match folder.publish(&self.name) {
            Ok(door) => {
                let answer = control::answer(self.state.clone(), door, self.closed.clone());
                self.control.spawn(answer);
            }
            Err(error) => warn!("sockets cannot be handed over to this replica: {error}"),
        }
    }

    fn install(&self, service: &str, listener: TcpListener, origin: Origin) {
        if let Err(error) = self.state.install(service, listener, origin) {
            warn!("could not use a socket of {service}: {error}");
        }
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.closed.cancel();
        self.state.leave();
        self.state.retire_all();
    }
}

/// Which services live peers listen for.
enum Served {
    By(BTreeSet<String>),
    Unknown,
}

impl Served {
    fn add(&mut self, services: Vec<String>) {
        if let Self::By(known) = self {
            known.extend(services);
        }
    }

    fn company(&self, service: &str) -> Company {
        match self {
            Self::By(known) if !known.contains(service) => Company::Stranger,
            _ => Company::Expected,
        }
    }
}

/// Whether the ports are free for a replica to come, for a check before the long part of the start.
pub fn check(addresses: &[(String, SocketAddr)]) -> Result<(), Error> {
    for (service, address) in addresses {
        bind::free(service, *address)?;
    }
    Ok(())
}
