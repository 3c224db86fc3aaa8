//! A single Redis that loses everything, dies, and comes back, with its data or without.

use fred::interfaces::ClientLike as _;
use testkit::RedisServers;

use crate::audit::all_holds;
use crate::load::{Load, replicas};

#[tokio::test]
async fn a_redis_that_is_emptied_again_and_again() -> anyhow::Result<()> {
    let cluster = replicas().start().await?;
    let redis = cluster.redis().await?;
    let load = Load::start(&cluster).await?;

    for _ in 0..12 {
        redis.flushall::<()>(false).await?;
        load.goes_on(4).await;
    }

    all_holds(&cluster, load).await
}

#[tokio::test]
async fn a_redis_that_restarts_empty_and_with_old_data() -> anyhow::Result<()> {
    let redis = RedisServers::start(1, &[]).await?;
    let server = redis.server(0);
    let cluster = replicas().redis(server.url()).start().await?;
    let load = Load::start(&cluster).await?;

    server.kill9();
    load.asks_on(10).await;
    server.start_again().await?;
    load.goes_on(20).await;

    // What it comes back with is older than what the database knows: leases of devices that are gone, tokens that were
    // given out again since.
    server.ask(&["save"]).await?;
    load.goes_on(20).await;
    server.kill9();
    load.asks_on(10).await;
    server.start_again().await?;

    all_holds(&cluster, load).await
}
