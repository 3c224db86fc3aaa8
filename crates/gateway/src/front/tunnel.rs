//! Sockets: once both sides have switched protocols, bytes go through until one side ends or the process leaves.

use std::io;
use std::sync::Mutex;
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use platform::lifecycle::return_after;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::front::connections::Held;
use crate::front::frames::Frames;
use crate::front::instance::OpenSocket;
use crate::front::{Inner, metrics};

/// What a socket may hold in each direction.
const BUFFER: usize = 4 * 1024;
/// How long the two sides may take to switch, and a closing one to take its leave.
const MOMENT: Duration = Duration::from_secs(5);
/// The statuses of a close frame: service restart, and going away.
const RESTARTING: u16 = 1012;
const GOING_AWAY: u16 = 1001;

struct Counted;

impl Counted {
    fn new() -> Self {
        metrics::open_upgrades(1.0);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::open_upgrades(-1.0);
    }
}

impl Inner {
    /// Joins a client's socket with an instance's.
    pub fn join(&self, client: OnUpgrade, upstream: OnUpgrade, held: Held) {
        let (idle, drain_within) = (self.config.socket_idle, self.config.drain_within);
        let leaving = self.leaving();
        let return_after = return_after(self.config.reconnect_spread);
        let counted = (Counted::new(), OpenSocket::new(held.instance().clone()));
        self.tunnels.spawn(async move {
            let _counted = counted;
            let both = async { tokio::try_join!(client, upstream) };
            let Ok(Ok((client, upstream))) = timeout(MOMENT, both).await else {
                return;
            };
            drop(held);
            run(client, upstream, idle, leaving, drain_within, return_after).await;
        });
    }

    /// Ends a moment after this process began to leave: the instance says goodbye in its own words first, where it
    /// leaves as well.
    pub fn leaving(&self) -> impl Future<Output = ()> + Send + use<> {
        let (drain, drain_within) = (self.drain.clone(), self.config.drain_within);
        async move {
            drain.cancelled().await;
            sleep(drain_within).await;
        }
    }
}

async fn run(
    client: Upgraded,
    upstream: Upgraded,
    idle: Duration,
    leaving: impl Future<Output = ()>,
    drain_within: Duration,
    return_after: Duration,
) {
    let (mut from_client, mut to_client) = split(TokioIo::new(client));
    let (mut from_upstream, mut to_upstream) = split(TokioIo::new(upstream));
    let moved = Mutex::new(Instant::now());
    let (mut up, mut down) = (Frames::default(), Frames::default());

    let both = async {
        tokio::try_join!(
            pump(&mut from_client, &mut to_upstream, &moved, &mut up),
            pump(&mut from_upstream, &mut to_client, &moved, &mut down),
        )
    };
    let goodbye = tokio::select! {
        _ = both => return,
        () = silence(&moved, idle) => close_frame(GOING_AWAY, "nothing was sent for too long"),
        () = leaving => restarting(return_after),
    };
    let taking_leave = async {
        if down.is_between() {
            to_client.write_all(&goodbye).await?;
        }
        to_client.shutdown().await?;
        to_upstream.shutdown().await?;
        // Closing with unread bytes would reset the connection, and the frame could be lost.
        let mut rest = [0; 512];
        while from_client.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    timeout(MOMENT.min(drain_within), taking_leave).await.ok();
}

/// A close frame that says when to come back.
fn restarting(return_after: Duration) -> Vec<u8> {
    let reason = format!(r#"{{"retryAfterMs":{}}}"#, return_after.as_millis());
    close_frame(RESTARTING, &reason)
}

/// An unmasked close frame. The reason has to be short: a control frame holds 125 bytes.
fn close_frame(status: u16, reason: &str) -> Vec<u8> {
    let mut frame = vec![0x88, (2 + reason.len()) as u8];
    frame.extend(status.to_be_bytes());
    frame.extend(reason.as_bytes());
    frame
}

/// Passes bytes on, and the end as an end: the other direction goes on.
async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    moved: &Mutex<Instant>,
    frames: &mut Frames,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        frames.pass(&buffer[..read]);
        if let Ok(mut moved) = moved.lock() {
            *moved = Instant::now();
        }
    }
}

/// Ends when nothing moved for a while.
async fn silence(moved: &Mutex<Instant>, idle: Duration) {
    loop {
        let until = moved.lock().map_or_else(|_| Instant::now(), |moved| *moved) + idle;
        if until <= Instant::now() {
            return;
        }
        sleep_until(until).await;
    }
}
