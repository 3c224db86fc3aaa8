//! The worker of a replica: it claims what is due, keeps what it holds, and says how it ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicI16, Ordering};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use contracts::{TaskId, UserId};
use platform::lifecycle::Phase;
use platform::objects::ObjectError;
use platform::problem::causes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{Work, claim, db, pause_after};
use crate::stitch::{self, StitchParams};
use crate::task::{self, Ending};
use crate::upload::MAX_SIZE;
use crate::{Media, metrics};

const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The task ended with it.
    Ended,
    /// It will be tried again.
    Retried,
    /// It was somebody else's by the time it was done, or the task had ended: nothing was changed.
    Lost,
}

/// Why an attempt made nothing.
#[derive(Debug)]
enum Fault {
    /// Trying again may help.
    Passing { code: &'static str, message: String },
    /// It does not.
    Lasting { code: &'static str, message: String },
}

/// Claims and does what is due until the process leaves. Then what runs may end within half of the grace; what does
/// not is given back.
///
/// # Errors
/// None: what fails is logged and done again when its lease is over.
pub async fn work(state: Media, stopping: CancellationToken) -> anyhow::Result<()> {
    let leaving = async {
        tokio::select! {
            () = stopping.cancelled() => {}
            () = state.platform.readiness.reached(Phase::Draining) => {}
        }
    };
    tokio::pin!(leaving);
    let giving_back = CancellationToken::new();
    let mut running = JoinSet::new();
    loop {
        let free = state.config.workers.saturating_sub(running.len());
        let mut found = 0;
        if free > 0 {
            match claim(&state, free).await {
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
            () = state.work.notified(), if free > found => {}
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
    let key = made.as_ref().ok().cloned();
    let outcome = settle(state, work, made).await;
    if let (Ok(Outcome::Lost), Some(key)) = (&outcome, key) {
        // Nobody else writes under our number, and the row does not name it.
        delete(state, &key).await;
    }
    let name = match &outcome {
        Ok(Outcome::Ended) => "ended",
        Ok(Outcome::Retried) => "retried",
        Ok(Outcome::Lost) => "lost",
        Err(_) => "failed",
    };
    metrics::claim_ended(name, began.elapsed());
    outcome
}

/// Where a worker writes: nobody else has its number, so none can spoil the file of another.
pub fn result_key(user: &UserId, task: &TaskId, fence: i64) -> String {
    format!("output/{user}/{task}/{fence}/0.jpg")
}

async fn settle(state: &Media, work: &Work, made: Result<String, Fault>) -> sqlx::Result<Outcome> {
    let now = state.platform.clock.now();
    let ending = match made {
        Ok(key) => Ending::Succeeded(vec![key]),
        Err(Fault::Lasting { code, message }) => Ending::Failed { code, message },
        Err(Fault::Passing { code, message }) => match pause_after(work.attempt) {
            Some(pause) => {
                warn!(task.id = %work.task_id, attempt = work.attempt, "task {} is tried again: {message}", work.task_id);
                let due = now + TimeDelta::from_std(pause).unwrap_or_default();
                let mut conn = state.platform.db.acquire().await?;
                let held = db::retry(&mut conn, work, due, &message).await?;
                return Ok(if held {
                    Outcome::Retried
                } else {
                    Outcome::Lost
                });
            }
            None => Ending::Failed { code, message },
        },
    };
    let mut tx = state.platform.db.begin().await?;
    if !db::finish(&mut tx, work, now).await?
        || !task::db::end(&mut tx, &work.task_id, &ending, now).await?
    {
        return Ok(Outcome::Lost);
    }
    tx.commit().await?;
    metrics::tasks_finished(ending.status(), 1);
    Ok(Outcome::Ended)
}

/// Makes the stitch and stores it; its key.
async fn make(state: &Media, work: &Work, percent: &AtomicI16) -> Result<String, Fault> {
    let params: StitchParams = serde_json::from_value(work.params.clone())
        .map_err(|error| lasting("INVALID", format!("its params cannot be read: {error}")))?;
    let closed = |_| passing("INTERNAL", "no core could be had".to_owned());
    let core = state.cores.clone().acquire_owned().await.map_err(closed)?;
    // Closures share the permit: one that runs on after its worker is gone still counts.
    let core = Arc::new(core);
    let inputs = &work.inputs[..work.inputs.len().min(params.cells())];
    let mut cells = Vec::with_capacity(inputs.len());
    for (index, key) in inputs.iter().enumerate() {
        let file = read(state, key, index).await?;
        let (side, background) = (params.cell, params.background);
        let cell = blocking(&core, move || stitch::cell(&file, side, background)).await?;
        let cell =
            cell.map_err(|error| lasting("INPUT_INVALID", format!("input {index} {error}")))?;
        cells.push(cell);
        let done = (index + 1) * 90 / inputs.len();
        percent.store(i16::try_from(done).unwrap_or_default(), Ordering::Relaxed);
    }
    let file = blocking(&core, move || stitch::compose(&params, &cells)).await?;
    let file = file.map_err(|error| {
        lasting(
            "INTERNAL",
            format!("the stitch could not be encoded: {error}"),
        )
    })?;
    let key = result_key(&work.user_id, &work.task_id, work.fence);
    let put = state.objects.put(&key, file.into()).await;
    put.map_err(|error| passing("STORAGE_DOWN", causes(&error)))?;
    Ok(key)
}

async fn read(state: &Media, key: &str, index: usize) -> Result<bytes::Bytes, Fault> {
    let refused = |error: ObjectError| match error.is_absent() {
        true => lasting("INPUT_MISSING", format!("input {index} is no longer there")),
        false => passing("STORAGE_DOWN", causes(&error)),
    };
    let object = state.objects.read(key, None).await.map_err(refused)?;
    if object.meta.size > MAX_SIZE as u64 {
        return Err(lasting(
            "INPUT_INVALID",
            format!("input {index} is larger than 10 MiB"),
        ));
    }
    let bytes = object.bytes().await;
    bytes.map_err(|error| passing("STORAGE_DOWN", error.to_string()))
}

/// Runs what keeps a core busy beside the tasks of the runtime.
async fn blocking<T: Send + 'static>(
    core: &Arc<OwnedSemaphorePermit>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Fault> {
    let core = core.clone();
    let done = spawn_blocking(move || {
        let made = work();
        drop(core);
        made
    });
    done.await
        .map_err(|_| passing("INTERNAL", "the work broke off".to_owned()))
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
        delete(state, &result_key(&work.user_id, &work.task_id, work.fence)).await;
    }
    Ok(())
}

async fn delete(state: &Media, key: &str) {
    if let Err(error) = state.objects.delete(key).await {
        warn!("the object {key} waits for the cleanup: {}", causes(&error));
    }
}

fn passing(code: &'static str, message: String) -> Fault {
    Fault::Passing { code, message }
}

fn lasting(code: &'static str, message: String) -> Fault {
    Fault::Lasting { code, message }
}
