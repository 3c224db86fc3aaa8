//! The worker of a replica: it claims what is due, keeps what it holds, and says how it ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicI16, Ordering};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use contracts::{TaskId, UserId};
use platform::lifecycle::Phase;
use platform::problem::causes;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::remote::{self, Route};
use super::retry::Next;
use super::{Fault, Lane, Made, Work, claim_of, db, local};
use crate::task::{self, Ending};
use crate::{Media, metrics};

const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Steps that are handed to, or fetched from, providers at once.
const CALLS: usize = 32;

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The task ended with it.
    Ended,
    /// The next step of the task is due.
    Advanced,
    /// A provider has taken it.
    Submitted,
    /// It will be tried again.
    Retried,
    /// It was somebody else's by the time it was done, or the task had ended: nothing was changed.
    Lost,
}

/// Claims and does what is due until the process leaves. Then what runs may end within half of the grace; what does
/// not is given back.
///
/// # Errors
/// None: what fails is logged and done again when its lease is over.
pub async fn work(state: Media, lane: Lane, stopping: CancellationToken) -> anyhow::Result<()> {
    let leaving = async {
        tokio::select! {
            () = stopping.cancelled() => {}
            () = state.platform.readiness.reached(Phase::Draining) => {}
        }
    };
    tokio::pin!(leaving);
    let giving_back = CancellationToken::new();
    let mut running = JoinSet::new();
    let most = match lane {
        Lane::Here => state.config.workers,
        Lane::Elsewhere => CALLS,
    };
    loop {
        let free = most.saturating_sub(running.len());
        let mut found = 0;
        if free > 0 {
            match claim_of(&state, free, Some(lane)).await {
                Ok(claimed) => {
                    found = claimed.len();
                    for work in claimed {
                        running.spawn(hold(state.clone(), work, giving_back.clone()));
                    }
                }
                Err(error) => warn!("could not claim media jobs: {}", causes(&error)),
            }
        }
        tokio::select! {
            biased;
            () = &mut leaving => break,
            Some(ended) = running.join_next() => {
                if let Err(error) = ended {
                    error!("a worker broke off: {error}");
                }
            }
            () = state.work.notified(lane), if free > found => {}
            () = sleep(state.config.poll.mul_f64(0.9 + 0.2 * rand::random::<f64>())) => {}
        }
    }

    let grace = state.platform.settings.shutdown_grace / 2;
    let ended = timeout(grace, async {
        while running.join_next().await.is_some() {}
    })
    .await;
    if ended.is_err() {
        info!("gives {} media jobs back", running.len());
        giving_back.cancel();
        while running.join_next().await.is_some() {}
    }
    Ok(())
}

/// Does one job, and gives it back when it is told to.
async fn hold(state: Media, work: Work, giving_back: CancellationToken) {
    let id = &work.task_id;
    let outcome = tokio::select! {
        biased;
        () = giving_back.cancelled() => {
            match give_back(&state, &work).await {
                Ok(()) => debug!(task.id = %id, "gave task {id} back"),
                Err(error) => warn!(task.id = %id, "could not give task {id} back: {}", causes(&error)),
            }
            return;
        }
        outcome = perform(&state, &work) => outcome,
    };
    match outcome {
        Ok(outcome) => debug!(task.id = %id, "the claim of task {id} {outcome:?}"),
        Err(error) => {
            warn!(task.id = %id, "task {id} waits for the end of its lease: {}", causes(&error))
        }
    }
}

/// Does one job and writes how it ended, if it is still the worker's by then.
///
/// # Errors
/// Where the database does not answer: the job is done again when its lease is over.
pub async fn perform(state: &Media, work: &Work) -> sqlx::Result<Outcome> {
    let began = Instant::now();
    let percent = Arc::new(AtomicI16::new(0));
    let made = tokio::select! {
        biased;
        made = make(state, work, &percent) => made,
        () = lost(state, work, &percent) => {
            metrics::claim_ended("lost", began.elapsed());
            return Ok(Outcome::Lost);
        }
    };
    let wrote = matches!(made, Ok(Made::Files(_)));
    let outcome = settle(state, work, made).await;
    if let (Ok(Outcome::Lost), true) = (&outcome, wrote) {
        // Nobody else writes under our number, and the row names none of it.
        clear(state, work).await;
    }
    let name = match &outcome {
        Ok(Outcome::Ended) => "ended",
        Ok(Outcome::Advanced) => "advanced",
        Ok(Outcome::Submitted) => "submitted",
        Ok(Outcome::Retried) => "retried",
        Ok(Outcome::Lost) => "lost",
        Err(_) => "failed",
    };
    metrics::claim_ended(name, began.elapsed());
    outcome
}

/// The folder of a worker's objects: nobody else has its number, so none can spoil the files of another.
pub fn result_folder(work: &Work) -> String {
    let task = task_folder(&work.user_id, &work.task_id);
    format!("{task}/{}-{}", work.step_index, work.fence)
}

