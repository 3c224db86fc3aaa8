//! Replicas that die, and replicas that fall asleep.

use std::time::Duration;

use anyhow::ensure;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use sqlx::PgPool;
use testkit::Replica;
use tokio::time::sleep;

use crate::audit::all_holds;
use crate::load::{Load, every_lease_ends, replicas, until};

/// How often replicas are killed, all in all.
const KILLS: usize = 50;

#[tokio::test]
async fn fifty_kills_at_random_moments() -> anyhow::Result<()> {
    let seed: u64 = match std::env::var("FAULTS_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => rand::random(),
    };
    eprintln!("FAULTS_SEED={seed} repeats the moments of this run");
    let cluster = replicas().start().await?;
    let load = Load::start(&cluster).await?;

    let killing = cluster
        .replicas()
        .iter()
        .enumerate()
        .map(|(number, replica)| {
            let kills = (KILLS + number) / cluster.replicas().len();
            let random = StdRng::seed_from_u64(seed.wrapping_add(number as u64));
            kill_often(replica, kills, random)
        });
    let killed: Vec<anyhow::Result<usize>> =
        load.meanwhile(futures::future::join_all(killing)).await;

    let killed = killed.into_iter().sum::<anyhow::Result<usize>>()?;
    assert_eq!(killed, KILLS);
    all_holds(&cluster, load).await
}

/// Kills a replica at a random moment, before or after it is ready, and starts it again.
async fn kill_often(replica: &Replica, kills: usize, mut random: StdRng) -> anyhow::Result<usize> {
    for _ in 0..kills {
        let moment = Duration::from_millis(random.random_range(0..1500));
        sleep(moment).await;
        replica.kill9();
        if random.random_bool(0.25) {
            replica.begin_again()?;
        } else {
            replica.restart().await?;
        }
    }
    replica.ready().await?;
    Ok(kills)
}

#[tokio::test]
async fn holders_that_sleep_past_their_leases() -> anyhow::Result<()> {
    let cluster = replicas()
        .env("DEVICE_OPERATION_LEASE_SECONDS", "2")
        .env("DEVICE_HOST_LEASE_SECONDS", "2")
        .env("DEVICE_PORT_LEASE_SECONDS", "4")
        .start()
        .await?;
    let load = Load::start(&cluster).await?;
    let db = cluster.database().await?;

    // Each sleeps in turn, in the middle of whatever it holds: slots, ports, operations, devices, the lock of a cron.
    for replica in cluster.replicas() {
        until("each replica hosts devices", async || {
            let hosts = hosts(&db).await?;
            ensure!(hosts == 3, "{hosts}");
            Ok(())
        })
        .await;
        replica.stop();
        let begun: Vec<(i64, i64)> = sqlx::query_as(
            "select id, fencing_token from devices.operations where state = 'running'",
        )
        .fetch_all(&db)
        .await?;
        load.meanwhile(every_lease_ends(&db, replica.pid())).await?;
        let (ids, tokens): (Vec<i64>, Vec<i64>) = begun.into_iter().unzip();
        until("others do what it had begun", async || {
            let left: i64 = sqlx::query_scalar(
                "select count(*) from devices.operations o
                    join unnest($1::bigint[], $2::bigint[]) as begun (id, token)
                        on begun.id = o.id and begun.token = o.fencing_token
                    where o.state = 'running'",
            )
            .bind(&ids)
            .bind(&tokens)
            .fetch_one(&db)
            .await?;
            ensure!(left == 0, "{left} operations wait for it");
            let hosts = hosts(&db).await?;
            ensure!(hosts == 2, "{hosts} hosts");
            Ok(())
        })
        .await;
        replica.cont();
        load.goes_on(10).await;
    }

    all_holds(&cluster, load).await
}

/// How many replicas host devices, by leases that have not run out.
async fn hosts(db: &PgPool) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "select count(distinct host) from devices.hosts where until > clock_timestamp()",
    )
    .fetch_one(db)
    .await
}
