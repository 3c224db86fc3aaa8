//! Replicas that do not agree on the time.

use testkit::{RedisServers, shifted};

use crate::audit::all_holds;
use crate::load::{Load, replicas};

#[tokio::test]
async fn a_clock_five_minutes_ahead_and_one_five_minutes_behind() -> anyhow::Result<()> {
    let redis = RedisServers::start(1, &[]).await?;
    let mut cluster = replicas()
        .redis(redis.server(0).url())
        .replicas(1)
        .start()
        .await?;
    cluster.add_replica_with(&[], shifted("+5m")?).await?;
    cluster.add_replica_with(&[], shifted("-5m")?).await?;

    // An order that one of them places is late, or early, for the others; what is paid too late is given back.
    let load = Load::start(&cluster).await?;
    load.goes_on(60).await;

    all_holds(&cluster, load).await
}
