//! The worker of a replica: claims operations, keeps their leases alive while it works, and gives back what fails.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use platform::lifecycle::Tasks;
use platform::problem::causes;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use coordination::PortError;

use super::db::{self, Claimed};
use super::steps::{self, Interrupted};
use super::{Kind, boots};
use crate::config::Failover;
use crate::runtime::RuntimeError;
use crate::{Devices, Error, lease, metrics, moving, snapshot};

/// How often the queue is looked at when nobody says that there is something.
const POLL: Duration = Duration::from_millis(300);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);
/// After which time an operation looks again whether it is its turn to bring an image.
const TURN: Duration = Duration::from_secs(2);
/// After which time an operation that failed is tried again; twice as long each time.
const BACKOFF: Duration = Duration::from_millis(250);

/// Starts working on the queue.
pub fn spawn(state: Devices, tasks: &Tasks) {
    let stopping = tasks.stopping();
    tasks.spawn("devices.operations", async move {
        let mut at_work = FuturesUnordered::new();
        // How many of them may boot a device.
        let mut booting = 0;
        let mut pause = Duration::ZERO;
        while !stopping.is_cancelled() {
            tokio::select! {
                () = stopping.cancelled() => break,
                Some(kind) = at_work.next(), if !at_work.is_empty() => booting -= usize::from(boots(kind)),
                () = state.operations_due.notified() => {}
                () = sleep(pause) => {}
            }
            let room = state
                .config
                .operations_at_once
                .saturating_sub(at_work.len());
            let claiming = claim(&state, room, booting);
            tokio::pin!(claiming);
            // What is under way goes on meanwhile: the connection that the claim waits for may be in its hands.
            let claimed = loop {
                tokio::select! {
                    claimed = &mut claiming => break claimed,
                    Some(kind) = at_work.next(), if !at_work.is_empty() => booting -= usize::from(boots(kind)),
                }
            };
            pause = match claimed {
                Ok(claimed) => {
                    booting += claimed.iter().filter(|it| boots(it.kind)).count();
                    at_work.extend(claimed.into_iter().map(|claimed| work(&state, claimed)));
                    POLL
                }
                Err(error) => {
                    warn!(
                        "the queue of operations could not be read: {}",
                        causes(&error)
                    );
                    PAUSE_AFTER_FAILURE
                }
            };
        }
        // What is under way ends, or is left to another replica when the grace is over.
        while at_work.next().await.is_some() {}
        Ok(())
    });
}

/// Works on the queue until nothing is due; how many operations were claimed.
pub async fn run_due(state: &Devices) -> sqlx::Result<usize> {
    let mut count = 0;
    loop {
        let claimed = claim(state, state.config.operations_at_once, 0).await?;
        if claimed.is_empty() {
            return Ok(count);
        }
        count += claimed.len();
        let at_work = claimed.into_iter().map(|claimed| work(state, claimed));
        futures::future::join_all(at_work).await;
    }
}

async fn claim(state: &Devices, room: usize, booting: usize) -> sqlx::Result<Vec<Claimed>> {
    if room == 0 {
        return Ok(Vec::new());
    }
    // A boot may take minutes, and a deletion is not to wait for it.
    let most_boots = (state.config.operations_at_once * 3).div_ceil(4);
    let boots = db::Boots {
        of_nodes: state.runtimes.engines.boots(state.config.parallel_boots),
        here: i64::try_from(most_boots.saturating_sub(booting)).unwrap_or(i64::MAX),
    };
    let mut conn = state.platform.db.acquire().await?;
    db::claim(
        &mut conn,
        boots,
        state.config.failover != Failover::None,
        state.config.operation_lease,
        i64::try_from(room).unwrap_or(i64::MAX),
    )
    .await
}

/// Works on one operation for as long as its lease can be kept; gives its kind.
async fn work(state: &Devices, claimed: Claimed) -> Kind {
    let started = Instant::now();
    let outcome = tokio::select! {
        outcome = steps::carry_out(state, &claimed) => outcome,
        () = keep(state, &claimed) => Err(Interrupted::Lost),
    };
    let result = match &outcome {
        Ok(()) => "done",
        Err(Interrupted::Lost) => "lost",
        Err(Interrupted::Deleted) => "cancelled",
        Err(
            Interrupted::Runtime(_)
            | Interrupted::Ports(_)
            | Interrupted::Place(_)
            | Interrupted::Database(_),
        ) => "failed",
        Err(Interrupted::Turn) => "waits",
    };
    metrics::operation(claimed.kind.as_str(), result, started.elapsed());
    if let Err(interrupted) = outcome
        && let Err(error) = give_back(state, &claimed, interrupted).await
    {
        // Its lease ends, and another worker goes on.
        warn!(device.id = %claimed.device_id, "operation {} of device {} was left: {}", claimed.kind, claimed.device_id, causes(&error));
    }
    state.operations_due.notify_one();
    claimed.kind
}

