//! Connections that rest: what thousands of them cost, plain and by TLS.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;
use testkit::{Authority, Cluster, Replica, eventually};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

const GATEWAY: u16 = 30000;
const SECURE: u16 = 30443;
/// How many connections rest at once, where the system lets one process have as many.
const CONNECTIONS: usize = 10_000;
/// The same by TLS, whose handshakes take a debug build long.
const SECURE_CONNECTIONS: usize = 1000;
/// What one of them may cost: 200 MB for 10,000.
const EACH: usize = 20 * 1000;
/// HTTP/2 keeps its buffers and its table of header fields while it rests.
const EACH_BY_HTTP_2: usize = 60 * 1000;
/// By TLS each has keys and buffers besides.
const MORE_BY_TLS: usize = 15 * 1000;

const HTTP_1: &[u8] = b"GET /health/liveness HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// Whatever bytes go through.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Http1,
    Http2,
}

/// A connection that asked once, got its answer, and rests.
type Resting = AbortOnDropHandle<()>;

struct Clients {
    address: SocketAddr,
    tls: Option<TlsConnector>,
    protocol: Protocol,
}

impl Clients {
    async fn rest(&self) -> anyhow::Result<Resting> {
        let began = Instant::now();
        let rested = self.ask_and_rest().await;
        rested
            .with_context(|| format!("a connection that was to rest, after {:?}", began.elapsed()))
    }

    async fn ask_and_rest(&self) -> anyhow::Result<Resting> {
        let stream = TcpStream::connect(self.address).await?;
        let mut wire: Box<dyn Wire> = match &self.tls {
            None => Box::new(stream),
            Some(tls) => {
                let shaken = tls.connect("localhost".try_into()?, stream).await;
                Box::new(shaken.context("the handshake")?)
            }
        };
        match self.protocol {
            Protocol::Http1 => {
                wire.write_all(HTTP_1).await?;
                // By TLS a write may leave bytes behind when the task has used up its turn.
                wire.flush().await?;
                let mut answer = Vec::new();
                // The body is JSON: the brace that closes it ends the answer.
                while !answer.ends_with(b"}") {
                    let read = wire.read_buf(&mut answer).await;
                    let read = read.with_context(|| format!("after {} bytes", answer.len()))?;
                    ensure!(read > 0, "closed after {} bytes", answer.len());
                }
                ensure!(answer.starts_with(b"HTTP/1.1 200"), "no 200");
            }
            Protocol::Http2 => {
                wire.write_all(&http_2()).await?;
                wire.flush().await?;
                while !frame(&mut wire).await?.ends_the_answer() {}
            }
        }
        let keeper = TaskTracker::new().spawn(keep(wire, self.protocol));
        Ok(AbortOnDropHandle::new(keeper))
    }
}

/// Keeps a connection as its protocol wants it.
async fn keep(mut wire: Box<dyn Wire>, protocol: Protocol) {
    match protocol {
        Protocol::Http1 => {
            let _ = wire.read(&mut [0; 1]).await;
        }
        Protocol::Http2 => while frame(&mut wire).await.is_ok() {},
    }
}

/// A frame of HTTP/2 (RFC 9113, 4.1), as far as it matters here.
struct Frame {
    kind: u8,
    flags: u8,
}

impl Frame {
    fn ends_the_answer(&self) -> bool {
        (self.kind == 0 || self.kind == 1) && self.flags & 1 == 1
    }
}

/// Reads a frame, and answers it where it is a ping.
async fn frame(wire: &mut Box<dyn Wire>) -> anyhow::Result<Frame> {
    let mut head = [0; 9];
    wire.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let mut content = vec![0; length];
    wire.read_exact(&mut content).await?;
    let (kind, flags) = (head[3], head[4]);
    if kind == 6 && flags & 1 == 0 {
        let pong = [&[0, 0, 8, 6, 1, 0, 0, 0, 0][..], &content].concat();
        wire.write_all(&pong).await?;
        wire.flush().await?;
    }
    Ok(Frame { kind, flags })
}

