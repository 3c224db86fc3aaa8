//! Clients that deliver signed notices, each over one connection and one after another.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::future::try_join_all;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use sha2::Sha256;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::SECRET;
use super::orders::Batch;

/// The longest that a notice may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the clients of a turn saw.
pub struct Turn {
    took: Duration,
    latencies: Vec<Duration>,
}

impl Turn {
    /// Notices a second.
    pub fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    /// In milliseconds.
    pub fn quantile_ms(&self, at: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let found = self.latencies.get((last as f64 * at).round() as usize);
        found.map_or(0.0, |found| found.as_secs_f64() * 1000.0)
    }
}

/// Delivers the notices of a turn, all clients at once; `again` says that they were taken before.
pub async fn deliver(addresses: &[SocketAddr], batch: &Batch, again: bool) -> anyhow::Result<Turn> {
    // Signed before the clock runs.
    let clients = (0..batch.clients).map(|client| {
        let notices = (1..=batch.each).map(|order| Notice::of(&batch.order_id(client, order)));
        let notices: Vec<_> = notices.collect::<anyhow::Result<_>>()?;
        anyhow::Ok((addresses[client % addresses.len()], notices))
    });
    let clients: Vec<_> = clients.collect::<anyhow::Result<_>>()?;
    let connections = clients.into_iter().map(async |(address, notices)| {
        let connection = connect(address).await?;
        anyhow::Ok((connection, notices))
    });
    let connections = try_join_all(connections).await?;
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for (connection, notices) in connections {
        clients.spawn(one_after_another(connection, notices, again));
    }
    let mut latencies = Vec::with_capacity(batch.count());
    while let Some(delivered) = clients.join_next().await {
        latencies.extend(delivered??);
    }
    let took = started.elapsed();
    latencies.sort_unstable();
    Ok(Turn { took, latencies })
}

async fn one_after_another(
    mut connection: Connection,
    notices: Vec<Notice>,
    again: bool,
) -> anyhow::Result<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(notices.len());
    for notice in notices {
        let started = Instant::now();
        let (status, body) = notice.send(&mut connection).await?;
        latencies.push(started.elapsed());
        let expected: &[u8] = if again {
            b"\"duplicate\":true"
        } else {
            b"\"duplicate\":false"
        };
        let told = body.windows(expected.len()).any(|part| part == expected);
        ensure!(
            status == StatusCode::OK && told,
            "{status}: {}",
            String::from_utf8_lossy(&body)
        );
    }
    Ok(latencies)
}

async fn connect(address: SocketAddr) -> anyhow::Result<Connection> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(async move { _ = connection.await });
    Ok(Connection {
        sender,
        _driver: driver,
    })
}

/// Ends when it is dropped.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    _driver: JoinSet<()>,
}

struct Notice {
    request: Request<Full<Bytes>>,
}

impl Notice {
    fn of(order: &str) -> anyhow::Result<Self> {
        let body = json!({
            "orderId": order, "status": "paid", "amount": 99, "currency": "CNY", "provider": "alipay",
            "transactionId": format!("t-{order}"),
        });
        let body = body.to_string();
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let mut mac = Hmac::<Sha256>::new_from_slice(SECRET)?;
        mac.update(format!("e-{order}.{seconds}.{body}").as_bytes());
        let signature = STANDARD.encode(mac.finalize().into_bytes());
        let request = Request::post("/webhooks/payment")
            .header("host", "127.0.0.1")
            .header("content-type", "application/json")
            .header("webhook-id", format!("e-{order}"))
            .header("webhook-timestamp", seconds.to_string())
            .header("webhook-signature", format!("v1,{signature}"))
            .body(Full::new(Bytes::from(body)))?;
        Ok(Self { request })
    }

    async fn send(self, connection: &mut Connection) -> anyhow::Result<(StatusCode, Bytes)> {
        let answered = async {
            connection.sender.ready().await?;
            let reply = connection.sender.send_request(self.request).await?;
            let status = reply.status();
            let body = reply.into_body().collect().await?.to_bytes();
            anyhow::Ok((status, body))
        };
        let answered = timeout(PATIENCE, answered).await;
        answered.context("a notice was not answered in time")?
    }
}
