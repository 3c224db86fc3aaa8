//! One listening socket: its accept loop, and the two ways in which it ends.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// What is done with an accepted connection. It must not block: it starts a task.
pub type Handler = Arc<dyn Fn(TcpStream, SocketAddr) + Send + Sync>;

/// A socket that gets no new connections is empty when none came for this long.
const QUIET: Duration = Duration::from_millis(200);

/// The longest a socket is emptied before it closes.
const LONGEST: Duration = Duration::from_secs(3);

/// Where a socket comes from, which says how it may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This replica's own, bound by it or taken over from a predecessor.
    Own,
    /// Left by a replica that went away; a successor may claim it.
    Adopted(Instant),
    /// Given by a parent, which keeps it open when we leave.
    Inherited,
    /// On a port of our own, never handed over.
    Private,
}

/// A listening socket and its accept loop, if it has begun.
pub struct Socket {
    /// Names it in this process.
    pub id: u64,
    /// Where it comes from.
    pub origin: Origin,
    /// Whether it is just being offered to a successor.
    pub offered: bool,
    /// The socket itself.
    pub listener: Arc<TcpListener>,
    orders: watch::Sender<Order>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Accept,
    Release,
    Retire,
}

impl Socket {
    /// Takes a listening socket; must be called in a runtime.
    pub fn new(id: u64, listener: std::net::TcpListener, origin: Origin) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        if let Origin::Own | Origin::Adopted(_) = origin {
            // Its last holder may have begun to retire it, when it took us for dead.
            let _ = admit(&listener);
        }
        Ok(Self {
            id,
            origin,
            offered: false,
            listener: Arc::new(TcpListener::from_std(listener)?),
            orders: watch::Sender::new(Order::Accept),
        })
    }

    /// Begins to accept.
    pub fn accept(&self, loops: &TaskTracker, service: &str, handler: Handler) {
        let accept = Accept {
            service: service.to_owned(),
            listener: self.listener.clone(),
            handler,
        };
        loops.spawn(accept.run(self.orders.subscribe()));
    }

    /// Stops accepting at once, for someone else accepts from the same socket.
    pub fn release(self) {
        self.orders.send_replace(Order::Release);
    }

    /// Accepts what already waits, but nothing new, then closes the socket.
    pub fn retire(self) {
        self.orders.send_replace(Order::Retire);
    }
}

/// Waits for the order that ends the accept.
async fn ordered(orders: &mut watch::Receiver<Order>) -> Order {
    let order = orders.wait_for(|order| *order != Order::Accept).await;
    order.map_or(Order::Release, |order| *order)
}

struct Accept {
    service: String,
    listener: Arc<TcpListener>,
    handler: Handler,
}

impl Accept {
    async fn run(self, mut orders: watch::Receiver<Order>) {
        let mut pause = Duration::ZERO;
        loop {
            // An accept that is not ready when the order comes has taken no connection: none is lost here.
            let accepted = tokio::select! {
                biased;
                order = ordered(&mut orders) => match order {
                    Order::Retire => return self.retire().await,
                    Order::Accept | Order::Release => return,
                },
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    pause = Duration::ZERO;
                    self.serve(stream, peer);
                }
                Err(error) if is_the_clients(&error) => {}
                Err(error) => {
                    // Out of descriptors or memory: it passes, and others may be faster.
                    pause = (pause * 2).clamp(Duration::from_millis(5), Duration::from_secs(1));
                    metrics::counter!("accept_errors_total", "service" => self.service.clone())
                        .increment(1);
                    warn!(
                        "could not accept a connection for {}, next try in {pause:.0?}: {error}",
                        self.service
                    );
                    sleep(pause).await;
                }
            }
        }
    }

    async fn retire(self) {
        if let Err(error) = refuse_new(&self.listener) {
            debug!("could not keep new connections off a closing socket: {error}");
        }
        let deadline = Instant::now() + LONGEST;
        while Instant::now() < deadline {
            match timeout(QUIET, self.listener.accept()).await {
                Ok(Ok((stream, peer))) => self.serve(stream, peer),
                Ok(Err(_)) => sleep(Duration::from_millis(5)).await,
                Err(_) => break,
            }
        }
    }

    fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        // It fails only when the connection is gone already.
        let _ = stream.set_nodelay(true);
        (self.handler)(stream, peer);
    }
}

/// Whether an accept failed for a connection that its client gave up.
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

/// Drops the first packet of new connections, while those under way can finish. Their clients send it again a second
/// later, when the socket is closed, and reach another replica. So a closing socket resets nobody.
#[cfg(target_os = "linux")]
fn refuse_new(listener: &impl std::os::fd::AsFd) -> io::Result<()> {
    use nix::libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET};
    use socket2::SockFilter;
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let op = |code: u32, jump_true, jump_false, value| {
        SockFilter::new(code as u16, jump_true, jump_false, value)
    };
    socket2::SockRef::from(listener).attach_filter(&[
        op(BPF_LD | BPF_B | BPF_ABS, 0, 0, FLAGS),
        op(BPF_ALU | BPF_AND | BPF_K, 0, 0, SYN | ACK),
        op(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYN),
        op(BPF_RET | BPF_K, 0, 0, 0),
        op(BPF_RET | BPF_K, 0, 0, u32::MAX),
    ])
}

#[cfg(target_os = "linux")]
fn admit(listener: &impl std::os::fd::AsFd) -> io::Result<()> {
    socket2::SockRef::from(listener).detach_filter()
}

#[cfg(not(target_os = "linux"))]
fn refuse_new(_: &impl std::os::fd::AsFd) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
fn admit(_: &impl std::os::fd::AsFd) -> io::Result<()> {
    Ok(())
}
