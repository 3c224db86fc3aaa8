//! Connections to one instance: idle ones are kept, newest first, and one exchange at a time runs on each.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::front::body::Outgoing;
use crate::front::instance::{Busy, Instance};
use crate::front::workers;

/// Above this many, shared among the workers, an idle connection is closed rather than kept.
const MOST_IDLE: usize = 1024;
/// As many a worker may keep in any case.
const LEAST_IDLE: usize = 128;

/// The idle connections to one instance.
#[derive(Debug)]
pub struct Connections {
    address: String,
    keep: Duration,
    connect_within: Duration,
    /// A list for each worker: a connection is driven by the thread that opened it, and used by no other.
    idle: Box<[Mutex<VecDeque<Idle>>]>,
    drivers: TaskTracker,
}

#[derive(Debug)]
struct Idle {
    sender: SendRequest<Outgoing>,
    since: Instant,
}

/// What an exchange keeps until its reply is read: the instance counts as busy, and the connection is not another's.
#[derive(Debug)]
pub struct Held {
    busy: Busy,
    sender: SendRequest<Outgoing>,
}

/// Why a request got no reply.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// It was not sent; here it is.
    #[error("could not connect: {1}")]
    Unsent(Box<Request<Outgoing>>, io::Error),
    /// It may have been sent, and may have had its effect.
    #[error("broke off: {error}")]
    Broken {
        /// What went wrong.
        error: hyper::Error,
        /// Whether the connection had been idle, and may have been closed as we began.
        reused: bool,
    },
}

impl Connections {
    /// No connection yet.
    pub fn new(
        address: String,
        keep: Duration,
        connect_within: Duration,
        workers: usize,
        drivers: TaskTracker,
    ) -> Self {
        Self {
            address,
            keep,
            connect_within,
            // The first is for threads that are no workers.
            idle: (0..=workers).map(|_| Mutex::default()).collect(),
            drivers,
        }
    }

    /// Closes the idle ones.
    pub fn clear(&self) {
        for list in &self.idle {
            list.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// Closes those that have been idle for too long, and forgets those that the instance closed.
    pub fn prune(&self) {
        for list in &self.idle {
            let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
            list.retain(|idle| idle.sender.is_ready() && idle.since.elapsed() < self.keep);
        }
    }

    fn list(&self) -> std::sync::MutexGuard<'_, VecDeque<Idle>> {
        // A thread that is no worker of this door has the first.
        let list = self.idle.get(workers::number()).unwrap_or(&self.idle[0]);
        list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<SendRequest<Outgoing>> {
        let mut list = self.list();
        while let Some(idle) = list.pop_back() {
            if idle.since.elapsed() >= self.keep {
                // Those before it are older still.
                list.clear();
                return None;
            }
            if idle.sender.is_ready() {
                return Some(idle.sender);
            }
        }
        None
    }

    fn keep(&self, sender: SendRequest<Outgoing>) {
        let now = Instant::now();
        let most = (MOST_IDLE / self.idle.len()).max(LEAST_IDLE);
        let mut list = self.list();
        while list
            .front()
            .is_some_and(|oldest| list.len() >= most || now - oldest.since >= self.keep)
        {
            list.pop_front();
        }
        list.push_back(Idle { sender, since: now });
    }

    async fn connect(&self) -> io::Result<SendRequest<Outgoing>> {
        let stream = timeout(self.connect_within, TcpStream::connect(&self.address)).await??;
        stream.set_nodelay(true)?;
        let handshake = http1::Builder::new().handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(io::Error::other)?;
        // Its end is seen by the sender, with the reason.
        self.drivers
            .spawn(async move { connection.with_upgrades().await.ok() });
        Ok(sender)
    }
}

impl Instance {
    /// Sends a request and waits for the head of its reply.
    ///
    /// # Errors
    /// [`SendError`], which gives the request back as long as nothing of it was sent.
    pub async fn send(
        self: &Arc<Self>,
        request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Held), SendError> {
        let busy = Busy::new(self);
        let mut request = request;
        loop {
            let (mut sender, reused) = match self.connections.take() {
                Some(sender) => (sender, true),
                None => match self.connections.connect().await {
                    Ok(sender) => (sender, false),
                    Err(error) => return Err(SendError::Unsent(Box::new(request), error)),
                },
            };
            match sender.try_send_request(request).await {
                Ok(reply) => return Ok((reply, Held { busy, sender })),
                Err(mut failed) => match failed.take_message() {
                    // An idle connection was closed in the same moment; the next may be alive.
                    Some(unsent) if reused => request = unsent,
                    Some(unsent) => {
                        let error = io::Error::other(failed.into_error());
                        return Err(SendError::Unsent(Box::new(unsent), error));
                    }
                    None => {
                        return Err(SendError::Broken {
                            error: failed.into_error(),
                            reused,
                        });
                    }
                },
            }
        }
    }
}

impl Held {
    /// The instance that answered.
    pub fn instance(&self) -> &Arc<Instance> {
        self.busy.instance()
    }

    /// The instance has answered in full: its connection is free for the next.
    pub fn give_back(self) {
        let Self { busy, mut sender } = self;
        let instance = busy.instance().clone();
        drop(busy);
        if sender.is_ready() {
            instance.connections.keep(sender);
        } else if !sender.is_closed() {
            // The end of the exchange is a moment away: the connection's own task has yet to see it.
            let drivers = instance.connections.drivers.clone();
            drivers.spawn(async move {
                if let Ok(Ok(())) = timeout(Duration::from_secs(1), sender.ready()).await {
                    instance.connections.keep(sender);
                }
            });
        }
    }
}
