//! What it costs to lease the three ports of a device.

use std::time::{Duration, Instant};

use coordination::{Keys, PortPool, PortRanges, PortSet, Recorded};
use fred::clients::Pool;
use fred::interfaces::{ClientLike as _, KeysInterface};
use fred::types::scripts::Script;
use fred::types::{Expiration, SetOptions};
use futures::StreamExt;

use crate::peers;
use crate::report::Figure;
use crate::stores::Private;

const NODE: &str = "bench";
const TTL: Duration = Duration::from_secs(600);
const OCCUPANCIES: [usize; 3] = [0, 50, 95];
const ALLOCATORS: [usize; 3] = [1, 8, 32];
const RIVALS: [&str; 5] = [
    "bare SET NX EX, this client",
    "ours (three ports)",
    "a script of three SET NX EX",
    "linear scan (one port)",
    "bare SET NX EX, redis-benchmark",
];
/// The least that a set of three leases costs where one step takes all or none: no index, no search, no entry.
const THREE_SETS: &str = "\
for _, kind in ipairs({'adb:', 'webrtc:', 'scrcpy:'}) do
  redis.call('SET', KEYS[1] .. kind .. ARGV[1], ARGV[1], 'EX', 600, 'NX')
end
return {'leased', ARGV[1], ARGV[1], ARGV[1]}";
/// How many leases are taken at a time; between times they are given back, which the clock does not see. A node that is
/// 95 % leased has room for fifty.
const BATCH: usize = 40;

/// Measures every rival under every condition, in turn, so that a busy moment of the machine meets all of them.
pub async fn run(rounds: u32, leases: u32) -> anyhow::Result<Vec<Figure>> {
    let private = Private::start().await?;
    let batches = (leases as usize).div_ceil(BATCH);
    let mut figures = Vec::new();
    for occupancy in OCCUPANCIES {
        for allocators in ALLOCATORS {
            let condition = format!("{occupancy} % leased, {allocators} allocators");
            let mut rates = [const { Vec::new() }; RIVALS.len()];
            for _ in 0..rounds {
                for (rival, rates) in rates.iter_mut().enumerate() {
                    private.redis.flushall::<()>(false).await?;
                    let pool = occupied(&private.redis, occupancy).await?;
                    // A linear scan is so slow that a few say enough.
                    let batches = if rival == 3 { 1 } else { batches };
                    rates.push(match rival {
                        0 => bare(&private.redis, batches, allocators).await?,
                        1 => ours(&pool, batches, allocators).await?,
                        2 => three_sets(&private.redis, batches, allocators).await?,
                        3 => linear_scan(&private.redis, batches, allocators).await?,
                        _ => peers::set_nx_ex(private.redis_url(), 10_000, allocators).await?,
                    });
                }
            }
            let of_condition = RIVALS.into_iter().zip(rates);
            figures.extend(of_condition.map(|(rival, rates)| Figure {
                condition: condition.clone(),
                rival,
                unit: "/s",
                values: rates,
            }));
        }
    }
    private.end().await?;
    Ok(figures)
}

/// A node of a thousand sets, so many per cent of them leased.
async fn occupied(redis: &Pool, per_cent: usize) -> anyhow::Result<PortPool> {
    let pool = PortPool::new(
        redis.clone(),
        Keys::new("bench"),
        PortRanges::default(),
        Duration::ZERO,
    );
    let held: Vec<(String, PortSet)> = (0..10 * per_cent as u16)
        .map(|number| {
            (
                format!("device{number}"),
                PortSet {
                    adb: 5555 + number,
                    webrtc: 8080 + number,
                    scrcpy: 27183 + number,
                },
            )
        })
        .collect();
    let recorded = Recorded {
        held: held.clone(),
        ..Recorded::default()
    };
    pool.rebuild(NODE, &recorded, TTL).await?;
    for chunk in held.chunks(100) {
        pool.renew_many(NODE, chunk, TTL).await?;
        let pipeline = redis.next().pipeline();
        for (owner, set) in chunk {
            pipeline
                .set::<(), _, _>(
                    scanned(set.adb),
                    owner.as_str(),
                    Some(Expiration::EX(600)),
                    None,
                    false,
                )
                .await?;
        }
        pipeline.all::<()>().await?;
    }
    Ok(pool)
}

async fn bare(redis: &Pool, batches: usize, allocators: usize) -> anyhow::Result<f64> {
    let take = async |number| {
        set_nx(redis, format!("bare:{number}"), "device").await?;
        Ok(())
    };
    timed(batches, allocators, take, async |number| {
        redis.del::<(), _>(format!("bare:{number}")).await?;
        Ok(())
    })
    .await
}

async fn ours(pool: &PortPool, batches: usize, allocators: usize) -> anyhow::Result<f64> {
    let take = async |number| {
        pool.lease(NODE, &format!("new{number}"), TTL).await?;
        Ok(())
    };
    timed(batches, allocators, take, async |number| {
        pool.take_back(NODE, &format!("new{number}")).await?;
        Ok(())
    })
    .await
}

async fn three_sets(redis: &Pool, batches: usize, allocators: usize) -> anyhow::Result<f64> {
    let script = Script::from_lua(THREE_SETS);
    let script = &script;
    let take = async move |number| {
        let _: Vec<String> = script
            .evalsha_with_reload(redis.next(), "sets:", format!("new{number}"))
            .await?;
        Ok(())
    };
    timed(batches, allocators, take, async |number| {
        let keys = ["adb", "webrtc", "scrcpy"].map(|kind| format!("sets:{kind}:new{number}"));
        redis.del::<(), _>(keys.to_vec()).await?;
        Ok(())
    })
    .await
}

/// The seed's way: from the lowest number on, `SET NX EX` until one is free.
async fn linear_scan(redis: &Pool, batches: usize, allocators: usize) -> anyhow::Result<f64> {
    let take = async |_| {
        for port in 5555..6555 {
            if set_nx(redis, scanned(port), "device").await? {
                return Ok(());
            }
        }
        anyhow::bail!("no port is free")
    };
    timed(batches, allocators, take, async |_| Ok(())).await
}

/// How many a second are taken, over some batches. What is taken is given back after each; the first batch, which finds
/// connections and scripts cold, is not timed where there are more.
async fn timed(
    batches: usize,
    at_once: usize,
    take: impl AsyncFn(usize) -> anyhow::Result<()>,
    give_back: impl AsyncFn(usize) -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let warm = usize::from(batches > 1);
    let mut spent = Duration::ZERO;
    for batch in 0..batches + warm {
        let started = Instant::now();
        each(BATCH, at_once, &take).await?;
        if batch >= warm {
            spent += started.elapsed();
        }
        each(BATCH, at_once, &give_back).await?;
    }
    Ok((batches * BATCH) as f64 / spent.as_secs_f64())
}

fn scanned(port: u16) -> String {
    format!("scan:adb:{port}")
}

async fn set_nx(redis: &Pool, key: String, owner: &str) -> anyhow::Result<bool> {
    let answer: Option<String> = redis
        .set(
            key,
            owner,
            Some(Expiration::EX(600)),
            Some(SetOptions::NX),
            false,
        )
        .await?;
    Ok(answer.is_some())
}

/// Does something so many times, some at once; how many times it was.
pub async fn each(
    count: usize,
    at_once: usize,
    act: impl AsyncFn(usize) -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    let act = &act;
    let mut done = futures::stream::iter(0..count)
        .map(|number| act(number))
        .buffer_unordered(at_once);
    while let Some(outcome) = done.next().await {
        outcome?;
    }
    Ok(count)
}
