//! How a batch goes, told to its user: a bounded number of events, however many devices there are.

use std::sync::atomic::{AtomicUsize, Ordering};

use contracts::{Event, EventBody, TaskId, UserId};
use platform::events::emit;
use tracing::debug;

use crate::Devices;

/// How often at most it is told how far a batch is.
const STEPS: usize = 10;

/// Counts what is done.
#[derive(Debug)]
pub struct Progress<'a> {
    state: &'a Devices,
    user: &'a UserId,
    batch_id: TaskId,
    operation: &'static str,
    total: usize,
    done: AtomicUsize,
    failed: AtomicUsize,
}

impl<'a> Progress<'a> {
    /// Nothing is done yet.
    pub fn new(
        state: &'a Devices,
        user: &'a UserId,
        operation: &'static str,
        total: usize,
    ) -> Self {
        Self {
            state,
            user,
            batch_id: TaskId::new(),
            operation,
            total,
            done: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
        }
    }

    /// One more is done; each tenth of the whole is told, and the end.
    pub async fn one(&self, success: bool) {
        if !success {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let step = self.total.div_ceil(STEPS).max(1);
        if done.is_multiple_of(step) || done == self.total {
            self.tell(done).await;
        }
    }

    async fn tell(&self, done: usize) {
        let failed = self.failed.load(Ordering::Relaxed).min(done);
        let body = EventBody::BatchProgressed {
            batch_id: self.batch_id.clone(),
            operation: self.operation.to_owned(),
            total: self.total,
            done,
            failed,
        };
        let event = Event::new(self.user.clone(), self.state.platform.clock.now(), body);
        let told = async {
            let mut conn = self.state.platform.db.acquire().await?;
            emit(&mut conn, &event).await
        };
        // The reply tells what became of each.
        if let Err(error) = told.await {
            debug!("how a batch goes could not be told: {error}");
        }
    }
}
