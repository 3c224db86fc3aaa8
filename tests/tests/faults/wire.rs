//! A replica that reaches PostgreSQL but not Redis.

use std::time::Duration;

use testkit::{Proxy, RedisServers, Wire};

use crate::audit::all_holds;
use crate::load::{Load, every_lease_ends, replicas};

#[tokio::test]
async fn a_replica_without_redis_among_replicas_that_have_it() -> anyhow::Result<()> {
    let redis = RedisServers::start(1, &[]).await?;
    let wire = Proxy::start(redis.server(0).address())?;
    let mut cluster = replicas()
        .redis(redis.server(0).url())
        .replicas(2)
        .start()
        .await?;
    let url = format!("redis://{}", wire.address());
    cluster
        .add_replica_with(&[], [("REDIS_URL", &*url)])
        .await?;
    let load = Load::start(&cluster).await?;

    let (db, pid) = (cluster.database().await?, cluster.replica(2).pid());

    // Longer than slots, hosts and locks live: the others take its place, and it must not believe that it has it still.
    for fault in [Wire::Cut, Wire::Stalled] {
        wire.set(fault);
        load.meanwhile(every_lease_ends(&db, pid)).await?;
        load.goes_on(10).await;
        wire.set(Wire::Whole);
        load.goes_on(10).await;
    }
    // Slower than many a deadline, and not silent.
    wire.set(Wire::Slow(Duration::from_millis(400)));
    load.goes_on(20).await;
    wire.set(Wire::Whole);

    all_holds(&cluster, load).await
}
