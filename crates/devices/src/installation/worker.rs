//! The worker of a replica: claims installations, keeps their leases alive while it streams the packages, and gives back what
//! fails.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use platform::lifecycle::Tasks;
use platform::problem::causes;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::db::{self, Claimed};
use super::{Next, installed, judge};
use crate::access::{Viewer, install};
use crate::error::Result;
use crate::{Devices, lease, metrics};

/// How often the queue is looked at when nobody says that there is something.
const POLL: Duration = Duration::from_millis(500);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(2);
/// How long the installation on one device may take.
const WITHIN: Duration = Duration::from_secs(600);
/// How long an installation waits for its device to run, and is tried, before it has failed.
const PATIENCE: Duration = Duration::from_secs(3600);
/// How long an installation waits for what is away, which counts as no attempt.
const WAIT: Duration = Duration::from_secs(3);
/// After which time an installation that failed is tried again; twice as long each time.
const BACKOFF: Duration = Duration::from_millis(500);

/// Starts working on the queue.
pub fn spawn(state: Devices, tasks: &Tasks) {
    let stopping = tasks.stopping();
    tasks.spawn("devices.installations", async move {
        let mut at_work = FuturesUnordered::new();
        let mut pause = Duration::ZERO;
        while !stopping.is_cancelled() {
            tokio::select! {
                () = stopping.cancelled() => break,
                Some(()) = at_work.next(), if !at_work.is_empty() => {}
                () = state.installations_due.notified() => {}
                () = sleep(pause) => {}
            }
            let room = at_once(&state).saturating_sub(at_work.len());
            let claiming = claim(&state, room);
            tokio::pin!(claiming);
            // What is under way goes on meanwhile: the connection that the claim waits for may be in its hands.
            let claimed = loop {
                tokio::select! {
                    claimed = &mut claiming => break claimed,
                    Some(()) = at_work.next(), if !at_work.is_empty() => {}
                }
            };
            pause = match claimed {
                Ok(claimed) => {
                    at_work.extend(
                        claimed
                            .into_iter()
                            .map(|claimed| work(&state, claimed, &stopping)),
                    );
                    POLL
                }
                Err(error) => {
                    let why = causes(&error);
                    warn!("the queue of installations could not be read: {why}");
                    PAUSE_AFTER_FAILURE
                }
            };
        }
        // A package may be long: what is under way is left to another replica at once, which begins anew.
        while at_work.next().await.is_some() {}
        Ok(())
    });
}

/// Works on the queue until nothing is due; how many installations were claimed.
pub async fn run_due(state: &Devices) -> sqlx::Result<usize> {
    let mut count = 0;
    loop {
        let claimed = claim(state, at_once(state)).await?;
        if claimed.is_empty() {
            return Ok(count);
        }
        count += claimed.len();
        let stopping = CancellationToken::new();
        let at_work = claimed
            .into_iter()
            .map(|claimed| work(state, claimed, &stopping));
        futures::future::join_all(at_work).await;
    }
}

/// How many this replica installs at a time: half of the commands that it carries, so that what is asked for beside them finds
/// room.
fn at_once(state: &Devices) -> usize {
    state.config.access.commands.div_ceil(2)
}

async fn claim(state: &Devices, room: usize) -> sqlx::Result<Vec<Claimed>> {
    if room == 0 {
        return Ok(Vec::new());
    }
    let mut conn = state.platform.db.acquire().await?;
    let times = (state.config.operation_lease, PATIENCE);
    db::claim(&mut conn, times, i64::try_from(room).unwrap_or(i64::MAX)).await
}

/// Works on one installation for as long as its lease can be kept and this replica stays.
async fn work(state: &Devices, claimed: Claimed, stopping: &CancellationToken) {
    let device = &claimed.device_id;
    if claimed.attempts > state.config.operation_attempts {
        // Each that was tried and failed is counted before this: here workers died, and it may have been their end, or lost it.
        let begun = claimed.attempts - 1;
        let reason = format!("it was begun {begun} times, and never brought to an end");
        warn!(device.id = %device, "an installation on device {device} failed for good: {reason}");
        if let Err(error) = finish(state, &claimed, Err(&reason)).await {
            warn!(device.id = %device, "an installation on device {device} was left: {}", causes(&error));
        }
        return;
    }
    let viewer = Viewer {
        id: claimed.user_id.clone(),
        is_admin: claimed.sees_all,
    };
    let until = Instant::now() + WITHIN;
    let installed = tokio::select! {
        installed = install::install(state, &viewer, device, &claimed.app_id, until) => installed,
        // Whoever has it now installs it anew: that the device may have it twice does no harm.
        () = keep(state, &claimed) => return,
        () = stopping.cancelled() => {
            hand_back(state, &claimed).await;
            return;
        }
    };
    metrics::command("install", if installed.is_ok() { "done" } else { "failed" });
    if let Err(error) = end(state, &claimed, installed).await {
        // Its lease ends, and another worker goes on.
        warn!(device.id = %device, "an installation on device {device} was left: {}", causes(&error));
    }
    state.installations_due.notify_one();
}

/// Writes what became of an installation.
async fn end(state: &Devices, claimed: &Claimed, installed: Result<String>) -> sqlx::Result<()> {
    let device = &claimed.device_id;
    let ended = match installed {
        Ok(package_name) => Ok(package_name),
        Err(error) => {
            let next = judge(&error);
            let may_retry = !claimed.is_last
                && match next {
                    Next::Fail => false,
                    Next::Retry => claimed.attempts < state.config.operation_attempts,
                    Next::Wait => true,
                };
            let told = error.problem().message().to_owned();
            if may_retry {
                let pause = match next {
                    Next::Wait => WAIT,
                    Next::Retry | Next::Fail => lease::backoff(BACKOFF, claimed.attempts),
                };
                debug!(device.id = %device, "an installation on device {device} failed, next try in {pause:.1?}: {}", causes(&error));
                let mut conn = state.platform.db.acquire().await?;
                let counts = next == Next::Retry;
                db::requeue(&mut conn, claimed, (pause, counts), &told).await?;
                return Ok(());
            }
            warn!(device.id = %device, "an installation on device {device} failed for good: {}", causes(&error));
            Err(told)
        }
    };
    let ended = ended.as_deref().map_err(String::as_str);
    finish(state, claimed, ended).await
}

/// Ends an installation, well with the package that is on the device now, or with an error.
async fn finish(
    state: &Devices,
    claimed: &Claimed,
    ended: std::result::Result<&str, &str>,
) -> sqlx::Result<()> {
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    if db::finish(&mut tx, claimed, ended.err(), now).await? {
        if let Ok(package_name) = ended {
            installed::put(&mut tx, claimed, package_name, now).await?;
        }
        tx.commit().await?;
    }
    Ok(())
}

/// Leaves an installation to another replica at once; where that cannot be written, at the end of its lease.
async fn hand_back(state: &Devices, claimed: &Claimed) {
    let device = &claimed.device_id;
    let handed = async {
        let mut conn = state.platform.db.acquire().await?;
        let told = "its replica was shut down";
        db::requeue(&mut conn, claimed, (Duration::ZERO, false), told).await
    };
    if let Err(error) = handed.await {
        warn!(device.id = %device, "an installation on device {device} was left: {}", causes(&error));
    }
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
