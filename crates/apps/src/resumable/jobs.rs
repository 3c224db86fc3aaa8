//! What runs beside the requests: uploads whose replica died are assembled, those that were left are forgotten.

use futures::TryStreamExt;
use platform::lifecycle::Tick;
use tracing::info;

use super::{FOLDER, assemble, db};
use crate::Apps;
use crate::app::jobs::{AGE, BATCH};
use crate::app::upload::discard;

/// Assembles an upload that waits for it.
///
/// # Errors
/// Where a store does not answer.
pub async fn assemble(state: &Apps) -> anyhow::Result<Tick> {
    match assemble::assemble_next(state, None).await? {
        true => Ok(Tick::More),
        false => Ok(Tick::Idle),
    }
}

/// Deletes uploads that have expired, and parts of the past that no upload names.
///
/// # Errors
/// Where a store does not answer.
pub async fn sweep(state: &Apps) -> anyhow::Result<()> {
    let now = state.platform.clock.now();
    loop {
        let mut conn = state.platform.db.acquire().await?;
        let expired = db::expired(&mut conn, now, BATCH as i64).await?;
        let count = expired.len();
        for id in expired {
            for key in db::delete(&mut conn, &id).await?.unwrap_or_default() {
                discard(&state.objects, &key).await;
            }
        }
        if count < BATCH {
            break;
        }
    }
    let old = state.objects.written_before(FOLDER, now - AGE);
    let mut batches = std::pin::pin!(old.try_chunks(BATCH));
    while let Some(keys) = batches.try_next().await? {
        let mut conn = state.platform.db.acquire().await?;
        let orphans = db::without_part(&mut conn, &keys).await?;
        drop(conn);
        for key in orphans {
            state.objects.delete(&key).await?;
            info!("deleted the object {key}, which no upload names");
        }
    }
    Ok(())
}
