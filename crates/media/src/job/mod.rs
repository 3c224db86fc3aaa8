//! Jobs: the work on a step, leased by one worker at a time, with a number that makes late writes void.

pub mod api;
pub mod db;
mod local;
pub mod poll;
mod remote;
mod retry;
pub mod worker;

use std::time::Duration;

use chrono::TimeDelta;
use contracts::{TaskId, UserId};
use platform::lifecycle::Tick;
use rand::RngExt;
use serde_json::Value;
use tracing::info;

pub use remote::is_url;

use crate::provider::Report;
use crate::task::{self, Ending, TaskStatus, TaskType};
use crate::{Media, metrics};

/// The most jobs a worker claims at a time.
const CLAIM_BATCH: usize = 20;
const EXPIRE_BATCH: i64 = 50;
/// How long a task may wait for somebody to begin it.
const STALE: TimeDelta = TimeDelta::minutes(10);
/// The pauses before the second, third and fourth attempt.
const PAUSES: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(25),
];

/// A job that a worker holds, with what it needs to do it.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Work {
    /// The job.
    pub id: i64,
    /// What every write has to name.
    pub fence: i64,
    /// Which attempt this is, from 1.
    pub attempt: i16,
    /// The task it is for.
    pub task_id: TaskId,
    /// Its place among the steps of the task.
    pub step_index: i16,
    /// What it makes.
    #[sqlx(rename = "type")]
    pub kind: TaskType,
    /// Whose task it is.
    pub user_id: UserId,
    /// How it is made.
    pub params: Value,
    /// Keys of the objects it is made from.
    pub inputs: Vec<String>,
    /// Who was, or was about to be, asked to do it.
    pub provider: Option<String>,
    /// Providers that surely did not take it.
    pub excluded: Vec<String>,
    /// Failures in a row at the provider.
    pub failures: i16,
    /// How it went there.
    #[sqlx(json(nullable))]
    pub reported: Option<Report>,
    /// Why the last attempt failed.
    pub error: Option<String>,
}

/// Where most of the work on a job is done. Each has workers of its own, so that a provider that does not answer keeps no
/// core from what can be made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// On a core of this process.
    Here,
    /// At a provider, which is called.
    Elsewhere,
}

/// What an attempt led to.
#[derive(Clone, Debug)]
pub enum Made {
    /// The step is done; the keys of the objects.
    Files(Vec<String>),
    /// A provider has taken it; how it names it.
    Accepted(String),
}

/// Why an attempt led to nothing.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Trying again may help.
    Passing {
        /// For programs.
        code: &'static str,
        /// For people.
        message: String,
    },
    /// It does not.
    Lasting {
        /// For programs.
        code: &'static str,
        /// For people.
        message: String,
    },
    /// The provider surely did not take it.
    NotTaken {
        /// For people.
        message: String,
        /// Who was asked, where that is not in the row of the job.
        provider: Option<String>,
    },
    /// It may have.
    Unclear {
        /// For people.
        message: String,
        /// Who was asked, where that is not in the row of the job.
        provider: Option<String>,
    },
    /// It surely did not, and was asked often enough.
    Elsewhere {
        /// For people.
        message: String,
        /// Who was asked, where that is not in the row of the job.
        provider: Option<String>,
    },
    /// Every provider has its fill, or rests.
    Busy,
}

impl Fault {
    /// Trying again may help.
    pub fn passing(code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self::Passing { code, message }
    }

    /// Trying again does not help.
    pub fn lasting(code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self::Lasting { code, message }
    }

    /// A provider may have taken it.
    pub fn unclear(message: impl Into<String>) -> Self {
        let message = message.into();
        Self::Unclear {
            message,
            provider: None,
        }
    }
}

/// Claims due jobs, at most `most`: the higher class first, within a class the users in turn, none of them more than
/// its share. The share is a rule of fairness: claims at the same moment may exceed it by a job that came between them.
///
/// # Errors
/// Where the database does not answer.
pub async fn claim(state: &Media, most: usize) -> sqlx::Result<Vec<Work>> {
    claim_of(state, most, None).await
}

async fn claim_of(state: &Media, most: usize, lane: Option<Lane>) -> sqlx::Result<Vec<Work>> {
    let owner = state.platform.instance(contracts::Service::Media);
    let bounds = db::Bounds {
        most: i64::try_from(most.min(CLAIM_BATCH)).unwrap_or_default(),
        a_user: state.config.user_running,
        lease: state.config.lease,
        lane,
    };
    let mut conn = state.platform.db.acquire().await?;
    db::claim(&mut conn, &owner, &bounds, state.platform.clock.now()).await
}

/// Ends tasks whose deadline passed, whether somebody is at work on them or not.
///
/// # Errors
/// Where the database does not answer.
pub async fn expire(state: &Media) -> anyhow::Result<Tick> {
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    let late = db::kill_late(&mut tx, now, EXPIRE_BATCH).await?;
    for id in &late {
        task::db::end(&mut tx, id, &Ending::Expired, now).await?;
    }
    tx.commit().await?;
    if !late.is_empty() {
        metrics::tasks_finished(TaskStatus::Expired, late.len());
        info!("{} tasks passed their deadline", late.len());
    }
    Ok(Tick::after_batch(late.len(), EXPIRE_BATCH))
}

/// Fails tasks that nobody began within ten minutes, or that nobody can end.
///
/// # Errors
/// Where the database does not answer.
pub async fn end_stale(state: &Media) -> anyhow::Result<()> {
    let now = state.platform.clock.now();
    loop {
        let mut tx = state.platform.db.begin().await?;
        let stale = db::kill_stale(&mut tx, now - STALE, now, EXPIRE_BATCH).await?;
        let ending = Ending::Failed {
            code: "STALE",
            message: "nobody began it within ten minutes".to_owned(),
        };
        for id in &stale {
            task::db::end(&mut tx, id, &ending, now).await?;
        }
        tx.commit().await?;
        metrics::tasks_finished(TaskStatus::Failed, stale.len());
        if (stale.len() as i64) < EXPIRE_BATCH {
            return Ok(());
        }
    }
}

/// Writes up what ended, by the hour.
///
/// # Errors
/// Where the database does not answer.
pub async fn roll_up(state: &Media) -> anyhow::Result<()> {
    let mut tx = state.platform.db.begin().await?;
    db::roll_up(&mut tx, state.platform.clock.now()).await?;
    tx.commit().await?;
    Ok(())
}

/// How long to wait after an attempt that failed, give or take a fifth; `None` where there is no further one.
pub fn pause_after(attempt: i16) -> Option<Duration> {
    let index = usize::try_from(attempt).ok()?.checked_sub(1)?;
    let pause = PAUSES.get(index)?;
    Some(pause.mul_f64(rand::rng().random_range(0.8..1.2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_further_attempts_are_made_each_after_a_longer_pause() {
        for (attempt, seconds) in [(1, 1.0), (2, 5.0), (3, 25.0)] {
            let pause = pause_after(attempt).unwrap().as_secs_f64();
            assert!((seconds * 0.8..=seconds * 1.2).contains(&pause), "{pause}");
        }
        assert_eq!((pause_after(4), pause_after(0)), (None, None));
    }
}