async fn give_back(
    state: &Devices,
    claimed: &Claimed,
    interrupted: Interrupted,
) -> Result<(), Interrupted> {
    let device = &claimed.device_id;
    let (pause, counts) = match &interrupted {
        Interrupted::Deleted => return steps::cancel(state, claimed).await,
        Interrupted::Lost => {
            info!(device.id = %device, "operation {} of device {device} went to another worker", claimed.kind);
            // It may have been frozen, and have made a container after the device was gone.
            return match claimed.kind {
                Kind::Delete => Ok(()),
                Kind::Create | Kind::Start | Kind::Stop | Kind::Restart | Kind::Repair => {
                    steps::leave_nothing(state, device).await
                }
                Kind::Snapshot | Kind::Restore | Kind::Forget => {
                    snapshot::steps::leave_nothing(state, claimed).await?;
                    steps::leave_nothing(state, device).await
                }
                Kind::Move => {
                    moving::jobs::leave_nothing(state, claimed).await?;
                    snapshot::steps::leave_nothing(state, claimed).await?;
                    steps::leave_nothing(state, device).await
                }
            };
        }
        Interrupted::Runtime(RuntimeError::Leaving) => (Duration::ZERO, false),
        Interrupted::Turn => (TURN, false),
        // That its engine is not there says nothing about the device.
        Interrupted::Runtime(
            RuntimeError::Unreachable { .. }
            | RuntimeError::OtherEngine { .. }
            | RuntimeError::NoEngine { .. }
            | RuntimeError::Down { .. },
        ) => (lease::backoff(BACKOFF, claimed.attempts), false),
        Interrupted::Runtime(_)
        | Interrupted::Ports(_)
        | Interrupted::Place(_)
        | Interrupted::Database(_) => (lease::backoff(BACKOFF, claimed.attempts), true),
    };
    let text = causes(&interrupted);
    // A store that does not answer says nothing about the device.
    let is_ours = matches!(
        interrupted,
        Interrupted::Database(_)
            | Interrupted::Runtime(RuntimeError::Database(_))
            | Interrupted::Ports(Error::Database(_) | Error::Ports(PortError::Store(_)))
    );
    // Trying again would change nothing.
    let is_vain = matches!(
        interrupted,
        Interrupted::Runtime(RuntimeError::TooManyLayers { .. })
    );
    let is_last = claimed.attempts >= state.config.operation_attempts || is_vain;
    let is_last = is_last && counts && !is_ours;
    if is_last && claimed.kind == Kind::Forget {
        // Nothing else that is to be done with the device waits for it: the sweep removes what there is no snapshot of.
        warn!(device.id = %device, "what was kept of a snapshot of device {device} could not be removed, left to the sweep: {text}");
        return snapshot::steps::leave_to_sweep(state, claimed, &interrupted.to_string()).await;
    }
    // What frees the ports is tried until it succeeds: nobody else would.
    if is_last && claimed.kind != Kind::Delete {
        error!(device.id = %device, "operation {} of device {device} failed for good: {text}", claimed.kind);
        // What runs although it has failed would be rented to nobody, and be open all the same.
        // While the operation is held: a stop that came later could meet what another worker has started.
        let halted = tokio::select! {
            halted = steps::halt(state, claimed) => halted,
            () = keep(state, claimed) => return Err(Interrupted::Lost),
        };
        if let Err(error) = halted {
            warn!(device.id = %device, "what there is of device {device} was not stopped: {}", causes(&error));
        }
        // Its owner is told what failed; what the engine said stands in the log.
        return match steps::fail(state, claimed, &interrupted.to_string()).await {
            Err(Interrupted::Deleted) => steps::cancel(state, claimed).await,
            outcome => outcome,
        };
    }
    warn!(device.id = %device, attempt = claimed.attempts, "operation {} of device {device} failed, next try in {pause:.1?}: {text}", claimed.kind);
    let mut conn = state.platform.db.acquire().await?;
    db::requeue(&mut conn, claimed, pause, counts, &text).await?;
    Ok(())
}

/// Renews the lease; ends when it is lost.
async fn keep(state: &Devices, claimed: &Claimed) {
    let lease = state.config.operation_lease;
    let renew = || async {
        let mut conn = state.platform.db.acquire().await?;
        db::renew(&mut conn, claimed, lease).await
    };
    lease::keep(lease, renew).await;
}
