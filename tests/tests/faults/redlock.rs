//! Redlock: masters for locks that go and come back.

use anyhow::ensure;
use cluster_tests::PATIENCE;
use sqlx::PgPool;
use testkit::{RedisServers, eventually};
use tokio::time::{Duration, sleep};

use crate::audit::all_holds;
use crate::load::{Load, replicas, until};

#[tokio::test]
async fn a_quorum_of_lock_masters_that_is_lost_and_found() -> anyhow::Result<()> {
    let locks = RedisServers::start(3, &[]).await?;
    let cluster = replicas().env("REDLOCK_URLS", locks.urls()).start().await?;
    let load = Load::start(&cluster).await?;
    let db = cluster.database().await?;

    // Two of three answer: a cron runs on.
    locks.server(0).kill9();
    let before = last_slot(&db).await?;
    until("a cron runs with two lock masters", async || {
        let last = last_slot(&db).await?;
        ensure!(last > before + 4, "{last} after {before}");
        Ok(())
    })
    .await;

    // One of three: nothing runs once the last holder has noticed, while everything else goes on.
    locks.server(1).kill9();
    eventually(PATIENCE, "no cron begins without a quorum", async || {
        let before = last_slot(&db).await?;
        sleep(Duration::from_secs(4)).await;
        let after = last_slot(&db).await?;
        ensure!(before == after, "{before} to {after}");
        Ok(())
    })
    .await;
    load.goes_on(10).await;

    locks.server(0).start_again().await?;
    let before = last_slot(&db).await?;
    until("a cron runs again with two lock masters", async || {
        let last = last_slot(&db).await?;
        ensure!(last > before + 4, "{last} after {before}");
        Ok(())
    })
    .await;

    all_holds(&cluster, load).await
}

/// The last slot that was begun, in seconds.
async fn last_slot(db: &PgPool) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "select coalesce(extract(epoch from max(slot))::bigint, 0) from coordination.cron_runs
            where job = 'cancel-expired-orders'",
    )
    .fetch_one(db)
    .await
}
