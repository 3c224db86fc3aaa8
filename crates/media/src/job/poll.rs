//! Asking providers how it goes. A due question is claimed by putting it off: whoever claims it and dies is followed by
//! another replica some seconds later, and nobody owns a part of them.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use contracts::TaskId;
use futures::future::join_all;
use platform::lifecycle::Tick;
use tracing::{debug, warn};

use super::db;
use super::remote::ask_after;
use crate::task::TaskType;
use crate::{Media, metrics};

/// The most questions at once on a replica.
const BATCH: i64 = 32;
/// How long a claimed question is left alone; longer than a call takes.
const CLAIM: TimeDelta = TimeDelta::seconds(15);
/// The longest pause after questions without an answer.
const LONGEST: TimeDelta = TimeDelta::seconds(60);

/// A step that a provider has taken.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Taken {
    /// The job.
    pub id: i64,
    /// Its task.
    pub task_id: TaskId,
    /// What it makes.
    #[sqlx(rename = "type")]
    pub kind: TaskType,
    /// Who has it.
    pub provider: String,
    /// How it is named there.
    pub reference: String,
    /// Questions without an answer, in a row.
    pub failures: i16,
    /// Seconds since the task was created.
    pub age: f64,
}

/// Asks about the steps that are due, each provider once for all of its own.
///
/// # Errors
/// Where the database does not answer.
pub async fn poll(state: &Media) -> anyhow::Result<Tick> {
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    let due = db::claim_questions(&mut conn, now, now + CLAIM, BATCH).await?;
    drop(conn);
    let count = due.len();
    let mut by_provider = BTreeMap::<String, Vec<Taken>>::new();
    for taken in due {
        by_provider
            .entry(taken.provider.clone())
            .or_default()
            .push(taken);
    }
    let asked = by_provider
        .into_iter()
        .map(|(name, taken)| ask(state, name, taken));
    for outcome in join_all(asked).await {
        outcome?;
    }
    Ok(Tick::after_batch(count, BATCH))
}

async fn ask(state: &Media, name: String, taken: Vec<Taken>) -> sqlx::Result<()> {
    let Some(provider) = state.providers.find(&name) else {
        warn!(
            "provider {name} is no longer configured, and has {} steps",
            taken.len()
        );
        return Ok(());
    };
    let ids: Vec<_> = taken.iter().map(|one| one.reference.as_str()).collect();
    let answer = provider.query(&ids).await;
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    let reports = match answer {
        Ok(reports) => reports,
        Err(refusal) => {
            debug!(
                "provider {name} does not say how {} steps go: {refusal}",
                taken.len()
            );
            Vec::new()
        }
    };
    for one in &taken {
        let age = TimeDelta::milliseconds((one.age * 1000.0) as i64);
        let pause = ask_after(one.kind, age);
        match reports.iter().find(|report| report.id == one.reference) {
            Some(report) if report.is_final() => {
                if db::report(&mut conn, one.id, report, now).await? {
                    state.work.wake();
                }
            }
            Some(report) => db::goes_on(&mut conn, one.id, Some(report), now + pause, now).await?,
            // An answer without it, or none: it may be there the next time, and the deadline is the bound.
            None => {
                let failures = i32::from(one.failures.min(10));
                let pause = (pause * 2_i32.pow(failures.unsigned_abs())).min(LONGEST.max(pause));
                db::goes_on(&mut conn, one.id, None, now + pause, now).await?;
            }
        }
    }
    metrics::polled(&name, taken.len());
    Ok(())
}

/// Tells providers of steps that nobody wants any more, a few times each.
///
/// # Errors
/// Where the database does not answer.
pub async fn withdraw(state: &Media) -> anyhow::Result<Tick> {
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    let due = db::claim_withdrawals(&mut conn, now, BATCH).await?;
    drop(conn);
    for one in &due {
        let Some(provider) = state.providers.find(&one.provider) else {
            continue;
        };
        let reference = format!("{}-{}", one.task_id, one.step_index);
        match provider.cancel(&reference, one.reference.as_deref()).await {
            Ok(()) => {
                let mut conn = state.platform.db.acquire().await?;
                db::withdrawn(&mut conn, one.id).await?;
            }
            Err(refusal) => debug!(task.id = %one.task_id, "a step was not withdrawn: {refusal}"),
        }
    }
    Ok(Tick::after_batch(due.len(), BATCH))
}
