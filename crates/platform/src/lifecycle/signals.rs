//! The signals that end a process.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// Signals this soon after the first are the same wish: a terminal and a supervisor may both pass on one Ctrl-C.
const SAME_WISH: Duration = Duration::from_secs(1);

/// Cancels `signalled` at the first signal, and ends the process at the second.
pub fn watch(signalled: CancellationToken) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // It has to outlive every other task, so it is not one of `Tasks`.
    TaskTracker::new().spawn(async move {
        let mut first = None;
        loop {
            let (name, number) = tokio::select! {
                _ = terminate.recv() => ("SIGTERM", 15),
                _ = interrupt.recv() => ("SIGINT", 2),
            };
            let first = *first.get_or_insert_with(Instant::now);
            if !signalled.is_cancelled() {
                info!("got {name}");
                signalled.cancel();
            } else if first.elapsed() > SAME_WISH {
                warn!("got {name} while leaving, ending at once");
                std::process::exit(128 + number);
            }
        }
    });
    Ok(())
}