/// The preface of a client, its settings, and one request.
fn http_2() -> Vec<u8> {
    let literal = |name: u8, value: &str| {
        let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
        [&[name, length][..], value.as_bytes()].concat()
    };
    // GET by http, with path and authority without an entry in the table (RFC 7541, 6.2.2).
    let fields = [
        vec![0x82, 0x86],
        literal(0x04, "/health/liveness"),
        literal(0x01, "localhost"),
    ];
    let fields = fields.concat();
    let length = u8::try_from(fields.len()).unwrap_or(u8::MAX);
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        vec![0, 0, 0, 4, 0, 0, 0, 0, 0],
        vec![0, 0, length, 1, 5, 0, 0, 0, 1],
        fields,
    ]
    .concat()
}

/// Bytes of a replica that are in memory.
fn resident(replica: &Replica) -> anyhow::Result<usize> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", replica.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kilobytes: usize = kilobytes.context("no VmRSS")?.trim().parse()?;
    Ok(kilobytes * 1024)
}

/// How many connections this process may open.
fn allowed(wanted: usize) -> anyhow::Result<usize> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let left = usize::try_from(hard)?.saturating_sub(500);
    Ok(wanted.min(left))
}

/// Opens connections, and waits until each costs the replica less than it may.
async fn expect_cost(
    replica: &Replica,
    clients: &Clients,
    wanted: usize,
    each: usize,
) -> anyhow::Result<()> {
    // What the first ones cost stays.
    let first = stream::iter(0..200).map(|_| clients.rest());
    // Few at once by TLS: a debug build takes long for its steps, and a handshake has its time.
    let at_once = if clients.tls.is_some() { 8 } else { 50 };
    drop(
        first
            .buffer_unordered(at_once)
            .try_collect::<Vec<_>>()
            .await?,
    );
    let count = allowed(wanted)?;
    let before = resident(replica)?;

    let all = stream::iter(0..count).map(|_| clients.rest());
    let all: Vec<Resting> = all.buffer_unordered(at_once).try_collect().await?;

    let what = format!("the cost of {count} by {:?}", clients.protocol);
    eventually(Duration::from_secs(30), &what, async || {
        let cost = resident(replica)?.saturating_sub(before) / all.len();
        ensure!(cost < each, "{cost} bytes each, and not {each}");
        Ok(())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_resting_connections_cost_what_is_promised() -> anyhow::Result<()> {
    for (protocol, each) in [(Protocol::Http1, EACH), (Protocol::Http2, EACH_BY_HTTP_2)] {
        let cluster = Cluster::start(1).await?;
        let clients = Clients {
            address: (cluster.address(), GATEWAY).into(),
            tls: None,
            protocol,
        };

        expect_cost(cluster.replica(0), &clients, CONNECTIONS, each).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_rest_by_tls_cost_little_more() -> anyhow::Result<()> {
    let (authority, folder) = (Authority::new()?, TempDir::new()?);
    let (certificate, key) = authority.issue(&["localhost"])?.write(folder.path())?;
    for (protocol, name, each) in [
        (Protocol::Http1, "http/1.1", EACH),
        (Protocol::Http2, "h2", EACH_BY_HTTP_2),
    ] {
        let cluster = Cluster::builder(1)
            .env("GATEWAY_TLS_CERT", certificate.display())
            .env("GATEWAY_TLS_KEY", key.display())
            .start()
            .await?;
        let clients = Clients {
            address: (cluster.address(), SECURE).into(),
            tls: Some(TlsConnector::from(authority.client(&[name])?)),
            protocol,
        };

        let each = each + MORE_BY_TLS;
        expect_cost(cluster.replica(0), &clients, SECURE_CONNECTIONS, each).await?;
    }
    Ok(())
}
