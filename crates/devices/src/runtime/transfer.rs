//! Bringing the image of a snapshot from one engine to another, through this replica and a few chunks at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use contracts::SnapshotId;
use futures::channel::mpsc;
use futures::{SinkExt, StreamExt, stream};
use tokio::time::{Instant, sleep, timeout};

use super::RuntimeError;
use super::engines::Engine;

/// Chunks on their way between two engines; an engine sends some ten kilobytes in one.
const ON_THE_WAY: usize = 8;
const TRIED: &str = "bring an image from one engine to another";

/// How long bringing an image may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// As a whole.
    pub within: Duration,
    /// Without a piece on its way from the first to the last, and without an answer of both engines before and after that.
    pub stall: Duration,
}

/// One piece of an image, or the end of one that did not come whole: whoever reads it must not take it for whole.
pub type Piece = Result<Bytes, std::io::Error>;

/// How far an image has come.
#[derive(Debug, Default)]
struct Flow {
    bytes: AtomicU64,
    /// From its first piece to its last.
    flows: AtomicBool,
    /// Whether the last piece was passed on.
    whole: AtomicBool,
}

/// Where an engine puts the image that it gives away.
#[derive(Debug)]
pub struct Outlet {
    pieces: mpsc::Sender<Bytes>,
    flow: Arc<Flow>,
}

impl Outlet {
    /// Passes a piece on; `false` where nobody takes it any more.
    pub async fn pass(&mut self, piece: Bytes) -> bool {
        let bytes = piece.len() as u64;
        self.flow.flows.store(true, Ordering::Relaxed);
        let passed = self.pieces.send(piece).await.is_ok();
        self.flow.bytes.fetch_add(bytes, Ordering::Relaxed);
        passed
    }

    /// That was the last piece. Without this word, whoever takes the image is told that it did not come whole.
    pub fn finish(self) {
        self.flow.whole.store(true, Ordering::Relaxed);
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.flow.flows.store(false, Ordering::Relaxed);
    }
}

/// Brings the image of a snapshot to another engine, unless it is there already; how many bytes went over. What breaks off
/// leaves nothing on the other one, which takes only what came whole.
///
/// # Errors
/// Where an engine fails, or it takes too long.
pub async fn bring(
    snapshot: &SnapshotId,
    (from, to): (&dyn Engine, &dyn Engine),
    limits: Limits,
) -> Result<u64, RuntimeError> {
    if to.has_image(snapshot).await? {
        return Ok(0);
    }
    let flow = Arc::new(Flow::default());
    let (pieces, taken) = mpsc::channel(ON_THE_WAY);
    let outlet = Outlet {
        pieces,
        flow: Arc::clone(&flow),
    };
    let end = Arc::clone(&flow);
    let end = stream::once(async move { end.whole.load(Ordering::Relaxed) });
    let cut = |whole: bool| async move {
        let cut = std::io::Error::other("the image did not come whole");
        (!whole).then_some(Err(cut))
    };
    let taken = taken.map(Ok).chain(end.filter_map(cut));
    let both = async {
        let (sent, received) = futures::join!(
            from.give_image(snapshot, outlet, limits.within),
            to.take_image(snapshot, taken.boxed(), limits.within)
        );
        // Whoever gives it knows why it did not come whole.
        sent.and(received)
    };
    let silent = |within| RuntimeError::Silent {
        tried: TRIED,
        within,
    };
    let outcome = timeout(limits.within, async {
        tokio::select! {
            outcome = both => outcome,
            () = stalls(&flow, [from, to], limits.stall) => Err(silent(limits.stall)),
        }
    });
    outcome.await.unwrap_or(Err(silent(limits.within)))?;
    match to.has_image(snapshot).await? {
        true => Ok(flow.bytes.load(Ordering::Relaxed)),
        false => Err(RuntimeError::Engine {
            tried: TRIED,
            source: "it was taken, and is not there".into(),
        }),
    }
}

/// Ends when an image has not come further for so long. Before its first piece and after its last one engines work on their
/// disks, as long as they answer.
async fn stalls(flow: &Flow, engines: [&dyn Engine; 2], stall: Duration) {
    let (mut before, mut moved) = (0, Instant::now());
    while moved.elapsed() < stall {
        sleep(stall / 8).await;
        let now = flow.bytes.load(Ordering::Relaxed);
        let works = now != before
            || (!flow.flows.load(Ordering::Relaxed)
                && futures::future::try_join_all(engines.map(Engine::ping))
                    .await
                    .is_ok());
        if works {
            (before, moved) = (now, Instant::now());
        }
    }
}
