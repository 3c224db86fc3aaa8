//! Handshakes under way: each ends in time, and there are only so many.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::sleep;

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Unshaken {
    /// The client broke off, or does not speak what we speak.
    #[error("the handshake failed")]
    Failed(#[source] io::Error),
    /// The client took too long.
    #[error("the handshake took too long")]
    Late,
    /// Newer ones needed the room. Who is silent grows old, so clients that mean it are not hit.
    #[error("the handshake gave way to newer ones")]
    Crowded,
}

/// The handshakes that are under way.
pub struct Handshakes {
    most: usize,
    within: Duration,
    under_way: Mutex<UnderWay>,
}

#[derive(Default)]
struct UnderWay {
    last: u64,
    // Dropping a sender ends its handshake.
    all: BTreeMap<u64, oneshot::Sender<Infallible>>,
}

impl Handshakes {
    /// At most `most` at once, each `within` a time.
    pub fn new(most: usize, within: Duration) -> Self {
        Self {
            most,
            within,
            under_way: Mutex::default(),
        }
    }

    /// Waits for a handshake.
    pub async fn run<T>(
        &self,
        handshake: impl Future<Output = io::Result<T>>,
    ) -> Result<T, Unshaken> {
        let (place, outdated) = self.enter();
        let done = tokio::select! {
            biased;
            done = handshake => done.map_err(Unshaken::Failed),
            _ = outdated => Err(Unshaken::Crowded),
            () = sleep(self.within) => Err(Unshaken::Late),
        };
        drop(place);
        let outcome = match &done {
            Ok(_) => "done",
            Err(Unshaken::Failed(_)) => "failed",
            Err(Unshaken::Late) => "late",
            Err(Unshaken::Crowded) => "crowded",
        };
        metrics::counter!("gateway_tls_handshakes_total", "outcome" => outcome).increment(1);
        done
    }

    fn enter(&self) -> (Place<'_>, oneshot::Receiver<Infallible>) {
        let (sender, outdated) = oneshot::channel();
        let mut under_way = self.lock();
        under_way.last += 1;
        let id = under_way.last;
        under_way.all.insert(id, sender);
        if under_way.all.len() > self.most {
            under_way.all.pop_first();
        }
        drop(under_way);
        (Place { of: self, id }, outdated)
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handshake's place, free when this is dropped.
struct Place<'a> {
    of: &'a Handshakes,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.of.lock().all.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn the_oldest_gives_way_and_the_silent_are_late() {
        let handshakes = Handshakes::new(2, Duration::from_millis(20));
        let silent = || handshakes.run::<()>(pending());
        let newest = async {
            tokio::task::yield_now().await;
            handshakes.run(ready(Ok(()))).await
        };

        let (first, second, third) = tokio::join!(silent(), silent(), newest);

        assert!(matches!(first, Err(Unshaken::Crowded)), "{first:?}");
        assert!(matches!(second, Err(Unshaken::Late)), "{second:?}");
        assert!(third.is_ok(), "{third:?}");
        assert!(handshakes.lock().all.is_empty());
    }
}
