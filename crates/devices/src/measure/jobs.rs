//! The history grows coarser with its age, and ends.

use anyhow::Context;
use chrono::TimeDelta;
use contracts::Timestamp;
use tokio_util::sync::CancellationToken;

use super::db;
use crate::Devices;

const BATCH: i64 = 5_000;
/// Each step, and how long it is kept.
const KEPT: [(i16, TimeDelta); 3] = [
    (0, TimeDelta::hours(2)),
    (60, TimeDelta::hours(26)),
    (900, TimeDelta::days(8)),
];

/// Puts measurements together, and deletes those that are too old. What one run misses, a later one makes good as long as the
/// finer step is kept.
pub async fn tidy(state: &Devices, cancelled: &CancellationToken) -> anyhow::Result<()> {
    let now = {
        let mut conn = state.platform.db.acquire().await?;
        state.platform.clock.shared(&mut conn).await?
    };
    for ((finer, coarser), back) in [
        ((0, 60), TimeDelta::minutes(5)),
        ((60, 900), TimeDelta::minutes(45)),
    ] {
        let until = floor(now, coarser);
        let since = floor((until.utc() - back).into(), coarser);
        let mut conn = state.platform.db.acquire().await?;
        db::roll_up(&mut conn, (finer, coarser), (since, until))
            .await
            .context("putting measurements together")?;
    }
    for (step, kept) in KEPT {
        let before = Timestamp::from(now.utc() - kept);
        while !cancelled.is_cancelled() {
            let mut conn = state.platform.db.acquire().await?;
            let deleted = db::purge(&mut conn, step, before, BATCH).await;
            if deleted.context("deleting old measurements")? < BATCH as u64 {
                break;
            }
        }
    }
    Ok(())
}

/// The beginning of the span of so many seconds that a moment is in.
fn floor(moment: Timestamp, seconds: i16) -> Timestamp {
    let (at, seconds) = (moment.utc().timestamp(), i64::from(seconds.max(1)));
    let begun = chrono::DateTime::from_timestamp(at - at.rem_euclid(seconds), 0);
    begun.map_or(moment, Timestamp::from)
}
