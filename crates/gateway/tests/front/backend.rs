//! Instances to put behind the front door.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::response::IntoResponse;
use gateway::front::{Locality, Upstream};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// A running instance, which ends with this value.
pub struct Backend {
    pub name: String,
    pub address: SocketAddr,
    pub hits: Arc<AtomicUsize>,
    stop: CancellationToken,
    tasks: TaskTracker,
    _accepting: AbortOnDropHandle<()>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Backend {
    /// An instance that tells what it got.
    pub async fn echo(name: &str) -> Self {
        Self::serve(name, echo(name)).await
    }

    /// An instance that serves a router.
    pub async fn serve(name: &str, router: Router) -> Self {
        Self::serve_at(name, "127.0.0.1:0".parse().unwrap(), router).await
    }

    /// The same at a given address.
    pub async fn serve_at(name: &str, address: SocketAddr, router: Router) -> Self {
        let hits = Arc::new(AtomicUsize::new(0));
        let counted = hits.clone();
        let count =
            axum::middleware::from_fn(move |request: Request, next: axum::middleware::Next| {
                counted.fetch_add(1, Ordering::SeqCst);
                next.run(request)
            });
        let router = router.layer(count);
        Self::listen(name, address, hits, move |stream, _| {
            let router = router.clone();
            async move {
                let service = hyper_util::service::TowerToHyperService::new(router);
                let io = hyper_util::rt::TokioIo::new(stream);
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(io, service);
                connection.with_upgrades().await.ok();
            }
        })
        .await
    }

    /// An instance that reads the head and body of each request, and then does what it is told with the socket.
    pub async fn raw<F, A>(name: &str, answer: A) -> Self
    where
        F: Future<Output = ()> + Send,
        A: Fn(TcpStream) -> F + Clone + Send + Sync + 'static,
    {
        let hits = Arc::new(AtomicUsize::new(0));
        Self::listen(
            name,
            "127.0.0.1:0".parse().unwrap(),
            hits,
            move |mut stream, hits| {
                let answer = answer.clone();
                async move {
                    if read_request(&mut stream).await {
                        hits.fetch_add(1, Ordering::SeqCst);
                        answer(stream).await;
                    }
                }
            },
        )
        .await
    }

    /// An instance that closes the connection after it has read a request.
    pub async fn breaking(name: &str) -> Self {
        Self::raw(name, |stream| async move { drop(stream) }).await
    }

    /// An instance that never answers.
    pub async fn hanging(name: &str) -> Self {
        Self::raw(name, |stream| async move {
            let _open = stream;
            std::future::pending::<()>().await;
        })
        .await
    }

    /// An instance that answers with these bytes and closes.
    pub async fn saying(name: &str, bytes: &'static [u8]) -> Self {
        Self::raw(name, move |mut stream| async move {
            stream.write_all(bytes).await.ok();
        })
        .await
    }

    async fn listen<F, A>(name: &str, address: SocketAddr, hits: Arc<AtomicUsize>, serve: A) -> Self
    where
        F: Future<Output = ()> + Send,
        A: Fn(TcpStream, Arc<AtomicUsize>) -> F + Clone + Send + Sync + 'static,
    {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener: TcpListener = socket.listen(1024).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (stopped, connections, counted) = (stop.clone(), tasks.clone(), hits.clone());
        let accepting = tasks.spawn(async move {
            let accept = async {
                while let Ok((stream, _)) = listener.accept().await {
                    let serve = serve.clone();
                    let (stopped, counted) = (stopped.clone(), counted.clone());
                    connections.spawn(async move {
                        stopped.run_until_cancelled(serve(stream, counted)).await;
                    });
                }
            };
            stopped.run_until_cancelled(accept).await;
        });
        Self {
            name: name.to_owned(),
            address,
            hits,
            stop,
            tasks,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    /// What the registry says of it.
    pub fn upstream(&self) -> Upstream {
        Upstream {
            id: self.name.clone(),
            name: self.name.clone(),
            address: self.address.to_string(),
            locality: somewhere(),
            draining: false,
        }
    }

    /// Requests it got.
    pub fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }

    /// Ends it at once, as `kill -9` would.
    pub async fn kill(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// An address at which nothing listens.
pub async fn nobody(name: &str) -> Upstream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Upstream {
        id: name.to_owned(),
        name: name.to_owned(),
        address: listener.local_addr().unwrap().to_string(),
        locality: somewhere(),
        draining: false,
    }
}

/// A place that is near no gateway.
fn somewhere() -> Locality {
    Locality {
        host: "backend".to_owned(),
        zone: None,
    }
}

/// A router that tells what it got.
pub fn echo(name: &str) -> Router {
    Router::new().fallback(tell).with_state(name.to_owned())
}

async fn tell(State(name): State<String>, request: Request) -> impl IntoResponse {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let headers: serde_json::Map<String, Value> = parts
        .headers
        .iter()
        .map(|(name, value)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into(),
            )
        })
        .collect();
    let told = json!({
        "by": name, "method": parts.method.as_str(), "path": parts.uri.path(), "query": parts.uri.query(),
        "headers": headers, "body": String::from_utf8_lossy(&body),
    });
    (
        [
            ("content-type", "application/json"),
            ("keep-alive", "timeout=5"),
            ("x-served-by", "echo"),
        ],
        told.to_string(),
    )
}

/// Reads one request to the end of its body; `false` where none came.
async fn read_request(stream: &mut TcpStream) -> bool {
    let mut bytes = Vec::new();
    loop {
        if let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
            let length = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
            let rest = bytes.len() - head - 4;
            let chunked = text.contains("transfer-encoding") && !bytes.ends_with(b"0\r\n\r\n");
            if rest >= length.unwrap_or(0) && !chunked {
                return true;
            }
        }
        let mut piece = [0; 4096];
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => return false,
            Ok(read) => bytes.extend_from_slice(&piece[..read]),
        }
    }
}
