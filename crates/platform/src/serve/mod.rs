//! Serves HTTP/1 and HTTP/2 (prior knowledge) on accepted connections, and ends them without losing a request.

mod drain;

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::ConnectInfo;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tower::ServiceExt;
use tracing::debug;

pub use drain::Drain;

/// How long a fresh connection may take until its first request's head is there.
const FIRST_HEAD: Duration = Duration::from_secs(10);

/// How long a connection may idle until its next request's head is there. It is longer than what load balancers and
/// client pools keep (60 s), so that the client is the one who closes and no request meets a closing connection.
const NEXT_HEAD: Duration = Duration::from_secs(75);

/// The largest request head.
const MAX_HEAD: usize = 32 * 1024;

/// Concurrent streams of one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;

/// Serves connections of one service until its [`Drain`] ends them.
#[derive(Clone)]
pub struct Server<S> {
    name: &'static str,
    service: S,
    drain: Drain,
    builder: Arc<auto::Builder<TokioExecutor>>,
}

impl<S, B> Server<S>
where
    S: tower::Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// Makes a server of a router or any other tower service; `name` labels its metrics.
    pub fn new(name: &'static str, service: S, drain: &Drain) -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(NEXT_HEAD)
            .max_buf_size(MAX_HEAD);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(MAX_HEAD as u32)
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20));
        Self {
            name,
            service,
            drain: drain.clone(),
            builder: Arc::new(builder),
        }
    }

    /// Serves a connection in a task of its own.
    pub fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        let connections = self.drain.connections().clone();
        connections.spawn(self.clone().connection(stream, peer));
    }

    /// The server as the function that [`crate::listen::Listeners::serve`] takes.
    pub fn handler(self) -> impl Fn(TcpStream, SocketAddr) + Send + Sync + 'static {
        move |stream, peer| self.serve(stream, peer)
    }

    async fn connection(self, stream: TcpStream, peer: SocketAddr) {
        let _counted = Counted::new(self.name);
        let drain = &self.drain;
        let (closing, aborting) = (drain.closing(), drain.aborting());
        let asked = Arc::new(AtomicBool::new(false));

        let respond = {
            let (service, drain, asked) = (self.service.clone(), drain.clone(), asked.clone());
            service_fn(move |mut request: Request<Incoming>| {
                asked.store(true, Ordering::Relaxed);
                request.extensions_mut().insert(ConnectInfo(peer));
                let version = request.version();
                let response = service.clone().oneshot(request);
                let drain = drain.clone();
                async move {
                    let mut response = response.await?;
                    if drain.announced() && says_close(version, response.status()) {
                        let close = HeaderValue::from_static("close");
                        response.headers_mut().insert(header::CONNECTION, close);
                    }
                    Ok::<_, Infallible>(response)
                }
            })
        };
        let io = TokioIo::new(stream);
        let mut connection = pin!(self.builder.serve_connection_with_upgrades(io, respond));
        let mut first_head = pin!(tokio::time::sleep(FIRST_HEAD));
        let mut watching = true;

        loop {
            tokio::select! {
                // What the client already sent is read before a close is noticed.
                biased;
                result = connection.as_mut() => return log(result, peer),
                () = closing.cancelled() => break,
                () = &mut first_head, if watching => {
                    if !asked.load(Ordering::Relaxed) {
                        return debug!(%peer, "closed a connection that sent no request in time");
                    }
                    watching = false;
                }
            }
        }
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            biased;
            result = connection.as_mut() => log(result, peer),
            () = aborting.cancelled() => debug!(%peer, "cut a connection whose grace was over"),
        }
    }
}

/// Whether a response may carry `Connection: close`: HTTP/2 forbids it, an upgrade has its own meaning of it.
fn says_close(version: Version, status: StatusCode) -> bool {
    version < Version::HTTP_2 && status != StatusCode::SWITCHING_PROTOCOLS
}

fn log(result: Result<(), Box<dyn Error + Send + Sync>>, peer: SocketAddr) {
    if let Err(error) = result {
        debug!(%peer, error, "connection ended early");
    }
}

/// Counts an open connection for as long as it lives.
struct Counted(&'static str);

impl Counted {
    fn new(service: &'static str) -> Self {
        metrics::gauge!("http_connections", "service" => service).increment(1);
        Self(service)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!("http_connections", "service" => self.0).decrement(1);
    }
}
