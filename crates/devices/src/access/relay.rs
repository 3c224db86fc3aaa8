//! Carries bytes between a WebSocket and a port of a device. Each direction holds one piece at a time, so that a side
//! that does not read stops the other one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::metrics::Counter;
use axum::extract::ws::{CloseFrame, Message, WebSocket};
use bytes::Bytes;
use coordination::PortKind;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, interval_at, timeout};

use super::Ending;
use crate::metrics;

/// The largest frame that a client may send.
pub const MAX_FRAME: usize = 256 * 1024;
/// How much of what a device says goes into a frame.
const PIECE: usize = 32 * 1024;
const PING_EVERY: Duration = Duration::from_secs(25);
/// How long a client may be silent, pings being answered, before it is taken for gone.
const SILENCE: Duration = Duration::from_secs(60);
/// How long one side may take nothing of what is sent to it.
const STALL: Duration = Duration::from_secs(60);
/// How long a client that we leave may take to read the reason.
const FAREWELL: Duration = Duration::from_secs(2);

/// What went through, and when.
pub struct Pace {
    began: Instant,
    /// Bytes from the client to the device.
    pub up: AtomicU64,
    /// Bytes from the device to the client.
    pub down: AtomicU64,
    /// Milliseconds from the beginning to the last bytes, and to the last sign of the client.
    moved: AtomicU64,
    heard: AtomicU64,
    counted_up: Counter,
    counted_down: Counter,
}

impl Pace {
    /// Nothing went through yet.
    pub fn begin(kind: PortKind) -> Self {
        Self {
            began: Instant::now(),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            counted_up: metrics::tunnel_bytes(kind, "up"),
            counted_down: metrics::tunnel_bytes(kind, "down"),
        }
    }

    /// How long it has lasted.
    pub fn lasted(&self) -> Duration {
        self.began.elapsed()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn moved(&self, way: &AtomicU64, counted: &Counter, bytes: usize) {
        way.fetch_add(bytes as u64, Ordering::Relaxed);
        counted.increment(bytes as u64);
        self.moved.store(self.now(), Ordering::Relaxed);
    }

    fn heard(&self) {
        self.heard.store(self.now(), Ordering::Relaxed);
    }

    fn since(&self, moment: &AtomicU64) -> Duration {
        Duration::from_millis(self.now().saturating_sub(moment.load(Ordering::Relaxed)))
    }
}

/// Carries bytes both ways until one side ends, nothing moves for too long, or `stop` comes; then tells the client why.
pub async fn carry(
    socket: WebSocket,
    device: TcpStream,
    pace: &Pace,
    idle: Duration,
    stop: impl Future<Output = Ending>,
    words: impl FnOnce(Ending) -> String,
) -> Ending {
    let (mut to_client, mut from_client) = socket.split();
    let (mut from_device, mut to_device) = device.into_split();
    let ending = tokio::select! {
        biased;
        ending = stop => ending,
        ending = down(&mut from_device, &mut to_client, pace, idle) => ending,
        ending = up(&mut from_client, &mut to_device, pace) => ending,
    };
    // Whatever the client still says is not for the device.
    drop((from_device, to_device));
    let close = CloseFrame {
        code: ending.close_code(),
        reason: words(ending).into(),
    };
    let farewell = async {
        // Refused where the client said goodbye first.
        let _ = to_client.send(Message::Close(Some(close))).await;
        // The client answers with its own close, so that what was sent is not lost to a reset; or the answer to its close is
        // sent by this.
        while let Some(Ok(_)) = from_client.next().await {}
    };
    let _ = timeout(FAREWELL, farewell).await;
    ending
}

async fn up(from: &mut SplitStream<WebSocket>, to: &mut OwnedWriteHalf, pace: &Pace) -> Ending {
    while let Some(Ok(message)) = from.next().await {
        pace.heard();
        match message {
            Message::Binary(bytes) => match timeout(STALL, to.write_all(&bytes)).await {
                Ok(Ok(())) => pace.moved(&pace.up, &pace.counted_up, bytes.len()),
                // What it said before is still to be read; the other direction tells of the end.
                Ok(Err(_)) => return std::future::pending().await,
                Err(_) => return Ending::Stalled,
            },
            Message::Text(_) => return Ending::NotBinary,
            Message::Close(_) => return Ending::ClientLeft,
            Message::Ping(_) | Message::Pong(_) => {}
        }
    }
    Ending::ClientLeft
}

async fn down(
    from: &mut OwnedReadHalf,
    to: &mut SplitSink<WebSocket, Message>,
    pace: &Pace,
    idle: Duration,
) -> Ending {
    let every = PING_EVERY.min(idle / 4);
    let mut ping = interval_at(Instant::now() + every, every);
    let mut piece = vec![0; PIECE];
    loop {
        let (message, bytes) = tokio::select! {
            read = from.read(&mut piece) => match read {
                Ok(0) | Err(_) => return Ending::DeviceClosed,
                Ok(read) => (Message::Binary(Bytes::copy_from_slice(&piece[..read])), read),
            },
            _ = ping.tick() => {
                if pace.since(&pace.heard) > SILENCE {
                    return Ending::ClientLeft;
                }
                if pace.since(&pace.moved) > idle {
                    return Ending::Idle;
                }
                (Message::Ping(Bytes::new()), 0)
            }
        };
        match timeout(STALL, to.send(message)).await {
            Ok(Ok(())) if bytes > 0 => pace.moved(&pace.down, &pace.counted_down, bytes),
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Ending::ClientLeft,
            Err(_) => return Ending::Stalled,
        }
    }
}
