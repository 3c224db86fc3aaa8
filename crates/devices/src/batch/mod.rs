//! Many devices in one call: each is checked and done alone, a few at a time, and what became of each is told.

pub mod api;
pub mod commands;
pub mod create;
pub mod progress;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use contracts::{DeviceId, TaskId, UserId};
use futures::StreamExt;
use platform::Problem;
use platform::problem::causes;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use crate::Devices;
use crate::error::Error;
use progress::Progress;

/// How many devices one call may name.
pub const MOST: usize = 500;
/// How many of them a replica works on at a time, of all calls together: each takes a connection of the pool.
pub const MOST_AT_ONCE: usize = 8;
/// How long a call goes on with further devices, below the 8 s within which it is answered.
pub const PATIENCE: Duration = Duration::from_millis(6_500);
/// How long what is begun may go on after that.
const GRACE: Duration = Duration::from_secs(1);
/// What is told of an item that was begun and was not over in time.
const UNKNOWN: &str =
    "not known whether it was done: see the device, or ask again with the same Idempotency-Key";
/// What is told of an item that was not begun.
pub const NOT_REACHED: &str = "not reached in time; try again";

/// What became of one device.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The device; absent where none came into being.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_id: Option<DeviceId>,
    /// The name of a device that was to be made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether what was asked for was accepted.
    pub success: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What a command printed, and how it ended.
    #[serde(flatten)]
    pub said: Option<Said>,
    /// The code by which programs tell that apart, as an answer of its own would have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// The name of the operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saga_id: Option<String>,
    /// Why not, as an answer of its own.
    #[serde(skip)]
    pub problem: Option<Problem>,
}

/// What became of all of them, in the order of the request.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    total: usize,
    succeeded: usize,
    failed: usize,
    results: Vec<Outcome>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    saga_ids: Vec<String>,
    /// By it progress is told on the user's socket, where what was accepted is done later.
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_id: Option<TaskId>,
    /// Milliseconds.
    duration: u64,
    message: String,
}

/// One thing to be done: with a device that exists, or with one that is to be made under a name.
#[derive(Clone, Debug)]
pub enum Item {
    /// A device that exists, or is thought to.
    Device(DeviceId),
    /// The name of one to be made.
    New(String),
}

/// What an item came to.
#[derive(Debug)]
pub struct Done {
    /// The device.
    pub device: DeviceId,
    /// The name of the operation.
    pub saga: Option<String>,
    /// What a command printed, and how it ended.
    pub said: Option<Said>,
    /// Why it failed, although the device answered.
    pub fault: Option<String>,
}

/// What a command printed on a device, and how it ended.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Said {
    /// What it printed on both of its outputs, 16 KiB at most.
    pub output: String,
    /// Its exit code; -1 where it was cut off.
    pub exit_code: i32,
    /// Whether it printed more.
    pub truncated: bool,
}

/// How many items this replica works on at a time, of all calls together. Clones share it.
#[derive(Clone, Debug)]
pub struct Room {
    turns: Arc<Semaphore>,
    most: usize,
}

impl Room {
    /// Room for so many.
    pub fn new(most: usize) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(most)),
            most,
        }
    }
}

impl Done {
    /// What was asked for was accepted as an operation, if there is anything to be done.
    pub fn accepted(device: DeviceId, saga: Option<String>) -> Self {
        Self {
            device,
            saga,
            said: None,
            fault: None,
        }
    }
}

