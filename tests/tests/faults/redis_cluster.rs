//! Redis Cluster: a master is lost, and its replica takes its slots.

use testkit::{RedisCluster, RedisServers};

use crate::audit::all_holds;
use crate::load::under_load;

#[tokio::test]
async fn a_cluster_that_loses_a_master() -> anyhow::Result<()> {
    let (redis, locks) = tokio::try_join!(RedisCluster::start(1), RedisServers::start(1, &[]))?;
    let (cluster, load) = under_load(redis.url(), &locks).await?;

    // The one that every allocation of a port needs.
    let lost = redis.master_of("cloudphone:port:{local}:index").await?;
    redis.node(lost).kill9();
    load.meanwhile(redis.serves_without(lost)).await;
    load.goes_on(20).await;
    redis.node(lost).start_again().await?;
    redis.whole().await;

    all_holds(&cluster, load).await
}

#[tokio::test]
async fn a_cluster_without_replicas_that_loses_a_master_and_gets_it_back() -> anyhow::Result<()> {
    let (redis, locks) = tokio::try_join!(RedisCluster::start(0), RedisServers::start(1, &[]))?;
    let (cluster, load) = under_load(redis.url(), &locks).await?;

    // Without it no slot is served; it comes back empty.
    let lost = redis.master_of("cloudphone:port:{local}:index").await?;
    redis.node(lost).kill9();
    // Payments need no Redis.
    load.goes_on(10).await;
    redis.node(lost).start_again().await?;
    redis.whole().await;

    all_holds(&cluster, load).await
}
