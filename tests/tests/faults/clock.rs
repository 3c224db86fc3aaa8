//! Replicas that do not agree on the time.

use testkit::{RedisServers, shifted};

use crate::audit::all_holds;
use crate::load::{Load, replicas};

#[tokio::test]
async fn a_clock_five_minutes_ahead_and_one_five_minutes_behind() -> anyhow::Result<()> {
    let redis = RedisServers::start(1, &[]).await?;
    let mut cluster = replicas()
        .redis(redis.server(0).url())
        // Longer than the clocks differ, or those behind could pay what those ahead call late.
        .env("BILLING_ORDER_MINUTES", "0.1")
        .replicas(1)
        .start()
        .await?;
    cluster.add_replica_with(&[], shifted("+5m")?).await?;
    cluster.add_replica_with(&[], shifted("-5m")?).await?;

    let load = Load::start(&cluster).await?;
    load.goes_on(60).await;

    all_holds(&cluster, load).await
}
