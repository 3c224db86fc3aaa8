//! A server on a port, plain or by TLS, and clients of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::get;
use platform::Clock;
use platform::serve::tls::{Certificates, PairFiles, Secure, Tls};
use platform::serve::{Drain, Server};
use rustls::ClientConfig;
use tempfile::TempDir;
use testkit::{Authority, Issued};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// A server on a port, which ends with this value.
pub struct Host {
    pub address: SocketAddr,
    pub drain: Drain,
    _accepting: AbortOnDropHandle<()>,
}

impl Host {
    pub async fn plain(router: Router) -> Self {
        Self::begin(router, Duration::from_secs(600), None).await
    }

    pub async fn by_tls(tls: Tls) -> Self {
        Self::begin(router(), Duration::from_secs(600), Some(tls)).await
    }

    /// One that gives clients up which read nothing for so long.
    pub async fn begin(router: Router, stall: Duration, tls: Option<Tls>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let drain = Drain::new();
        let server = Server::new("tests", router, &drain).give_up_after(stall);
        let accepting = TaskTracker::new().spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                server.serve(tls.as_ref(), stream, peer);
            }
        });
        Self {
            address,
            drain,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// A connection by TLS.
    pub async fn shake(&self, client: Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
        let name = "localhost".try_into().unwrap();
        TlsConnector::from(client)
            .connect(name, self.connect().await)
            .await
    }
}

/// Tells by which protocol it was asked, and whether by TLS; and takes bodies.
pub fn router() -> Router {
    let about = async |request: Request<Body>| {
        let secure = request.extensions().get::<Secure>().is_some();
        format!("{:?} secure={secure}.", request.version())
    };
    Router::new().route(
        "/",
        get(about).post(async |body: String| format!("{body}.")),
    )
}

/// Asks by HTTP/1.1 and reads until the dot that ends each answer of [`router`].
pub async fn ask(io: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> String {
    io.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b".") {
        if io.read_buf(&mut answer).await.unwrap() == 0 {
            break;
        }
    }
    String::from_utf8(answer).unwrap()
}

pub const GET: &str = "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// The two files of a certificate, as an operator has them.
pub struct Files {
    pub authority: Authority,
    pub folder: TempDir,
    pub files: PairFiles,
}

impl Files {
    pub fn new() -> Self {
        let (authority, folder) = (Authority::new().unwrap(), TempDir::new().unwrap());
        let issued = authority.issue(&["localhost"]).unwrap();
        let (certificate, key) = issued.write(folder.path()).unwrap();
        Self {
            authority,
            folder,
            files: PairFiles { certificate, key },
        }
    }

    pub fn open(&self) -> Arc<Certificates> {
        Certificates::open(self.files.clone(), Clock::system()).unwrap()
    }

    pub fn issue(&self) -> Issued {
        self.authority.issue(&["localhost"]).unwrap()
    }

    pub fn client(&self, protocols: &[&str]) -> Arc<ClientConfig> {
        self.authority.client(protocols).unwrap()
    }
}
