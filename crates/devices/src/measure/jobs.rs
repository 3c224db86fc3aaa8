//! The history grows coarser with its age, and ends.

use anyhow::Context;
use chrono::TimeDelta;
use contracts::Timestamp;
use tokio_util::sync::CancellationToken;

use super::db;
use crate::Devices;

const BATCH: i64 = 5_000;
/// How long after its moment a measurement is written at the latest, to be counted in.
const LATE: TimeDelta = TimeDelta::minutes(1);
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
    let mut complete = Timestamp::from(now.utc() - LATE);
    for [(finer, kept), (coarser, _)] in [[KEPT[0], KEPT[1]], [KEPT[1], KEPT[2]]] {
        let end = floor(complete, coarser);
        let since = floor(now - kept, coarser);
        complete = put_together(state, (finer, coarser), (since, end), cancelled)
            .await
            .with_context(|| format!("putting measurements together into steps of {coarser} s"))?;
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

/// Goes on from where it was left to the end, a span at a time; up to when it is done then.
async fn put_together(
    state: &Devices,
    steps: (i16, i16),
    (since, end): (Timestamp, Timestamp),
    cancelled: &CancellationToken,
) -> sqlx::Result<Timestamp> {
    loop {
        let mut tx = state.platform.db.begin().await?;
        // What is no longer kept cannot be put together.
        let from = db::lock_rolled_up(&mut tx, steps, end).await?.max(since);
        if from >= end || cancelled.is_cancelled() {
            return Ok(from.min(end));
        }
        let until = from + TimeDelta::seconds(steps.1.into());
        db::roll_up(&mut tx, steps, (from, until)).await?;
        tx.commit().await?;
    }
}

/// The beginning of the span of so many seconds that a moment is in.
fn floor(moment: Timestamp, seconds: i16) -> Timestamp {
    let (at, seconds) = (moment.utc().timestamp(), i64::from(seconds.max(1)));
    let begun = chrono::DateTime::from_timestamp(at - at.rem_euclid(seconds), 0);
    begun.map_or(moment, Timestamp::from)
}
