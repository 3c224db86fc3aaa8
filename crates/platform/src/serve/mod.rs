//! Serves HTTP/1 and HTTP/2 on accepted connections, plain (HTTP/2 by prior knowledge) or by TLS (by ALPN), and ends them
//! without losing a request.

mod connection;
mod drain;
mod files;
mod gauged;
mod stall;
mod streams;
pub mod tls;
mod wire;

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioTimer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

pub use drain::Drain;
pub use files::raise_open_files;

use connection::{Open, Way};
use gauged::Gauged;
use stall::Stall;
use streams::{Activity, Streams};
use tls::Tls;
use wire::Wire;

/// How long a fresh connection may take until its first request's head is there.
const FIRST_HEAD: Duration = Duration::from_secs(10);

/// How long a connection may idle until its next request's head is there. It is longer than what load balancers and
/// client pools keep (60 s), so that the client is the one who closes and no request meets a closing connection.
const NEXT_HEAD: Duration = Duration::from_secs(75);

/// How long a handshake may still take when the server leaves.
const LAST_HANDSHAKE: Duration = Duration::from_secs(2);

/// How long a client may read nothing of what it asked for. A gateway that passes an answer on to a slow client reads it
/// in large steps with long pauses, so this is longer than what the gateway itself grants.
const STALL: Duration = Duration::from_secs(600);

/// The largest request head.
const MAX_HEAD: usize = 32 * 1024;

/// Concurrent streams of one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;

/// What the kernel holds of an answer beyond what is on its way: less to lose in a client that does not read, and each
/// step in which a slow one reads is seen.
const UNSENT: u32 = 128 * 1024;

/// Serves connections of one service until its [`Drain`] ends them.
#[derive(Clone)]
pub struct Server<S> {
    name: &'static str,
    service: S,
    drain: Drain,
    first_head: Duration,
    next_head: Duration,
    stall: Duration,
    http1: Arc<http1::Builder>,
    http2: Arc<http2::Builder<Streams>>,
}

impl<S, B> Server<S>
where
    S: tower::Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + Sync + Unpin + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// Makes a server of a router or any other tower service; `name` labels its metrics.
    pub fn new(name: &'static str, service: S, drain: &Drain) -> Self {
        Self {
            name,
            service,
            drain: drain.clone(),
            first_head: FIRST_HEAD,
            next_head: NEXT_HEAD,
            stall: STALL,
            http1: Arc::new(http1(NEXT_HEAD)),
            http2: Arc::new(http2(STALL)),
        }
    }

    /// Gives a client up that reads nothing for so long: an HTTP/2 stream, or an HTTP/1 connection.
    pub fn give_up_after(mut self, stall: Duration) -> Self {
        self.stall = stall;
        self.http2 = Arc::new(http2(stall));
        self
    }

    /// Serves a connection, by TLS where it is given, in a task of its own.
    pub fn serve(&self, tls: Option<&Tls>, stream: TcpStream, peer: SocketAddr) {
        let connections = self.drain.connections().clone();
        connections.spawn(self.clone().begin(tls.cloned(), stream, peer));
    }

    /// The server as the function that [`crate::listen::Listeners::serve`] takes.
    pub fn handler(self) -> impl Fn(TcpStream, SocketAddr) + Send + Sync + 'static {
        move |stream, peer| self.serve(None, stream, peer)
    }

    /// The same, by TLS where it is given, with each connection served on the runtime that is picked for it.
    pub fn handler_on(
        self,
        tls: Option<Tls>,
        pick: impl Fn() -> Handle + Send + Sync + 'static,
    ) -> impl Fn(TcpStream, SocketAddr) + Send + Sync + 'static {
        move |stream, peer| {
            let (server, tls, runtime) = (self.clone(), tls.clone(), pick());
            // A socket belongs to the runtime that it was made on until it is taken out.
            let stream = stream.into_std();
            let connections = self.drain.connections();
            connections.spawn_on(
                async move {
                    match stream.and_then(TcpStream::from_std) {
                        Ok(stream) => server.begin(tls, stream, peer).await,
                        Err(error) => debug!(%peer, %error, "a connection could not be served"),
                    }
                },
                &runtime,
            );
        }
    }

    async fn begin(self, tls: Option<Tls>, stream: TcpStream, peer: SocketAddr) {
        let _counted = Gauged::new("http_connections", self.name);
        // Without it the kernel holds more, and that is all.
        let _ = unsent(&stream);
        let io = Stall::new(stream, self.stall);
        let closing = self.drain.closing();
        let Some(tls) = tls else {
            let activity = Activity::begun();
            let mut wire = Wire::new(io, activity.clone());
            let begun = tokio::select! {
                // What the client already sent is read before a close is noticed.
                biased;
                begun = timeout(self.first_head, wire.begins_as_http2()) => begun,
                () = closing.cancelled() => return,
            };
            return match begun {
                Ok(Ok(http2)) => self.talk(wire, peer, Way::Plain, activity, http2).await,
                Ok(Err(error)) => debug!(%peer, %error, "connection ended early"),
                Err(_) => debug!(%peer, "closed a connection that sent nothing in time"),
            };
        };
        let given_up = async {
            closing.cancelled().await;
            sleep(LAST_HANDSHAKE).await;
        };
        let shaken = tokio::select! {
            biased;
            shaken = tls.shake(peer.ip(), io) => shaken,
            () = given_up => return,
        };
        match shaken {
            Ok(io) => {
                let http2 = io.get_ref().1.alpn_protocol() == Some(b"h2");
                let shaken = Instant::now();
                let activity = Activity::begun();
                let wire = Wire::new(io, activity.clone());
                self.talk(wire, peer, Way::Tls { shaken }, activity, http2)
                    .await;
            }
            Err(error) => debug!(%peer, error = &error as &dyn Error, "no TLS connection"),
        }
    }

    async fn talk<I>(
        self,
        wire: Wire<I>,
        peer: SocketAddr,
        way: Way,
        activity: Arc<Activity>,
        http2: bool,
    ) where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let open = Open {
            server: self,
            peer,
            way,
            activity,
        };
        match http2 {
            true => Box::pin(open.http2(wire)).await,
            false => open.http1(wire).await,
        }
    }
}

fn http1(next_head: Duration) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(next_head)
        .max_buf_size(MAX_HEAD);
    builder
}

fn http2(stall: Duration) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(Streams::new(stall));
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEAD as u32)
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

#[cfg(target_os = "linux")]
fn unsent(stream: &TcpStream) -> std::io::Result<()> {
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT)
}

#[cfg(not(target_os = "linux"))]
fn unsent(_: &TcpStream) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::extract::{ConnectInfo, WebSocketUpgrade};
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
        server.serve(None, stream, peer);
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
