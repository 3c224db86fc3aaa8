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
use tokio::runtime::Handle;
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
    first_head: Duration,
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
            first_head: FIRST_HEAD,
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

    /// The same, with each connection served on the runtime that is picked for it.
    pub fn handler_on(
        self,
        pick: impl Fn() -> Handle + Send + Sync + 'static,
    ) -> impl Fn(TcpStream, SocketAddr) + Send + Sync + 'static {
        move |stream, peer| {
            let (server, runtime) = (self.clone(), pick());
            // A socket belongs to the runtime that it was made on until it is taken out.
            let stream = stream.into_std();
            let connections = self.drain.connections();
            connections.spawn_on(
                async move {
                    match stream.and_then(TcpStream::from_std) {
                        Ok(stream) => server.connection(stream, peer).await,
                        Err(error) => debug!(%peer, %error, "a connection could not be served"),
                    }
                },
                &runtime,
            );
        }
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
        let mut first_head = pin!(tokio::time::sleep(self.first_head));
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

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::extract::WebSocketUpgrade;
    use axum::routing::{any, get};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn router() -> Router {
        let peer = async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.to_string();
        let upgrade = async |socket: WebSocketUpgrade| {
            socket.on_upgrade(async |mut socket| while let Some(Ok(_)) = socket.recv().await {})
        };
        Router::new()
            .route("/", get(peer))
            .route("/never", get(std::future::pending::<()>))
            .route("/socket", any(upgrade))
    }

    /// A client on a served connection.
    async fn client(drain: &Drain, first_head: Duration) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let mut server = Server::new("tests", router(), drain);
        server.first_head = first_head;
        server.serve(stream, peer);
        client
    }

    /// Sends a request and reads until the answer's end: the mark, or the end of the connection.
    async fn ask(client: &mut TcpStream, request: &str, until: &str) -> String {
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains(until) {
            if client.read_buf(&mut answer).await.unwrap_or(0) == 0 {
                break;
            }
        }
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn handlers_learn_the_peers_address() {
        let mut client = client(&Drain::new(), FIRST_HEAD).await;
        let address = client.local_addr().unwrap().to_string();

        let answer = ask(&mut client, "GET / HTTP/1.1\r\nhost: x\r\n\r\n", &address).await;

        assert!(answer.ends_with(&address), "{answer}");
        assert!(!answer.contains("connection: close"), "{answer}");
    }

    #[tokio::test]
    async fn an_announced_drain_closes_connections_after_their_answer() {
        let drain = Drain::new();
        let mut client = client(&drain, FIRST_HEAD).await;

        drain.announce();
        let answer = ask(
            &mut client,
            "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
            "never said",
        )
        .await;

        assert!(answer.contains("connection: close"), "{answer}");
        assert_eq!(drain.finish(Duration::from_secs(5)).await, 0);
        assert_eq!(drain.open(), 0);
    }

    #[tokio::test]
    async fn an_idle_connection_ends_and_an_endless_request_is_cut() {
        let drain = Drain::new();
        let mut idle = client(&drain, FIRST_HEAD).await;
        let mut endless = client(&drain, FIRST_HEAD).await;
        endless
            .write_all(b"GET /never HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();

        assert_eq!(drain.finish(LINGER_AND_MORE).await, 1);

        assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0);
        assert_eq!(endless.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn a_head_that_is_too_large_is_refused() {
        let mut client = client(&Drain::new(), FIRST_HEAD).await;
        let request = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}", "y".repeat(MAX_HEAD));

        let answer = ask(&mut client, &request, "\r\n\r\n").await;

        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }

    #[tokio::test]
    async fn a_connection_that_sends_no_request_is_closed() {
        for text in ["", "PRI * HTTP/2.0", "GET / HTTP/1.1\r\nhost"] {
            let mut client = client(&Drain::new(), Duration::from_millis(20)).await;

            assert_eq!(ask(&mut client, text, "never said").await, "");
        }
    }

    #[tokio::test]
    async fn an_upgraded_connection_is_its_owners() {
        let drain = Drain::new();
        let mut client = client(&drain, FIRST_HEAD).await;
        drain.announce();

        let request = "GET /socket HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                       sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let answer = ask(&mut client, request, "\r\n\r\n").await;

        assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        assert!(answer.contains("connection: upgrade"), "{answer}");
        assert_eq!(drain.finish(Duration::from_secs(5)).await, 0);
    }

    const LINGER_AND_MORE: Duration = Duration::from_millis(700);
}
