//! What it costs to take a lock and give it back.

use std::time::{Duration, Instant};

use anyhow::Context;
use coordination::{Keys, Leases, Redlock};
use fred::clients::Pool;
use fred::interfaces::{KeysInterface, LuaInterface};
use fred::types::{Expiration, SetOptions};

use crate::peers;
use crate::port_leases::each;
use crate::report::Figure;
use crate::stores::Private;

const TTL: Duration = Duration::from_secs(30);
const AT_ONCE: [usize; 2] = [1, 8];
const RIVALS: [&str; 4] = [
    "bare SET NX PX and compare-delete",
    "Lease (Redis and PostgreSQL)",
    "Redlock, one master",
    "Node's redlock, one master",
];
const COMPARE_DELETE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// Measures every rival in turn.
pub async fn run(rounds: u32, locks: u32) -> anyhow::Result<Vec<Figure>> {
    let private = Private::start().await?;
    let db = private.database().await?;
    let leases = Leases::new(private.redis.clone(), db.clone(), Keys::new("bench"));
    let redlock = Redlock::new(vec![private.redis_url().to_owned()], TTL)?;
    let count = locks as usize;
    let mut figures = Vec::new();
    for at_once in AT_ONCE {
        let mut rates = [const { Vec::new() }; RIVALS.len()];
        for _ in 0..rounds {
            for (rival, rates) in rates.iter_mut().enumerate() {
                let started = Instant::now();
                match rival {
                    0 => bare(&private.redis, count, at_once).await?,
                    1 => lease(&leases, count, at_once).await?,
                    2 => locked(&redlock, count, at_once).await?,
                    _ => {
                        let url = private.redis_url();
                        rates.push(peers::node_redlock(url, count, at_once).await?);
                        continue;
                    }
                };
                rates.push(count as f64 / started.elapsed().as_secs_f64());
            }
        }
        let of_condition = RIVALS.into_iter().zip(rates);
        figures.extend(of_condition.map(|(rival, values)| Figure {
            condition: format!("{at_once} at once"),
            rival,
            unit: "/s",
            values,
        }));
    }
    db.close().await;
    private.end().await?;
    Ok(figures)
}

async fn bare(redis: &Pool, count: usize, at_once: usize) -> anyhow::Result<usize> {
    each(count, at_once, async |number| {
        let key = format!("bare:{number}");
        let expire = Some(Expiration::PX(30_000));
        let _: Option<String> = redis
            .set(&key, "me", expire, Some(SetOptions::NX), false)
            .await?;
        let _: i64 = redis.eval(COMPARE_DELETE, key, "me").await?;
        Ok(())
    })
    .await
}

async fn lease(leases: &Leases, count: usize, at_once: usize) -> anyhow::Result<usize> {
    each(count, at_once, async |number| {
        let lease = leases.acquire(&format!("lock-{number}"), TTL).await?;
        lease
            .context("somebody else has the lease")?
            .release()
            .await?;
        Ok(())
    })
    .await
}

async fn locked(redlock: &Redlock, count: usize, at_once: usize) -> anyhow::Result<usize> {
    each(count, at_once, async |number| {
        let lock = redlock.lock(&format!("lock-{number}")).await?;
        lock.context("somebody else has the lock")?.release().await;
        Ok(())
    })
    .await
}
