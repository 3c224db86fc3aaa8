//! Replicas that die, and replicas that fall asleep.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use testkit::Replica;
use tokio::time::sleep;

use crate::audit::all_holds;
use crate::load::{Load, replicas, until};

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
    let killed: Vec<anyhow::Result<usize>> = futures::future::join_all(killing).await;

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
    let cluster = replicas().start().await?;
    let load = Load::start(&cluster).await?;
    let db = cluster.database().await?;

    // Each sleeps in turn, in the middle of whatever it holds: slots, ports, operations, devices, the lock of a cron.
    for replica in cluster.replicas() {
        replica.stop();
        // Another one runs slots that the sleeper would have run, so the sleeper's locks have expired: they live ten
        // seconds, longer than every lease but those of ports.
        let pid = replica.pid();
        until("its locks have expired", async || {
            let runs: i64 = sqlx::query_scalar(
                "select count(distinct slot) from coordination.cron_runs where job = 'cancel-expired-orders'
                    and state = 'succeeded' and started_at > now() - interval '12 seconds'
                    and instance not like '%:' || $1",
            )
            .bind(pid.to_string())
            .fetch_one(&db)
            .await?;
            anyhow::ensure!(runs >= 10, "{runs} slots ran without it");
            Ok(())
        })
        .await;
        replica.cont();
        load.goes_on(10).await;
    }

    all_holds(&cluster, load).await
}
