//! Redis Cluster: a master is lost, and its replica takes its slots.

use testkit::{RedisCluster, RedisServers};

use crate::audit::all_holds;
use crate::load::{Load, replicas};

#[tokio::test]
async fn a_cluster_that_loses_a_master() -> anyhow::Result<()> {
    let (redis, locks) = tokio::try_join!(RedisCluster::start(), RedisServers::start(1, &[]))?;
    let cluster = replicas()
        .redis(redis.url())
        .env("REDLOCK_URLS", locks.urls())
        .start()
        .await?;
    let load = Load::start(&cluster).await?;

    // The one that every allocation of a port needs.
    let lost = redis.master_of("cloudphone:port:{local}:index").await?;
    redis.node(lost).kill9();
    redis.serves_without(lost).await;
    load.goes_on(20).await;
    redis.node(lost).start_again().await?;
    redis.whole().await;

    all_holds(&cluster, load).await
}
