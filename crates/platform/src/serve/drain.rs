//! The end of all connections of a process, in three steps that lose no request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long connections are still served after the accept has stopped. A connection that was just accepted sends its
/// first request in this time, and an idle one that is used again learns `Connection: close`.
pub(super) const LINGER: Duration = Duration::from_millis(500);

/// Ends the connections of all servers that were made with it. Cloning gives another handle on the same.
#[derive(Clone, Default)]
pub struct Drain(Arc<Steps>);

#[derive(Default)]
struct Steps {
    announced: AtomicBool,
    closing: CancellationToken,
    aborting: CancellationToken,
    connections: TaskTracker,
}

impl Drain {
    /// Makes a drain that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Step one: every HTTP/1 response says `Connection: close` from now on. Nothing is closed yet.
    pub fn announce(&self) {
        self.0.announced.store(true, Ordering::Relaxed);
    }

    /// Steps two and three, for when nothing is accepted any more: lets connections finish, and cuts those that need
    /// longer than `grace`. Returns how many were cut.
    pub async fn finish(&self, grace: Duration) -> usize {
        let deadline = Instant::now() + grace;
        let connections = &self.0.connections;
        self.announce();
        connections.close();
        if timeout(LINGER.min(grace), connections.wait()).await.is_ok() {
            return 0;
        }
        self.0.closing.cancel();
        if timeout_at(deadline, connections.wait()).await.is_ok() {
            return 0;
        }
        let cut = connections.len();
        self.0.aborting.cancel();
        // A connection task only has to drop its socket.
        let _ = timeout(Duration::from_secs(1), connections.wait()).await;
        cut
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.0.connections.len()
    }

    pub(super) fn announced(&self) -> bool {
        self.0.announced.load(Ordering::Relaxed)
    }

    // A child token for each connection: they are polled often, and must not meet in one lock.
    pub(super) fn closing(&self) -> CancellationToken {
        self.0.closing.child_token()
    }

    pub(super) fn aborting(&self) -> CancellationToken {
        self.0.aborting.child_token()
    }

    pub(super) fn connections(&self) -> &TaskTracker {
        &self.0.connections
    }
}
