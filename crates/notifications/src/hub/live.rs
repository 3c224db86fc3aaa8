//! A live socket, whatever its transport: how frames reach it, whom it follows, and why it ends.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use contracts::{SessionId, UserId};
use serde_json::json;
use socketioxide::{SendError, SocketError};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;

use super::Frame;
use crate::metrics::OpenSocket;
use crate::socket::socketio::SocketRef;

/// Frames that may wait for a socket; at more it is cut.
pub const MAX_WAITING: usize = 256;
/// Users that one socket may follow.
pub const MAX_FOLLOWED: usize = 100;
/// How long a client that catches up may stand still.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// Who holds a socket.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// The user; nobody on an anonymous socket of the sandbox.
    pub user: Option<UserId>,
    /// The token and the session it speaks for.
    pub credentials: Option<(Arc<str>, SessionId)>,
    /// Whether the holder has the role of an admin.
    pub is_admin: bool,
    /// Whether the sandbox is open to it.
    pub in_sandbox: bool,
}

impl Identity {
    /// Whether the notifications of a user may be followed.
    pub fn may_follow(&self, user: &UserId) -> bool {
        self.in_sandbox || self.user.as_ref() == Some(user)
    }

    /// Whether a room may be joined: one's own, and `admin` for admins.
    pub fn may_join(&self, room: &str) -> bool {
        let own = room
            .strip_prefix("user:")
            .is_some_and(|id| self.user.as_ref().is_some_and(|user| user.as_str() == id));
        self.in_sandbox || own || (room == "admin" && self.is_admin)
    }
}

/// Why a socket was ended by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goodbye {
    /// Too many frames waited for it.
    Slow,
    /// Its session ended or its token expired.
    SessionEnded,
    /// This instance leaves.
    Leaving,
    /// What it had missed could not be read.
    CatchUpFailed,
}

impl Goodbye {
    /// The close code of a plain WebSocket.
    pub fn close_code(self) -> u16 {
        match self {
            Self::Slow => 1013,
            Self::SessionEnded => 1008,
            Self::Leaving => 1012,
            Self::CatchUpFailed => 1011,
        }
    }

    /// The code in the `error` event, and in figures.
    pub fn code(self) -> &'static str {
        match self {
            Self::Slow => "SLOW_CONSUMER",
            Self::SessionEnded => "UNAUTHENTICATED",
            Self::Leaving => "RESTARTING",
            Self::CatchUpFailed => "NOT_READY",
        }
    }

    /// One sentence for the client.
    pub fn message(self) -> &'static str {
        match self {
            Self::Slow => "256 frames wait: reconnect with the last seq you saw",
            Self::SessionEnded => "the session has ended",
            Self::Leaving => "this instance restarts: reconnect",
            Self::CatchUpFailed => "missed notifications could not be read: reconnect",
        }
    }
}

/// How frames reach the client.
#[derive(Debug)]
pub enum Link {
    /// A queue that a plain WebSocket or an event stream empties.
    Queue(mpsc::Sender<Arc<Frame>>),
    /// A Socket.IO client in one namespace.
    SocketIo(SocketRef),
}

/// A frame that could not be handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSent {
    /// Too many wait already.
    Full,
    /// The client is gone.
    Gone,
}

/// What a socket was last told about a user.
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    /// The last number delivered; `None` while the socket still catches up.
    pub seq: Option<i64>,
    /// The last count of unread ones.
    pub unread: Option<i64>,
}

/// A live socket.
#[derive(Debug)]
pub struct Live {
    /// Names it in this process.
    pub id: u64,
    /// Who holds it.
    pub identity: Identity,
    /// Whether it watches every user, as anonymous sockets of the sandbox do.
    pub watches_all: bool,
    /// Fires when we end it.
    pub ended: CancellationToken,
    /// Held while a place is taken.
    pub turn: tokio::sync::Mutex<()>,
    link: Link,
    /// How long its client should stay away when this instance restarts.
    return_after: Duration,
    told_to_return: AtomicBool,
    goodbye: OnceLock<Goodbye>,
    cursors: Mutex<HashMap<UserId, Cursor>>,
    _open: OpenSocket,
}

impl Live {
    /// A socket that follows nobody yet, and whose client should stay away so long when this instance restarts.
    pub fn new(
        id: u64,
        identity: Identity,
        link: Link,
        transport: &'static str,
        return_after: Duration,
    ) -> Self {
        let watches_all = identity.user.is_none();
        let (ended, goodbye, cursors) =
            (CancellationToken::new(), OnceLock::new(), Mutex::default());
        Self {
            id,
            identity,
            watches_all,
            ended,
            turn: tokio::sync::Mutex::default(),
            link,
            return_after,
            told_to_return: AtomicBool::new(false),
            goodbye,
            cursors,
            _open: OpenSocket::new(transport),
        }
    }

    /// Hands a frame over at once.
    pub fn send(&self, frame: &Arc<Frame>) -> Result<(), NotSent> {
        match &self.link {
            Link::Queue(queue) => queue.try_send(frame.clone()).map_err(|error| match error {
                TrySendError::Full(_) => NotSent::Full,
                TrySendError::Closed(_) => NotSent::Gone,
            }),
            Link::SocketIo(socket) => {
                socket
                    .emit(&*frame.event, &frame.data)
                    .map_err(|error| match error {
                        SendError::Socket(SocketError::InternalChannelFull) => NotSent::Full,
                        SendError::Socket(SocketError::Closed) | SendError::Serialize(_) => {
                            NotSent::Gone
                        }
                    })
            }
        }
    }

    /// Hands a frame over as soon as the client has room; for what it asked for itself.
    pub async fn send_patiently(&self, frame: &Arc<Frame>) -> Result<(), NotSent> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match self.send(frame) {
                Err(NotSent::Full)
                    if tokio::time::Instant::now() < deadline && !self.ended.is_cancelled() =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// The Socket.IO client, where it is one.
    pub fn socketio(&self) -> Option<&SocketRef> {
        match &self.link {
            Link::Queue(_) => None,
            Link::SocketIo(socket) => Some(socket),
        }
    }

    /// Ends it with a reason; the first reason stays.
    pub fn end(&self, goodbye: Goodbye) {
        let _ = self.goodbye.set(goodbye);
        self.ended.cancel();
    }

    /// Why we ended it, if we did.
    pub fn goodbye(&self) -> Option<Goodbye> {
        self.goodbye.get().copied()
    }

    /// Tells the client once that this instance restarts. One that has no room for it is told as the last word.
    pub fn tell_restart(&self) {
        if let Some(notice) = self.untold_restart()
            && self.send(&notice).is_ok()
        {
            self.told_to_return.store(true, Ordering::Relaxed);
        }
    }

    /// The notice that this instance restarts.
    pub fn restart_notice(&self) -> Arc<Frame> {
        Frame::restarting(self.return_after)
    }

    /// The same, until the client was told.
    pub fn untold_restart(&self) -> Option<Arc<Frame>> {
        let told = self.told_to_return.load(Ordering::Relaxed);
        (!told).then(|| self.restart_notice())
    }

    /// What the close frame of a plain WebSocket says beside its code.
    pub fn close_reason(&self, goodbye: Goodbye) -> String {
        match goodbye {
            Goodbye::Leaving => {
                json!({ "retryAfterMs": self.return_after.as_millis() as u64 }).to_string()
            }
            _ => goodbye.message().to_owned(),
        }
    }

    /// What it was last told about users.
    pub fn cursors(&self) -> MutexGuard<'_, HashMap<UserId, Cursor>> {
        self.cursors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
