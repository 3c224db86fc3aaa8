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
/// What bare commands can do is measured on more of them than a node has ports.
const BARE: usize = 4;

/// Measures every rival under every condition, in turn, so that a busy moment of the machine meets all of them.
pub async fn run(rounds: u32, leases: u32) -> anyhow::Result<Vec<Figure>> {
    let private = Private::start().await?;
    let mut figures = Vec::new();
    for occupancy in OCCUPANCIES {
        for allocators in ALLOCATORS {
            let condition = format!("{occupancy} % leased, {allocators} allocators");
            let mut rates = [const { Vec::new() }; RIVALS.len()];
            for _ in 0..rounds {
                for (rival, rates) in rates.iter_mut().enumerate() {
                    private.redis.flushall::<()>(false).await?;
                    let pool = occupied(&private.redis, occupancy).await?;
                    // No more than there is room for.
                    let count = (leases as usize).min(1000 * (100 - occupancy) / 100);
                    let started = Instant::now();
                    let done = match rival {
                        0 => bare(&private.redis, BARE * count, allocators).await?,
                        1 => ours(&pool, count, allocators).await?,
                        2 => three_sets(&private.redis, count, allocators).await?,
                        3 => linear_scan(&private.redis, count, allocators).await?,
                        _ => {
                            let url = private.redis_url();
                            rates.push(peers::set_nx_ex(url, 10_000, allocators).await?);
                            continue;
                        }
                    };
                    rates.push(done as f64 / started.elapsed().as_secs_f64());
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

async fn bare(redis: &Pool, count: usize, allocators: usize) -> anyhow::Result<usize> {
    each(count, allocators, async |number| {
        set_nx(redis, format!("bare:{number}"), "device").await?;
        Ok(())
    })
    .await
}

async fn ours(pool: &PortPool, count: usize, allocators: usize) -> anyhow::Result<usize> {
    each(count, allocators, async |number| {
        pool.lease(NODE, &format!("new{number}"), TTL).await?;
        Ok(())
    })
    .await
}

async fn three_sets(redis: &Pool, count: usize, allocators: usize) -> anyhow::Result<usize> {
    let script = Script::from_lua(THREE_SETS);
    let script = &script;
    each(count, allocators, async move |number| {
        let _: Vec<String> = script
            .evalsha_with_reload(redis.next(), "sets:", format!("new{number}"))
            .await?;
        Ok(())
    })
    .await
}

/// The seed's way: from the lowest number on, `SET NX EX` until one is free.
async fn linear_scan(redis: &Pool, count: usize, allocators: usize) -> anyhow::Result<usize> {
    each(count, allocators, async |_| {
        for port in 5555..6555 {
            if set_nx(redis, scanned(port), "device").await? {
                return Ok(());
            }
        }
        anyhow::bail!("no port is free")
    })
    .await
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
