//! Deletes what nobody asks for any more: operations that are over, runs and hours of long ago.

use anyhow::Context;
use chrono::TimeDelta;
use contracts::Timestamp;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::{Devices, installation};

/// How many rows one statement deletes.
const BATCH: i64 = 500;
/// How long runs are kept: quotas count those of the month, bills are made of hours.
const RUNS: TimeDelta = TimeDelta::days(62);
const USAGE: TimeDelta = TimeDelta::days(400);

/// Clears batch by batch, until nothing is left or the run must end.
pub async fn clear(state: &Devices, cancelled: &CancellationToken) -> anyhow::Result<()> {
    while !cancelled.is_cancelled() {
        let mut conn = state.platform.db.acquire().await?;
        let now = state.platform.clock.shared(&mut conn).await?;
        let before = |span: TimeDelta| Timestamp::from(now.utc() - span);
        let over = before(TimeDelta::days(state.config.operation_days));
        let deleted = [
            operations(&mut conn, over)
                .await
                .context("deleting operations that are over")?,
            installation::db::clear(&mut conn, over, BATCH)
                .await
                .context("deleting installations that are over")?,
            runs(&mut conn, before(RUNS))
                .await
                .context("deleting runs of long ago")?,
            usage(&mut conn, before(USAGE))
                .await
                .context("deleting hours of long ago")?,
        ];
        if deleted.into_iter().all(|rows| rows < BATCH as u64) {
            break;
        }
    }
    Ok(())
}

/// A move stays as long as its node keeps what it left there: the row says whose that is, and that it may be all there is.
async fn operations(conn: &mut PgConnection, before: Timestamp) -> sqlx::Result<u64> {
    let delete = sqlx::query(
        "delete from devices.operations where id in (
            select o.id from devices.operations o where finished_at < $1 and state in ('done', 'failed', 'cancelled')
                and not exists (
                    select 1 from devices.moves m
                        join devices.leftovers l on l.node = m.source and l.device_id = m.device_id
                    where m.operation_id = o.id)
            order by finished_at limit $2 for update skip locked)",
    );
    let done = delete.bind(before).bind(BATCH).execute(conn).await?;
    Ok(done.rows_affected())
}

async fn runs(conn: &mut PgConnection, before: Timestamp) -> sqlx::Result<u64> {
    let delete = sqlx::query(
        "delete from devices.runs where (device_id, began_at) in (
            select device_id, began_at from devices.runs where ended_at < $1 order by ended_at limit $2 for update skip locked)",
    );
    let done = delete.bind(before).bind(BATCH).execute(conn).await?;
    Ok(done.rows_affected())
}

async fn usage(conn: &mut PgConnection, before: Timestamp) -> sqlx::Result<u64> {
    let delete = sqlx::query(
        "delete from devices.usage where (device_id, began_at) in (
            select device_id, began_at from devices.usage where began_at < $1 order by began_at limit $2 for update skip locked)",
    );
    let done = delete.bind(before).bind(BATCH).execute(conn).await?;
    Ok(done.rows_affected())
}
