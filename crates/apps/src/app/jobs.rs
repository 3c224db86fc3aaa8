//! Sweeps away objects without an app: a replica died between the object and its row, or after the row.

use chrono::TimeDelta;
use contracts::Timestamp;
use futures::TryStreamExt;
use tracing::info;

use super::{db, icon, upload};
use crate::Apps;

/// An upload writes the row right after the object; so long it takes in no case.
pub const AGE: TimeDelta = TimeDelta::days(1);
/// How many are looked at together.
pub const BATCH: usize = 200;

/// Deletes objects of the past that no app names.
///
/// # Errors
/// Where a store does not answer.
pub async fn sweep(state: &Apps) -> anyhow::Result<()> {
    let before = state.platform.clock.now() - AGE;
    for folder in [upload::FOLDER, icon::FOLDER] {
        sweep_folder(state, folder, before).await?;
    }
    Ok(())
}

async fn sweep_folder(state: &Apps, folder: &str, before: Timestamp) -> anyhow::Result<()> {
    let old = state.objects.written_before(folder, before);
    let mut batches = std::pin::pin!(old.try_chunks(BATCH));
    while let Some(keys) = batches.try_next().await? {
        let mut conn = state.platform.db.acquire().await?;
        let orphans = db::without_app(&mut conn, &keys).await?;
        drop(conn);
        for key in orphans {
            state.objects.delete(&key).await?;
            info!("deleted the object {key}, which no app names");
        }
    }
    Ok(())
}
