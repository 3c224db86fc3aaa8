//! What it costs to hold leases.

use std::time::Duration;

use anyhow::{Context, ensure};
use coordination::{Keys, Leases};
use futures::{StreamExt, TryStreamExt};

use crate::load::load;
use crate::report::Figure;
use crate::stores::Private;

/// Acquires leases and measures while they are renewed.
pub async fn run(leases: u32, ttl_seconds: u32, rounds: u32) -> anyhow::Result<Vec<Figure>> {
    let private = Private::start().await?;
    let db = private.database().await?;
    let ttl = Duration::from_secs(ttl_seconds.into());
    let all = Leases::new(private.redis.clone(), db.clone(), Keys::new("bench"));
    let (mut ours, mut redis) = (Vec::new(), Vec::new());
    let mut idle = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let load = load(&private, ttl / 3).await?;
        idle.0.push(load.ours);
        idle.1.push(load.redis);
    }
    let held: Vec<_> = futures::stream::iter(0..leases)
        .map(|number| {
            let all = all.clone();
            async move {
                let lease = all.acquire(&format!("device-{number}"), ttl).await?;
                lease.context("somebody else has the lease")
            }
        })
        .buffer_unordered(64)
        .try_collect()
        .await?;
    // Until the first ones have been renewed.
    tokio::time::sleep(ttl / 3).await;
    for _ in 0..rounds {
        let load = load(&private, ttl / 3).await?;
        ours.push(load.ours);
        redis.push(load.redis);
    }
    let lost = held.iter().filter(|lease| lease.lost().is_cancelled());
    ensure!(lost.count() == 0, "some leases were lost meanwhile");
    drop(held);
    db.close().await;
    private.end().await?;
    let condition = format!("{leases} leases, {ttl_seconds} s to live");
    let figures = [
        ("nothing held", "% (process)", idle.0),
        ("all held", "% (process)", ours),
        ("nothing held", "% (Redis)", idle.1),
        ("all held", "% (Redis)", redis),
    ];
    Ok(figures
        .map(|(rival, unit, values)| Figure {
            condition: condition.clone(),
            rival,
            unit,
            values,
        })
        .into())
}
