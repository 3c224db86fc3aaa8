//! Devices: created to running beside bare `docker run`, the latency of a creation at a given rate, and lists of many.
//!
//! A replica of the gateway has two nodes: one with a Docker engine of the benchmark's own, one that simulates devices. It is
//! asked through its front door, as clients do.

mod bare;
mod lists;
mod replica;

use std::time::{Duration, Instant};

use anyhow::Context;
use futures::StreamExt;
use futures::stream;
use serde_json::json;
use testkit::Engine;
use tokio::time::sleep_until;

use crate::report::{Figure, quantile_ms};
use crate::stores::Private;
use replica::Replica;

/// How devices are measured.
pub struct Plan {
    /// How often each has its turn.
    pub rounds: u32,
    /// How many devices a turn creates as fast as it can.
    pub devices: usize,
    /// How many at once.
    pub parallel: usize,
    /// How many creations are asked for in a second where their latency is measured.
    pub rate: u32,
    /// For how long.
    pub seconds: u32,
    /// How often each list is asked for in a turn.
    pub lists: usize,
}

/// What runs devices here, as clients and as the report name it.
const RUNTIMES: [(&str, &str); 2] = [
    ("redroid", "ours, docker"),
    ("simulated", "ours, simulated"),
];
const BARE: &str = "docker run -d";
const UNITS: [(&str, f64); 2] = [("ms p50", 0.5), ("ms p99", 0.99)];

/// Measures everybody in turn.
pub async fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let engine = tokio::task::spawn_blocking(Engine::start).await?;
    let engine = engine.context("starting a container engine")?;
    let stores = Private::start().await?;
    let replica = Replica::start(&stores, &engine.endpoint(), plan.parallel).await?;
    let measured = measure(plan, &engine, &replica).await;
    replica.end().await?;
    stores.end().await?;
    // It waits for its containers.
    tokio::task::spawn_blocking(move || drop(engine)).await?;
    measured
}

async fn measure(plan: &Plan, engine: &Engine, replica: &Replica) -> anyhow::Result<Vec<Figure>> {
    let mut rates = [BARE, RUNTIMES[0].1, RUNTIMES[1].1].map(|rival| (rival, Vec::new()));
    let mut tails = RUNTIMES.map(|(_, rival)| (rival, [Vec::new(), Vec::new()]));
    for round in 0..=plan.rounds {
        let bare = bare::run(&engine.endpoint(), plan.devices, plan.parallel).await?;
        let mut reached = vec![bare];
        for (provider, _) in RUNTIMES {
            reached.push(to_running(plan, replica, provider).await?);
        }
        // The first round warms everybody up.
        if round == 0 {
            continue;
        }
        for ((_, values), rate) in rates.iter_mut().zip(reached) {
            values.push(rate);
        }
        for ((provider, _), (_, tails)) in RUNTIMES.iter().zip(&mut tails) {
            let latencies = at_rate(plan, replica, provider).await?;
            for (tail, (_, at)) in tails.iter_mut().zip(UNITS) {
                tail.push(quantile_ms(&latencies, at));
            }
        }
    }
    let condition = format!("{} devices, {} at once", plan.devices, plan.parallel);
    let mut figures: Vec<_> = rates
        .into_iter()
        .map(|(rival, values)| Figure {
            condition: condition.clone(),
            rival,
            unit: "running/s",
            values,
        })
        .collect();
    let condition = format!("POST /devices, {} /s", plan.rate);
    for (number, (unit, _)) in UNITS.into_iter().enumerate() {
        figures.extend(tails.iter().map(|(rival, tails)| Figure {
            condition: condition.clone(),
            rival,
            unit,
            values: tails[number].clone(),
        }));
    }
    figures.extend(lists::measure(plan, replica).await?);
    Ok(figures)
}

/// Creates devices as fast as so many clients can; how many came to run in a second, until the last one did.
async fn to_running(plan: &Plan, replica: &Replica, provider: &str) -> anyhow::Result<f64> {
    let started = Instant::now();
    let body = body(provider);
    let mut created = stream::iter(0..plan.devices)
        .map(|_| replica.create(&body))
        .buffer_unordered(plan.parallel);
    while let Some(created) = created.next().await {
        created?;
    }
    replica.all_run(plan.devices).await?;
    let rate = plan.devices as f64 / started.elapsed().as_secs_f64();
    replica.delete_all().await?;
    Ok(rate)
}

/// Asks for creations at a rate, whether or not the earlier ones were answered; how long each took from when it was due.
async fn at_rate(plan: &Plan, replica: &Replica, provider: &str) -> anyhow::Result<Vec<Duration>> {
    let count = usize::try_from(plan.rate * plan.seconds)?;
    let begin = tokio::time::Instant::now();
    let body = &body(provider);
    let latencies: Vec<anyhow::Result<Duration>> = stream::iter(0..plan.rate * plan.seconds)
        .map(|number| async move {
            let due = begin + Duration::from_secs(1) * number / plan.rate;
            sleep_until(due).await;
            replica.create(body).await?;
            Ok(due.elapsed())
        })
        .buffer_unordered(count)
        .collect()
        .await;
    replica.all_run(count).await?;
    replica.delete_all().await?;
    latencies.into_iter().collect()
}

fn body(provider: &str) -> serde_json::Value {
    json!({ "name": "bench", "providerType": provider, "cpuCores": 1, "memoryMB": 512 })
}
