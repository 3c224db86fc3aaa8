//! Whether this process wants requests, as `/health/readiness` says.

use std::sync::Arc;

use tokio::sync::watch;

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It connects and migrates.
    Starting,
    /// It serves.
    Ready,
    /// It leaves, and finishes what it has.
    Draining,
}

/// The phase of this process; cloning gives another handle on the same.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<Phase>>);

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Phase::Starting)))
    }
}

impl Readiness {
    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Whether requests are wanted.
    pub fn is_ready(&self) -> bool {
        self.phase() == Phase::Ready
    }

    /// Waits until the phase is `phase`, or a later one.
    pub async fn reached(&self, phase: Phase) {
        let mut phases = self.0.subscribe();
        // The sender lives in `self`, so this cannot fail.
        let _ = phases.wait_for(|now| *now as u8 >= phase as u8).await;
    }

    /// Goes on to a phase; a life never goes back, so a late `Ready` does not undo `Draining`.
    pub fn advance(&self, phase: Phase) -> bool {
        self.0.send_if_modified(|now| {
            let later = phase as u8 > *now as u8;
            if later {
                *now = phase;
            }
            later
        })
    }
}