/// Does something with each item, `at_once` at a time as far as there is room, and tells the user how it goes. Items that are not reached in time
/// are told as failed, and nothing was done with them; one under way is ended in order.
pub async fn each<F, W>(
    state: &Devices,
    (user, operation): (&UserId, &'static str),
    items: Vec<Item>,
    (room, at_once): (&Room, usize),
    work: W,
) -> Report
where
    W: Fn(Item) -> F,
    F: Future<Output = Result<Done, Error>>,
{
    let began = Instant::now();
    let until = began + PATIENCE;
    let progress = Progress::new(state, user, operation, items.len());
    let doing = items.into_iter().enumerate().map(|(index, item)| {
        let (device_id, name) = match &item {
            Item::Device(id) => (Some(id.clone()), None),
            Item::New(name) => (None, Some(name.clone())),
        };
        let mut outcome = Outcome {
            device_id,
            name,
            success: false,
            error: None,
            said: None,
            code: None,
            saga_id: None,
            problem: None,
        };
        let working = work(item);
        let progress = &progress;
        async move {
            // A future that was never polled has done nothing.
            let turn = timeout_at(until, room.turns.acquire()).await;
            let done = match turn {
                // The answer must not come too late for all of them.
                Ok(Ok(_permit)) if Instant::now() < until => timeout_at(until + GRACE, working)
                    .await
                    .map_err(|_| UNKNOWN),
                // Its turn did not come; the semaphore is never closed.
                Ok(_) | Err(_) => Err(NOT_REACHED),
            };
            match done {
                Ok(Ok(done)) => {
                    outcome.success = done.fault.is_none();
                    outcome.code = done.fault.is_some().then_some("CONFLICT");
                    outcome.error = done.fault;
                    outcome.device_id = Some(done.device);
                    outcome.saga_id = done.saga;
                    outcome.said = done.said;
                }
                Ok(Err(error)) => {
                    let problem = told(&error);
                    outcome.error = Some(problem.message().to_owned());
                    outcome.code = Some(problem.code());
                    outcome.problem = Some(problem);
                }
                Err(why) => {
                    outcome.error = Some(why.to_owned());
                    // Who reads NOT_READY asks again, which may do it twice where it is not known.
                    outcome.code = Some(match why {
                        UNKNOWN => "UPSTREAM_TIMEOUT",
                        _ => "NOT_READY",
                    });
                }
            }
            progress.one(outcome.success).await;
            (index, outcome)
        }
    });
    let at_once = at_once.clamp(1, room.most);
    let doing = futures::stream::iter(doing).buffer_unordered(at_once);
    let mut outcomes: Vec<(usize, Outcome)> = doing.collect().await;
    outcomes.sort_unstable_by_key(|(index, _)| *index);
    let results: Vec<Outcome> = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
    let mut report = Report::new(results, began);
    report.message = format!(
        "{operation}: {} of {} succeeded",
        report.succeeded, report.total
    );
    report
}

impl Report {
    fn new(results: Vec<Outcome>, began: Instant) -> Self {
        let succeeded = results.iter().filter(|outcome| outcome.success).count();
        let sagas = results.iter().filter_map(|outcome| outcome.saga_id.clone());
        Self {
            total: results.len(),
            succeeded,
            failed: results.len() - succeeded,
            saga_ids: sagas.collect(),
            batch_id: None,
            duration: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            message: String::new(),
            results,
        }
    }

    /// What was queued, to be done later.
    pub fn queued(
        operation: &str,
        batch_id: TaskId,
        results: Vec<Outcome>,
        began: Instant,
    ) -> Self {
        let mut report = Self::new(results, began);
        report.batch_id = Some(batch_id);
        report.message = format!(
            "{operation}: {} of {} are queued",
            report.succeeded, report.total
        );
        report
    }

    /// The devices that it succeeded with.
    pub fn devices(&self) -> Vec<&str> {
        let succeeded = self.results.iter().filter(|outcome| outcome.success);
        let devices = succeeded.filter_map(|outcome| outcome.device_id.as_ref());
        devices.map(DeviceId::as_str).collect()
    }

    /// Why the first of those failed that did.
    pub fn first_problem(&self) -> Option<Problem> {
        self.results
            .iter()
            .find_map(|outcome| outcome.problem.clone())
    }
}

/// What a client is told of an error.
pub fn told(error: &Error) -> Problem {
    let problem = error.problem();
    if problem.status().is_server_error() {
        warn!("an item of a batch failed: {}", causes(error));
    }
    problem
}
