//! The deletion of files that nobody needs any more, in bounded batches. Each step may be done twice.

use anyhow::Context;
use chrono::TimeDelta;
use futures::TryStreamExt;
use platform::objects::ObjectError;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{KEPT, db, object_key};
use crate::job::worker::task_folder;
use crate::{Media, job, metrics};

const BATCH: i64 = 200;
/// How long after its end something may still be in use by a call that began before.
const MARGIN: TimeDelta = TimeDelta::minutes(10);

/// Deletes until nothing is left or the run must end.
///
/// # Errors
/// Where a store does not answer; the next run goes on.
pub async fn run(state: &Media, cancelled: &CancellationToken) -> anyhow::Result<()> {
    while !cancelled.is_cancelled() && uploads(state).await.context("deleting uploads")? {}
    let mut conn = state.platform.db.acquire().await?;
    db::delete_links(&mut conn, state.platform.clock.now()).await?;
    drop(conn);
    while !cancelled.is_cancelled() && lost_results(state).await.context("deleting lost results")? {
    }
    Ok(())
}

/// Deletes a batch of uploads, files first: a row without a file is found again, a file without a row never. Whether
/// there may be more.
async fn uploads(state: &Media) -> anyhow::Result<bool> {
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    let found = db::leftovers(&mut conn, now - MARGIN, now - KEPT - MARGIN, BATCH).await?;
    drop(conn);
    let mut files = 0;
    for leftover in &found {
        for attempt in 1..=leftover.tries {
            state
                .objects
                .delete(&object_key(&leftover.key, attempt))
                .await?;
            files += 1;
        }
    }
    let keys: Vec<_> = found.into_iter().map(|one| one.key).collect();
    let mut conn = state.platform.db.acquire().await?;
    db::delete(&mut conn, &keys).await?;
    if !keys.is_empty() {
        metrics::objects_deleted("input", files);
        info!("deleted {} uploads", keys.len());
    }
    Ok(keys.len() as i64 == BATCH)
}

/// Deletes what workers wrote that lost their claim and died before they could delete it. Whether there may be more.
async fn lost_results(state: &Media) -> anyhow::Result<bool> {
    let before = state.platform.clock.now() - MARGIN;
    let mut conn = state.platform.db.acquire().await?;
    let ended = job::db::unswept(&mut conn, before, BATCH).await?;
    drop(conn);
    for job in &ended {
        empty(
            state,
            &task_folder(&job.user_id, &job.task_id),
            &job.results,
        )
        .await?;
    }
    let ids: Vec<_> = ended.iter().map(|job| job.id).collect();
    let mut conn = state.platform.db.acquire().await?;
    job::db::set_swept(&mut conn, &ids).await?;
    Ok(ids.len() as i64 == BATCH)
}

/// Deletes the objects of a folder but for those that are kept.
///
/// # Errors
/// Where the store does not answer.
pub async fn empty(state: &Media, folder: &str, kept: &[String]) -> Result<(), ObjectError> {
    let far = state.platform.clock.now() + TimeDelta::days(36_500);
    let found: Vec<String> = state
        .objects
        .written_before(folder, far)
        .try_collect()
        .await?;
    for key in found.iter().filter(|key| !kept.contains(key)) {
        state.objects.delete(key).await?;
    }
    Ok(())
}
