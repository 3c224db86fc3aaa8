//! One connection: its requests, its rests, and its end.

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ConnectInfo;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::body::{Body, Incoming};
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::debug;

use super::Server;
use super::drain::LINGER;
use super::gauged::Gauged;
use super::streams::{Activity, Paced, UnderWay};
use super::tls::Secure;
use super::wire::Wire;

/// After how long a connection without a request rests.
const REST: Duration = Duration::from_millis(250);

/// How often a connection is looked at that does not rest.
const LOOK: Duration = Duration::from_secs(1);

/// How a client came.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// As it is.
    Plain,
    /// By TLS.
    Tls {
        /// When the handshake was done.
        shaken: Instant,
    },
}

impl Way {
    /// Until when the request is on its way with which a client follows its handshake.
    fn settled(self) -> Option<Instant> {
        match self {
            Self::Plain => None,
            Self::Tls { shaken } => Some(shaken + LINGER),
        }
    }
}

/// An open connection.
pub struct Open<S> {
    /// By whom it is served.
    pub server: Server<S>,
    /// The address of the other end.
    pub peer: SocketAddr,
    /// How it came.
    pub way: Way,
    /// What goes on on it.
    pub activity: Arc<Activity>,
}

impl<S, B> Open<S>
where
    S: tower::Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + Sync + Unpin + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    fn respond(
        &self,
    ) -> impl Service<
        Request<Incoming>,
        Response = Response<Paced<B>>,
        Error = Infallible,
        Future = impl Future<Output = Result<Response<Paced<B>>, Infallible>> + Send + use<S, B>,
    > + Unpin
    + use<S, B> {
        let (service, drain) = (self.server.service.clone(), self.server.drain.clone());
        let (peer, way, activity) = (self.peer, self.way, self.activity.clone());
        service_fn(move |mut request: Request<Incoming>| {
            activity.ask(request.body().is_end_stream());
            request.extensions_mut().insert(ConnectInfo(peer));
            if let Way::Tls { .. } = way {
                request.extensions_mut().insert(Secure);
            }
            let version = request.version();
            let under_way = UnderWay::new(&activity);
            let response = service.clone().oneshot(request);
            let drain = drain.clone();
            async move {
                let mut response = response.await?;
                if drain.announced() && says_close(version, response.status()) {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(header::CONNECTION, close);
                }
                let on_stream = version == Version::HTTP_2;
                Ok(response.map(|body| Paced::new(body, on_stream, under_way)))
            }
        })
    }

    /// Serves HTTP/1. A connection that rests gives its buffers back: they are most of what it costs.
    pub async fn http1<I>(self, mut wire: Wire<I>)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let closing = self.server.drain.closing();
        while let Some(resting) = Box::pin(self.requests(wire, &closing)).await {
            wire = resting;
            self.activity.wake();
            let resting = Gauged::new("http_connections_resting", self.server.name);
            let wakes = tokio::select! {
                // What the client already sent is read before a close is noticed.
                biased;
                wakes = wire.wakes() => wakes.unwrap_or(false),
                () = closing.cancelled() => false,
                () = sleep(self.server.next_head.saturating_sub(REST)) => false,
            };
            drop(resting);
            if !wakes {
                // By TLS it is said that this is the end, and nobody cut it off.
                let _ = timeout(Duration::from_secs(1), wire.shutdown()).await;
                return;
            }
        }
    }

    /// Serves HTTP/1 requests until the connection ends, or rests and is given back.
    async fn requests<I>(&self, wire: Wire<I>, closing: &CancellationToken) -> Option<Wire<I>>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let server = &self.server;
        let io = TokioIo::new(wire);
        let connection = server.http1.serve_connection(io, self.respond());
        let mut connection = connection.with_upgrades();
        let first_head = Instant::now() + server.first_head;
        let mut look = pin!(sleep(REST));
        loop {
            tokio::select! {
                biased;
                result = &mut connection => {
                    self.tell(result);
                    return None;
                }
                () = closed(closing, self.way.settled()) => break,
                () = &mut look => {
                    let now = Instant::now();
                    let pause = match self.activity.idle() {
                        _ if !self.activity.was_asked() && now >= first_head => {
                            debug!(peer = %self.peer, "closed a connection that sent no request in time");
                            return None;
                        }
                        _ if !self.activity.was_asked() => LOOK.min(first_head - now),
                        Some(idle) if idle < REST => REST - idle,
                        Some(_) if self.activity.is_between_requests() => break,
                        _ => LOOK,
                    };
                    look.as_mut().reset(now + pause);
                }
            }
        }
        if !closing.is_cancelled() {
            let parts = connection.into_parts()?;
            let mut wire = parts.io.into_inner();
            wire.put_back(&parts.read_buf);
            return Some(wire);
        }
        Pin::new(&mut connection).graceful_shutdown();
        let aborting = server.drain.aborting();
        tokio::select! {
            biased;
            result = &mut connection => self.tell(result),
            () = aborting.cancelled() => self.cut("its grace was over"),
        }
        None
    }

    /// Serves HTTP/2.
    pub async fn http2<I>(self, wire: Wire<I>)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let server = &self.server;
        let (closing, aborting) = (server.drain.closing(), server.drain.aborting());
        let io = TokioIo::new(wire);
        let mut connection = pin!(server.http2.serve_connection(io, self.respond()));
        let mut look = pin!(sleep(server.first_head));
        let left = loop {
            tokio::select! {
                biased;
                result = connection.as_mut() => return self.tell(result),
                () = closed(&closing, self.way.settled()) => break None,
                () = &mut look => match self.activity.idle() {
                    _ if !self.activity.was_asked() => {
                        return debug!(peer = %self.peer, "closed a connection that sent no request in time");
                    }
                    None => look.as_mut().reset(Instant::now() + server.next_head),
                    Some(idle) if idle < server.next_head => {
                        look.as_mut().reset(Instant::now() + (server.next_head - idle));
                    }
                    // Ends of answers may still wait for the client's window.
                    Some(_) => break Some(server.stall),
                },
            }
        };
        connection.as_mut().graceful_shutdown();
        let outlived = async {
            match left {
                Some(left) => sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            result = connection.as_mut() => self.tell(result),
            () = aborting.cancelled() => self.cut("its grace was over"),
            () = outlived => self.cut("its client does not read"),
        }
    }

    fn tell(&self, result: hyper::Result<()>) {
        if let Err(error) = result {
            debug!(peer = %self.peer, error = &error as &dyn Error, "connection ended early");
        }
    }

    fn cut(&self, reason: &str) {
        debug!(peer = %self.peer, "cut a connection: {reason}");
    }
}

/// Waits for the order to close, and then until a connection is settled.
async fn closed(closing: &CancellationToken, settled: Option<Instant>) {
    closing.cancelled().await;
    if let Some(settled) = settled {
        sleep_until(settled).await;
    }
}

/// Whether a response may carry `Connection: close`: HTTP/2 forbids it, an upgrade has its own meaning of it.
fn says_close(version: Version, status: StatusCode) -> bool {
    version < Version::HTTP_2 && status != StatusCode::SWITCHING_PROTOCOLS
}
