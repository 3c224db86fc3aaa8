//! Redis under Sentinel: the master changes.

use anyhow::ensure;
use testkit::{RedisServers, Sentinels, eventually};
use tokio::time::Duration;

use crate::audit::all_holds;
use crate::load::{Load, replicas, under_load, until};

#[tokio::test]
async fn a_master_that_is_killed() -> anyhow::Result<()> {
    let (redis, locks) = tokio::try_join!(Sentinels::start(&[]), RedisServers::start(1, &[]))?;
    let (cluster, load) = under_load(redis.url(), &locks).await?;

    let (master, _) = redis.roles().await?;
    master.kill9();
    load.meanwhile(redis.switched_from(master.address()))
        .await?;
    load.goes_on(20).await;
    // It comes back as the replica of its successor.
    master.start_again().await?;
    redis.agree().await;

    all_holds(&cluster, load).await
}

#[tokio::test]
async fn a_master_that_is_killed_where_leases_count_once_its_replica_has_them() -> anyhow::Result<()>
{
    let (redis, locks) = tokio::try_join!(Sentinels::start(&[]), RedisServers::start(1, &[]))?;
    let cluster = replicas()
        .redis(redis.url())
        .env("REDLOCK_URLS", locks.urls())
        .env("REDIS_WAIT_REPLICAS", "1")
        .start()
        .await?;
    let load = Load::start(&cluster).await?;

    load.goes_on(20).await;
    let (master, _) = redis.roles().await?;
    master.kill9();
    load.meanwhile(redis.switched_from(master.address()))
        .await?;
    // Its successor is alone, and nothing counts until there is a replica again.
    master.start_again().await?;
    redis.agree().await;
    load.goes_on(20).await;

    all_holds(&cluster, load).await
}

#[tokio::test]
async fn a_failover_that_was_planned() -> anyhow::Result<()> {
    let (redis, locks) = tokio::try_join!(Sentinels::start(&[]), RedisServers::start(1, &[]))?;
    let (cluster, load) = under_load(redis.url(), &locks).await?;

    for _ in 1..=2 {
        let (old, _) = redis.roles().await?;
        load.meanwhile(redis.fail_over()).await?;
        // They do not wait until Sentinel cuts them off from the old master, which takes ten seconds.
        let soon = Duration::from_secs(5);
        eventually(soon, "every client has left the old master", async || {
            let mut clients = String::new();
            for kind in ["normal", "pubsub"] {
                clients += &old.ask(&["client", "list", "type", kind]).await?;
            }
            let left: Vec<&str> = clients
                .lines()
                .filter(|line| !line.contains("name=sentinel-") && !line.contains("cmd=client"))
                .collect();
            ensure!(left.is_empty(), "{left:#?}");
            Ok(())
        })
        .await;
        load.goes_on(10).await;
        redis.agree().await;
    }

    all_holds(&cluster, load).await
}

#[tokio::test]
async fn a_master_that_clients_still_write_to_after_its_successor_serves() -> anyhow::Result<()> {
    let (redis, locks) = tokio::try_join!(Sentinels::start(&[]), RedisServers::start(1, &[]))?;
    let (cluster, load) = under_load(redis.url(), &locks).await?;

    // There are two masters, one that the clients know, one that the sentinels will name, until something was leased that
    // is lost with the former.
    let (former, successor) = redis.roles().await?;
    until("clients write to the former master alone", async || {
        // The sentinels would make it a replica again.
        successor.ask(&["replicaof", "no", "one"]).await?;
        let (before, after) = (
            former.ask(&["keys", "*port*"]).await?,
            successor.ask(&["keys", "*port*"]).await?,
        );
        let lost = before
            .lines()
            .filter(|key| !after.lines().any(|other| other == *key))
            .count();
        ensure!(lost > 0, "nothing would be lost");
        Ok(())
    })
    .await;
    let (master, _) = redis.roles().await?;
    master.kill9();
    load.meanwhile(redis.switched_from(master.address()))
        .await?;
    load.goes_on(20).await;
    master.start_again().await?;
    redis.agree().await;

    all_holds(&cluster, load).await
}
