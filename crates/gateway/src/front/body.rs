//! Bodies on the way through: counted and timed, never gathered.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::front::connections::Held;

/// What the front door answers with.
pub type BoxBody = axum::body::Body;

/// Whatever a body may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a body was given up.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client sent more than it may.
    #[error("the body is larger than allowed")]
    TooLarge,
    /// Nothing came for too long.
    #[error("the body stood still for too long")]
    Idle,
}

/// How far a request's body got: told by the connection that sends it, read by the one that waits for the reply.
#[derive(Debug)]
pub struct Progress {
    began: Instant,
    last: AtomicU64,
    passed: AtomicU64,
    state: AtomicU8,
}

/// The states of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// More is to come.
    Sending,
    /// All of it was passed on.
    Sent,
    /// It was more than allowed.
    TooLarge,
    /// The client broke off.
    BrokenOff,
}

impl Progress {
    /// A body of which nothing came yet.
    pub fn begun() -> Self {
        Self {
            began: Instant::now(),
            last: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            state: AtomicU8::new(0),
        }
    }

    /// A body of so many bytes that is complete from the start.
    pub fn complete(bytes: u64) -> Self {
        Self {
            passed: AtomicU64::new(bytes),
            state: AtomicU8::new(1),
            ..Self::begun()
        }
    }

    /// Bytes that came so far.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// How far it got.
    pub fn stage(&self) -> Stage {
        match self.state.load(Ordering::Acquire) {
            0 => Stage::Sending,
            1 => Stage::Sent,
            2 => Stage::TooLarge,
            _ => Stage::BrokenOff,
        }
    }

    /// When it last moved.
    pub fn moved(&self) -> Instant {
        self.began + self.moving()
    }

    /// How long it took to come as far as it is.
    pub fn moving(&self) -> Duration {
        Duration::from_millis(self.last.load(Ordering::Relaxed))
    }

    fn touch(&self) {
        self.last.store(
            u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }

    fn enter(&self, stage: Stage) {
        self.touch();
        let state = match stage {
            Stage::Sending => 0,
            Stage::Sent => 1,
            Stage::TooLarge => 2,
            Stage::BrokenOff => 3,
        };
        self.state.store(state, Ordering::Release);
    }
}

/// A request's body on its way to an instance.
#[derive(Debug)]
pub enum Outgoing {
    /// None.
    Empty,
    /// One that can be sent again.
    Held(Option<Bytes>),
    /// One that is passed on as it comes.
    Streamed(Streamed),
}

/// A request's body that is passed on as it comes.
#[derive(Debug)]
pub struct Streamed {
    body: Incoming,
    left: Option<u64>,
    progress: Arc<Progress>,
}

impl Outgoing {
    /// Passes a body on, up to a number of bytes.
    pub fn streamed(body: Incoming, limit: Option<u64>, progress: Arc<Progress>) -> Self {
        Self::Streamed(Streamed {
            body,
            left: limit,
            progress,
        })
    }

    /// The same body once more, where that is possible.
    pub fn again(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Held(bytes) => Some(Self::Held(bytes.clone())),
            Self::Streamed(_) => None,
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Held(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Streamed(streamed) => streamed.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Held(bytes) => bytes.is_none(),
            Self::Streamed(streamed) => streamed.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Held(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Streamed(streamed) => streamed.body.size_hint(),
        }
    }
}

impl Streamed {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else {
            self.progress.enter(Stage::Sent);
            return Poll::Ready(None);
        };
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                self.progress.enter(Stage::BrokenOff);
                return Poll::Ready(Some(Err(error.into())));
            }
        };
        if frame.is_trailers() {
            // What follows a body is not what we checked before it, and no service of ours reads it.
            self.progress.enter(Stage::Sent);
            return Poll::Ready(None);
        }
        let size = frame.data_ref().map_or(0, Bytes::len) as u64;
        self.progress.passed.fetch_add(size, Ordering::Relaxed);
        if let Some(left) = &mut self.left {
            let Some(rest) = left.checked_sub(size) else {
                self.progress.enter(Stage::TooLarge);
                return Poll::Ready(Some(Err(BodyError::TooLarge.into())));
            };
            *left = rest;
        }
        match self.body.is_end_stream() {
            true => self.progress.enter(Stage::Sent),
            false => self.progress.touch(),
        }
        Poll::Ready(Some(Ok(frame)))
    }
}

/// A reply's body on its way to the client. It keeps the instance counted as busy, and gives its connection back at
/// the end.
pub struct Reply {
    body: Incoming,
    held: Option<Held>,
    idle: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    end: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Reply {
    /// Passes a body on, as long as it never stands still for `idle`.
    pub fn new(body: Incoming, held: Held, idle: Duration) -> Self {
        Self {
            body,
            held: Some(held),
            idle,
            timer: None,
            waiting: false,
            end: None,
        }
    }

    /// Ends it, as if the instance had, as soon as this is over: for a body that has no end of its own.
    pub fn until(mut self, end: impl Future<Output = ()> + Send + 'static) -> Self {
        self.end = Some(Box::pin(end));
        self
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.waiting = false;
            let ended = match &frame {
                None => true,
                Some(Ok(_)) => this.body.is_end_stream(),
                Some(Err(_)) => {
                    // The connection is of no use any more, and neither is the rest of the reply.
                    this.held = None;
                    false
                }
            };
            if ended && let Some(held) = this.held.take() {
                held.give_back();
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        if let Some(end) = &mut this.end
            && end.as_mut().poll(cx).is_ready()
        {
            this.held = None;
            return Poll::Ready(None);
        }
        let until = || Instant::now() + this.idle;
        let timer = this
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(until())));
        if !this.waiting {
            timer.as_mut().reset(until());
            this.waiting = true;
        }
        ready!(timer.as_mut().poll(cx));
        this.held = None;
        Poll::Ready(Some(Err(BodyError::Idle.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
