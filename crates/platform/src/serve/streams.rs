//! The streams of HTTP/2 connections: answers go out in pieces, and a stream whose client takes none is reset.
//!
//! A client may keep a stream's window shut while its connection is well. Such a stream waits for the client, not for the
//! socket, so that each is watched by itself: between two polls of its answer's body it waits for room in the window.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::task::TaskTracker;
use tracing::debug;

/// The most that waits for room in a stream's window beside what the answer itself holds.
const PIECE: usize = 16 * 1024;

/// What an answer's body did when it was asked last.
#[derive(Clone, Copy)]
enum Asked {
    /// It gave something, which the client has to take.
    Gave,
    /// It has nothing yet.
    Waits,
}

thread_local! {
    // Within one poll of a stream: its body is polled by the same thread, inside.
    static ASKED: Cell<Option<Asked>> = const { Cell::new(None) };
}

/// Runs the streams of HTTP/2 connections.
#[derive(Clone)]
pub struct Streams {
    patience: Duration,
}

impl Streams {
    /// A stream whose client takes nothing for `patience` is reset.
    pub fn new(patience: Duration) -> Self {
        Self { patience }
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        TaskTracker::new().spawn(watched(stream, self.patience));
    }
}

async fn watched(stream: impl Future<Output = ()>, patience: Duration) {
    let mut stream = pin!(stream);
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|cx| {
        ASKED.set(None);
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        match (ASKED.take(), &mut timer) {
            (Some(Asked::Gave), Some(timer)) => timer.as_mut().reset(Instant::now() + patience),
            (Some(Asked::Gave), none) => *none = Some(Box::pin(sleep(patience))),
            (Some(Asked::Waits), timer) => *timer = None,
            (None, _) => {}
        }
        let Some(timer) = &mut timer else {
            return Poll::Pending;
        };
        // Dropping the stream resets it, and lets go of all that its answer holds.
        ready!(timer.as_mut().poll(cx));
        debug!("reset a stream whose client has taken nothing for {patience:.0?}");
        Poll::Ready(())
    })
    .await;
}

/// What goes on on a connection.
pub struct Activity {
    began: Instant,
    asked: AtomicBool,
    whole: AtomicBool,
    flushed: AtomicBool,
    open: AtomicUsize,
    ended: AtomicU64,
}

impl Activity {
    /// That of a fresh connection.
    pub fn begun() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            asked: AtomicBool::new(false),
            whole: AtomicBool::new(false),
            flushed: AtomicBool::new(true),
            open: AtomicUsize::new(0),
            ended: AtomicU64::new(0),
        })
    }

    /// Notes a request. `whole`: nothing of it is still to come.
    pub fn ask(&self, whole: bool) {
        self.asked.store(true, Ordering::Relaxed);
        self.whole.store(whole, Ordering::Relaxed);
    }

    /// Notes that a request has begun to come.
    pub fn wake(&self) {
        self.whole.store(false, Ordering::Relaxed);
    }

    /// Whether there was a request.
    pub fn was_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Notes whether all that was written has left.
    pub fn set_flushed(&self, flushed: bool) {
        self.flushed.store(flushed, Ordering::Relaxed);
    }

    /// Whether neither side has anything under way, as far as can be seen from outside: the last request came whole with
    /// its head, and its answer has left. Of one with a body there could be a rest, which is not a next request.
    pub fn is_between_requests(&self) -> bool {
        let whole = self.whole.load(Ordering::Relaxed);
        whole && self.flushed.load(Ordering::Relaxed) && self.open.load(Ordering::Acquire) == 0
    }

    /// How long there is no answer under way; `None` while there is one, or there was none ever.
    pub fn idle(&self) -> Option<Duration> {
        let ended = self.ended.load(Ordering::Acquire);
        if ended == 0 || self.open.load(Ordering::Acquire) > 0 {
            return None;
        }
        Some(
            self.began
                .elapsed()
                .saturating_sub(Duration::from_millis(ended)),
        )
    }
}

/// An answer that is under way until this is dropped.
pub struct UnderWay(Arc<Activity>);

impl UnderWay {
    /// Counts an answer on a connection.
    pub fn new(activity: &Arc<Activity>) -> Self {
        activity.open.fetch_add(1, Ordering::AcqRel);
        Self(activity.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let now = u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.ended.store(now.max(1), Ordering::Release);
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An answer's body. On a stream it comes in pieces and is seen by its watch; on HTTP/1 it is what it was.
pub struct Paced<B> {
    body: B,
    on_stream: bool,
    rest: Bytes,
    _under_way: UnderWay,
}

impl<B> Paced<B> {
    /// A body, for a stream of HTTP/2 or for HTTP/1.
    pub fn new(body: B, on_stream: bool, under_way: UnderWay) -> Self {
        Self {
            body,
            on_stream,
            rest: Bytes::new(),
            _under_way: under_way,
        }
    }

    fn piece(&mut self) -> Bytes {
        self.rest.split_to(self.rest.len().min(PIECE))
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Paced<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if !self.on_stream {
            return Pin::new(&mut self.body).poll_frame(cx);
        }
        if self.rest.is_empty() {
            ASKED.set(Some(Asked::Waits));
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            ASKED.set(Some(Asked::Gave));
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        ASKED.set(Some(Asked::Gave));
        Poll::Ready(Some(Ok(Frame::data(self.piece()))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let rest = self.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}
