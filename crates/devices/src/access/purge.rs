//! Forgets tickets of which nothing can come any more.

use platform::lifecycle::Tick;

use super::db;
use crate::Devices;

const BATCH: i64 = 500;

/// Forgets a batch.
///
/// # Errors
/// Where the database does not answer.
pub async fn purge(state: &Devices) -> anyhow::Result<Tick> {
    let mut conn = state.platform.db.acquire().await?;
    let gone = db::purge(&mut conn, BATCH).await?;
    Ok(Tick::after_batch(usize::try_from(gone)?, BATCH))
}