/// The folder of all that was made for a task.
pub fn task_folder(user: &UserId, task: &TaskId) -> String {
    format!("output/{user}/{task}")
}

async fn make(state: &Media, work: &Work, percent: &AtomicI16) -> Result<Made, Fault> {
    if let Some(report) = &work.reported {
        return remote::collect(state, work, report, percent).await;
    }
    match remote::route(state, work).await? {
        Route::Here => local::make(state, work, percent).await.map(Made::Files),
        Route::There(provider) => {
            let made = remote::submit(state, work, &provider).await;
            // Whom it went to stands in the row of the job, and is needed where it is tried again.
            made.map_err(|fault| fault.at(&provider))
        }
    }
}

async fn settle(state: &Media, work: &Work, made: Result<Made, Fault>) -> sqlx::Result<Outcome> {
    let now = state.platform.clock.now();
    let ending = match made {
        Ok(Made::Files(keys)) => Ending::Succeeded(keys),
        Ok(Made::Accepted(reference)) => {
            let due = now + remote::ask_after(work.kind, TimeDelta::zero());
            let mut conn = state.platform.db.acquire().await?;
            let held = db::accepted(&mut conn, work, &reference, due, now).await?;
            return Ok(if held {
                Outcome::Submitted
            } else {
                Outcome::Lost
            });
        }
        Err(fault) => match fault.next(work) {
            Next::Again {
                after,
                error,
                provider,
                excluded,
                failures,
            } => {
                if let Some(error) = &error {
                    warn!(task.id = %work.task_id, attempt = work.attempt, "task {} is tried again: {error}", work.task_id);
                }
                let again = db::Again {
                    due: now + TimeDelta::from_std(after).unwrap_or_default(),
                    error: error.as_deref(),
                    provider: provider.as_deref(),
                    excluded: &excluded,
                    failures,
                };
                let mut conn = state.platform.db.acquire().await?;
                let held = db::retry(&mut conn, work, &again).await?;
                return Ok(if held {
                    Outcome::Retried
                } else {
                    Outcome::Lost
                });
            }
            Next::Never { code, message } => Ending::Failed { code, message },
        },
    };
    let mut tx = state.platform.db.begin().await?;
    if !db::finish(&mut tx, work, now).await? {
        return Ok(Outcome::Lost);
    }
    let is_made = matches!(ending, Ending::Succeeded(_));
    if is_made && db::advance(&mut tx, work, ending.results(), now).await? {
        tx.commit().await?;
        state.work.wake();
        return Ok(Outcome::Advanced);
    }
    if !task::db::end(&mut tx, &work.task_id, &ending, now).await? {
        return Ok(Outcome::Lost);
    }
    tx.commit().await?;
    metrics::tasks_finished(ending.status(), 1);
    Ok(Outcome::Ended)
}

/// Renews the lease and tells the progress; ends when the job is no longer ours.
async fn lost(state: &Media, work: &Work, percent: &AtomicI16) {
    let lease = state.config.lease;
    let mut renewal = interval(lease / 3);
    let mut look = interval(PROGRESS_EVERY);
    renewal.tick().await;
    look.tick().await;
    let mut told = 0;
    loop {
        let held = tokio::select! {
            _ = renewal.tick() => renew(state, work, lease).await,
            _ = look.tick() => {
                let done = percent.load(Ordering::Relaxed);
                if done == told {
                    continue;
                }
                told = done;
                tell(state, work, done).await
            }
        };
        match held {
            Ok(true) => {}
            Ok(false) => return,
            // The number, not this renewal, keeps a late write out.
            Err(error) => {
                warn!(task.id = %work.task_id, "could not renew a lease: {}", causes(&error))
            }
        }
    }
}

async fn renew(state: &Media, work: &Work, lease: Duration) -> sqlx::Result<bool> {
    let mut conn = state.platform.db.acquire().await?;
    db::renew(&mut conn, work, lease).await
}

async fn tell(state: &Media, work: &Work, percent: i16) -> sqlx::Result<bool> {
    let mut conn = state.platform.db.acquire().await?;
    db::progress(&mut conn, work, percent, state.platform.clock.now()).await
}

async fn give_back(state: &Media, work: &Work) -> sqlx::Result<()> {
    let mut conn = state.platform.db.acquire().await?;
    // Only while the job is ours is it certain that no row names what we may have written.
    if db::give_back(&mut conn, work).await? {
        drop(conn);
        clear(state, work).await;
    }
    Ok(())
}

/// Deletes what a worker wrote under its number.
async fn clear(state: &Media, work: &Work) {
    let folder = result_folder(work);
    if let Err(error) = crate::upload::cleanup::empty(state, &folder, &[]).await {
        warn!(
            "the objects in {folder} wait for the cleanup: {}",
            causes(&error)
        );
    }
}
