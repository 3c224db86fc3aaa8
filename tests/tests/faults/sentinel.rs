//! Redis under Sentinel: the master changes.

use anyhow::ensure;
use testkit::{RedisServers, Sentinels};
use tokio::time::{Duration, sleep};

use crate::audit::all_holds;
use crate::load::{Load, replicas, until};

#[tokio::test]
async fn a_master_that_is_killed() -> anyhow::Result<()> {
    let (redis, locks) = tokio::try_join!(Sentinels::start(&[]), RedisServers::start(1, &[]))?;
    let cluster = replicas()
        .redis(redis.url())
        .env("REDLOCK_URLS", locks.urls())
        .start()
        .await?;
    let load = Load::start(&cluster).await?;

    let (master, _) = redis.roles().await?;
    master.kill9();
    redis.switched_from(master.address()).await?;
    load.goes_on(20).await;
    // It comes back as the replica of its successor.
    master.start_again().await?;
    redis.agree().await;

    all_holds(&cluster, load).await
}

#[tokio::test]
async fn a_failover_that_was_planned() -> anyhow::Result<()> {
    let (redis, locks) = tokio::try_join!(Sentinels::start(&[]), RedisServers::start(1, &[]))?;
    let cluster = replicas()
        .redis(redis.url())
        .env("REDLOCK_URLS", locks.urls())
        .start()
        .await?;
    let load = Load::start(&cluster).await?;

    for turn in 1..=2 {
        redis.fail_over().await?;
        // They do not wait until Sentinel cuts them off from the old master, which takes ten seconds.
        for replica in cluster.replicas() {
            until("every replica follows at once", async || {
                let told = replica.logs_containing("names another Redis master").len();
                ensure!(told >= turn, "{told}");
                Ok(())
            })
            .await;
        }
        load.goes_on(10).await;
        redis.agree().await;
    }

    all_holds(&cluster, load).await
}

#[tokio::test]
async fn a_master_that_clients_still_write_to_after_its_successor_serves() -> anyhow::Result<()> {
    let (redis, locks) = tokio::try_join!(Sentinels::start(&[]), RedisServers::start(1, &[]))?;
    let cluster = replicas()
        .redis(redis.url())
        .env("REDLOCK_URLS", locks.urls())
        .start()
        .await?;
    let load = Load::start(&cluster).await?;

    // For three seconds there are two masters: one that the clients know, one that the sentinels will name.
    let (_, replica) = redis.roles().await?;
    replica.ask(&["replicaof", "no", "one"]).await?;
    sleep(Duration::from_secs(3)).await;
    let (master, _) = redis.roles().await?;
    master.kill9();
    redis.switched_from(master.address()).await?;
    load.goes_on(20).await;
    master.start_again().await?;
    redis.agree().await;

    all_holds(&cluster, load).await
}
