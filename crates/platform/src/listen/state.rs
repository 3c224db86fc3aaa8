//! The sockets of this replica by service, shared between its accept loops and those who pass sockets around.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::socket::{Handler, Origin, Socket};

/// A socket as it is passed: service, address, the socket.
pub type Passed = (String, SocketAddr, Arc<TcpListener>);

/// All sockets, and the tasks around them.
#[derive(Default)]
pub struct State {
    sockets: Mutex<Sockets>,
    /// The accept loops.
    pub loops: TaskTracker,
    /// The exchanges with peers that are under way.
    pub exchanges: TaskTracker,
}

#[derive(Default)]
struct Sockets {
    leaving: bool,
    last_id: u64,
    services: BTreeMap<String, Service>,
}

struct Service {
    address: SocketAddr,
    handler: Option<Handler>,
    sockets: Vec<Socket>,
}

impl State {
    /// Makes room for the sockets of a service.
    pub fn add_service(&self, service: &str, address: SocketAddr) {
        let new = Service {
            address,
            handler: None,
            sockets: Vec::new(),
        };
        self.lock()
            .services
            .entry(service.to_owned())
            .or_insert(new);
    }

    /// Adds a socket and accepts from it, at once if the service is already served.
    pub fn install(
        &self,
        service: &str,
        listener: std::net::TcpListener,
        origin: Origin,
    ) -> io::Result<()> {
        let mut all = self.lock();
        self.install_in(&mut all, service, listener, origin)
    }

    fn install_in(
        &self,
        all: &mut Sockets,
        service: &str,
        listener: std::net::TcpListener,
        origin: Origin,
    ) -> io::Result<()> {
        all.last_id += 1;
        let id = all.last_id;
        let of = all
            .services
            .get_mut(service)
            .ok_or(io::ErrorKind::NotFound)?;
        let socket = Socket::new(id, listener, origin)?;
        if let Some(handler) = &of.handler {
            socket.accept(&self.loops, service, handler.clone());
        }
        of.sockets.push(socket);
        Ok(())
    }

    /// Begins to accept for a service.
    pub fn serve(&self, service: &str, handler: Handler) {
        if let Some(of) = self.lock().services.get_mut(service)
            && of.handler.is_none()
        {
            for socket in &of.sockets {
                socket.accept(&self.loops, service, handler.clone());
            }
            of.handler = Some(handler);
        }
    }

    /// Where a service listens.
    pub fn addresses(&self, service: &str) -> Vec<SocketAddr> {
        let all = self.lock();
        let sockets = all
            .services
            .get(service)
            .into_iter()
            .flat_map(|of| &of.sockets);
        sockets
            .filter_map(|socket| socket.listener.local_addr().ok())
            .collect()
    }

    /// The services there are.
    pub fn services(&self) -> Vec<String> {
        self.lock().services.keys().cloned().collect()
    }

    /// How many sockets wait for a successor.
    pub fn adopted(&self) -> usize {
        let all = self.lock();
        let sockets = all.services.values().flat_map(|of| &of.sockets);
        sockets
            .filter(|socket| matches!(socket.origin, Origin::Adopted(_)))
            .count()
    }

    /// Adopts nothing and offers nothing from now on.
    pub fn leave(&self) {
        self.lock().leaving = true;
    }

    /// Adopts a socket, unless we leave or do not serve this. `false` where it was refused.
    pub fn adopt(
        &self,
        service: &str,
        address: SocketAddr,
        listener: std::net::TcpListener,
    ) -> bool {
        // One lock for the question and the deed: a replica that begins to leave after this passes the socket on.
        let mut all = self.lock();
        let serves = all
            .services
            .get(service)
            .is_some_and(|of| of.address == address);
        !all.leaving
            && serves
            && self
                .install_in(&mut all, service, listener, Origin::Adopted(Instant::now()))
                .is_ok()
    }

    /// Sets one adopted socket of each wanted service aside for a successor.
    pub fn offer(&self, wanted: &BTreeMap<String, SocketAddr>) -> Vec<(u64, Passed)> {
        let mut all = self.lock();
        if all.leaving {
            return Vec::new();
        }
        let mut offered = Vec::new();
        for (service, address) in wanted {
            let of = all
                .services
                .get_mut(service)
                .filter(|of| of.address == *address);
            let free = of.and_then(|of| {
                let mut sockets = of.sockets.iter_mut();
                sockets
                    .find(|socket| matches!(socket.origin, Origin::Adopted(_)) && !socket.offered)
            });
            if let Some(socket) = free {
                socket.offered = true;
                offered.push((
                    socket.id,
                    (service.clone(), *address, socket.listener.clone()),
                ));
            }
        }
        offered
    }

    /// Ends an offer: what was taken is the successor's, the rest is ours again.
    pub fn end_offer(&self, offered: &[(u64, Passed)], taken: &BTreeSet<u64>) {
        self.release(taken);
        let ids: BTreeSet<u64> = offered.iter().map(|(id, _)| *id).collect();
        let mut all = self.lock();
        let sockets = all.services.values_mut().flat_map(|of| &mut of.sockets);
        for socket in sockets.filter(|socket| ids.contains(&socket.id)) {
            socket.offered = false;
        }
    }

    /// The sockets that a peer can go on with.
    pub fn transferable(&self) -> Vec<(u64, Passed)> {
        let all = self.lock();
        let mut sockets = Vec::new();
        for (service, of) in &all.services {
            for socket in &of.sockets {
                if matches!(socket.origin, Origin::Own | Origin::Adopted(_)) {
                    sockets.push((
                        socket.id,
                        (service.clone(), of.address, socket.listener.clone()),
                    ));
                }
            }
        }
        sockets
    }

    /// Stops accepting from sockets that someone else accepts from. Returns how many there were.
    pub fn release(&self, ids: &BTreeSet<u64>) -> usize {
        let gone = self.remove(|socket| ids.contains(&socket.id));
        let count = gone.len();
        gone.into_iter().for_each(Socket::release);
        count
    }

    /// Retires adopted sockets that no successor came for in this time.
    pub fn retire_unclaimed(&self, waited: Duration) -> usize {
        let gone = self.remove(|socket| match socket.origin {
            Origin::Adopted(since) => !socket.offered && since.elapsed() >= waited,
            _ => false,
        });
        let count = gone.len();
        gone.into_iter().for_each(Socket::retire);
        count
    }

    /// Ends all sockets. Returns how many were closed.
    pub fn retire_all(&self) -> usize {
        let mut closed = 0;
        for socket in self.remove(|_| true) {
            if socket.origin == Origin::Inherited {
                // The parent holds it too: what waits in it waits for our successor.
                socket.release();
            } else {
                closed += usize::from(socket.origin != Origin::Private);
                socket.retire();
            }
        }
        closed
    }

    fn remove(&self, which: impl Fn(&Socket) -> bool) -> Vec<Socket> {
        let mut all = self.lock();
        let services = all.services.values_mut();
        services
            .flat_map(|of| {
                of.sockets
                    .extract_if(.., |socket| which(socket))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Sockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
