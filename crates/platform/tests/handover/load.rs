//! Clients that ask all the time: some connect for each request, some keep their connection, some speak HTTP/2.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Clients of each kind for each address.
const CLIENTS: usize = 6;

/// How long an answer may take before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// Clients at work.
pub struct Load {
    clients: JoinSet<Result<usize, String>>,
    stop: CancellationToken,
    served: Arc<AtomicUsize>,
}

/// What the clients saw.
#[derive(Debug)]
pub struct Seen {
    pub served: usize,
    pub reconnects: usize,
    pub failures: Vec<String>,
}

impl Load {
    /// Puts clients to work.
    pub fn begin(addresses: &[SocketAddr]) -> Self {
        let mut load = Self {
            clients: JoinSet::new(),
            stop: CancellationToken::new(),
            served: Arc::default(),
        };
        for address in addresses {
            for _ in 0..CLIENTS {
                load.clients.spawn(connect_each_time(
                    *address,
                    load.stop.clone(),
                    load.served.clone(),
                ));
                load.clients
                    .spawn(keep_alive(*address, load.stop.clone(), load.served.clone()));
            }
            load.clients
                .spawn(multiplex(*address, load.stop.clone(), load.served.clone()));
        }
        load
    }

    /// Waits until a good number of further requests has been served, or a client has failed.
    pub async fn serves(&self) {
        let target = self.served.load(Ordering::Relaxed) + 300;
        let reached = async {
            while self.served.load(Ordering::Relaxed) < target && !self.stop.is_cancelled() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(60), reached)
            .await
            .expect("requests are served");
    }

    /// Sends the clients home.
    pub async fn end(mut self) -> Seen {
        self.stop.cancel();
        let mut seen = Seen {
            served: 0,
            reconnects: 0,
            failures: Vec::new(),
        };
        while let Some(client) = self.clients.join_next().await {
            match client.unwrap() {
                Ok(reconnects) => seen.reconnects += reconnects,
                Err(failure) => seen.failures.push(failure),
            }
        }
        seen.served = self.served.load(Ordering::Relaxed);
        seen
    }
}

async fn connect_each_time(
    to: SocketAddr,
    stop: CancellationToken,
    served: Arc<AtomicUsize>,
) -> Result<usize, String> {
    while !stop.is_cancelled() {
        let answer = async {
            let mut stream = BufReader::new(TcpStream::connect(to).await?);
            ask(
                &mut stream,
                "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            )
            .await
        };
        patiently(answer)
            .await
            .map_err(|error| format!("fresh connection: {error}"))?;
        served.fetch_add(1, Ordering::Relaxed);
    }
    Ok(0)
}

async fn keep_alive(
    to: SocketAddr,
    stop: CancellationToken,
    served: Arc<AtomicUsize>,
) -> Result<usize, String> {
    let mut reconnects = 0;
    while !stop.is_cancelled() {
        let stream = patiently(TcpStream::connect(to))
            .await
            .map_err(|error| format!("connect: {error}"))?;
        let mut stream = BufReader::new(stream);
        let mut asked = 0;
        loop {
            let request = "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello";
            let answer = patiently(ask(&mut stream, request)).await;
            let answer =
                answer.map_err(|error| format!("request {asked} of a kept connection: {error}"))?;
            if answer.body != "hello" {
                return Err(format!("wrong echo {}", answer.body));
            }
            served.fetch_add(1, Ordering::Relaxed);
            asked += 1;
            if stop.is_cancelled() || answer.closes {
                break;
            }
            let idle = Duration::from_millis(rand::random_range(0..100));
            tokio::time::sleep(idle).await;
        }
        reconnects += 1;
    }
    Ok(reconnects.max(1) - 1)
}

async fn multiplex(
    to: SocketAddr,
    stop: CancellationToken,
    served: Arc<AtomicUsize>,
) -> Result<usize, String> {
    let failed = |error: &dyn std::fmt::Display| format!("http/2: {error}");
    let mut reconnects = 0;
    while !stop.is_cancelled() {
        let stream = patiently(TcpStream::connect(to))
            .await
            .map_err(|error| failed(&error))?;
        let handshake =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(|error| failed(&error))?;
        let mut connections = JoinSet::new();
        connections.spawn(connection);
        while sender.ready().await.is_ok() && !stop.is_cancelled() {
            let request = http::Request::get("http://x/")
                .body(Full::<Bytes>::default())
                .unwrap();
            let answer = sender.try_send_request(request);
            match timeout(PATIENCE, answer)
                .await
                .map_err(|error| failed(&error))?
            {
                Ok(answer) => {
                    answer
                        .into_body()
                        .collect()
                        .await
                        .map_err(|error| failed(&error))?;
                    served.fetch_add(1, Ordering::Relaxed);
                }
                // It was never sent, for the server had said that it leaves.
                // The server had said that it leaves, so the request was not sent, or not looked at.
                Err(error) if error.message().is_some() || goes_away(error.error()) => break,
                Err(error) => return Err(format!("http/2: {:?}", error.error())),
            }
        }
        reconnects += 1;
    }
    Ok(reconnects.max(1) - 1)
}

/// Whether a request met `GOAWAY` without an error, which promises that it was not processed.
fn goes_away(error: &hyper::Error) -> bool {
    format!("{error:?}").contains(r#"GoAway(b"", NO_ERROR, Remote)"#)
}

/// A request whose answer is still to come.
pub struct Pending(BufReader<TcpStream>);

/// Sends a request.
pub async fn get(to: SocketAddr, path: &str) -> Pending {
    let mut stream = BufReader::new(TcpStream::connect(to).await.unwrap());
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    Pending(stream)
}

impl Pending {
    /// Waits for the body.
    pub async fn finish(mut self) -> io::Result<String> {
        Ok(patiently(read(&mut self.0)).await?.body)
    }
}

/// Which process served how many of a number of fresh connections.
pub async fn spread(to: SocketAddr, connections: usize) -> BTreeMap<u32, usize> {
    let mut served = BTreeMap::new();
    for _ in 0..connections {
        let pid = get(to, "/").await.finish().await.unwrap().parse().unwrap();
        *served.entry(pid).or_default() += 1;
    }
    served
}

struct Answer {
    body: String,
    closes: bool,
}

async fn ask(stream: &mut BufReader<TcpStream>, request: &str) -> io::Result<Answer> {
    stream.write_all(request.as_bytes()).await?;
    read(stream).await
}

async fn read(stream: &mut BufReader<TcpStream>) -> io::Result<Answer> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line == "\r\n" {
            break;
        }
        head.push(line.trim_end().to_ascii_lowercase());
    }
    if head[0] != "http/1.1 200 ok" {
        return Err(io::Error::other(head[0].clone()));
    }
    let field = |name: &str| head.iter().find_map(|line| line.strip_prefix(name));
    let length = field("content-length: ")
        .and_then(|length| length.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let closes = field("connection: ") == Some("close");
    Ok(Answer {
        body: String::from_utf8(body).map_err(io::Error::other)?,
        closes,
    })
}

async fn patiently<T>(doing: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, doing)
        .await
        .unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}
