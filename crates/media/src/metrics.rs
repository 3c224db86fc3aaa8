//! What is counted.

use std::time::Duration;

use metrics::{counter, histogram};

use crate::task::{TaskStatus, TaskType};

/// Counts a task that was taken in.
pub fn task_created(kind: TaskType) {
    counter!("media_tasks_created_total", "type" => kind.name()).increment(1);
}

/// Counts tasks that came to an end.
pub fn tasks_finished(status: TaskStatus, count: usize) {
    counter!("media_tasks_finished_total", "status" => status.name()).increment(count as u64);
}

/// Counts what became of a claim.
pub fn claim_ended(outcome: &'static str, took: Duration) {
    counter!("media_claims_total", "outcome" => outcome).increment(1);
    histogram!("media_claim_seconds", "outcome" => outcome).record(took);
}

/// Counts files that were deleted.
pub fn objects_deleted(reason: &'static str, count: usize) {
    counter!("media_objects_deleted_total", "reason" => reason).increment(count as u64);
}

/// Counts questions to a provider.
pub fn polled(provider: &str, count: usize) {
    counter!("media_polls_total", "provider" => provider.to_owned()).increment(count as u64);
}

/// Counts reports of providers.
pub fn callback(outcome: &'static str) {
    counter!("media_callbacks_total", "outcome" => outcome).increment(1);
}
