//! The front door beside other reverse proxies, each with one worker on one core, before the same upstream.
//!
//! The proxy that is measured has the first core to itself; the load and the upstream share the others. So the rate is what
//! one core carries, whichever process brings it.

mod rivals;
mod upstream;
mod wrk;

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::process::Process;
use crate::report::Figure;
use crate::stores::Private;
use rivals::{Place, RIVALS, Rival};
use wrk::Load;

/// Where the proxies run.
const PROXY_CORE: &str = "0";
/// The part of its capacity at which nginx's latency is compared.
const HALF: f64 = 0.5;

/// How the rivals are measured.
pub struct Plan {
    /// How often each has its turn.
    pub rounds: u32,
    /// How long a turn takes.
    pub turn: Duration,
    /// The numbers of connections.
    pub connections: Vec<u32>,
    /// Parts of their names; all where it is empty.
    pub rivals: Vec<String>,
}

impl Plan {
    fn wants(&self, name: &str) -> bool {
        self.rivals.is_empty() || self.rivals.iter().any(|part| name.contains(part))
    }
}

/// Measures every rival in turn.
pub async fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let cores = std::thread::available_parallelism()?.get();
    ensure!(
        cores >= 2,
        "the load and the proxy need a core each, and there is one"
    );
    let others = format!("1-{}", cores - 1);
    let folder = tempfile::TempDir::with_prefix("bench-")?;
    let upstream = upstream::start(folder.path(), &others).await?;
    let stores = Private::start().await?;
    let place = Place {
        folder: folder.path(),
        core: PROXY_CORE,
        upstream: upstream.port,
        stores: &stores,
    };
    let mut rivals = Vec::new();
    for kind in RIVALS.into_iter().filter(|kind| plan.wants(kind.name)) {
        let started = rivals::start(kind, &place).await;
        rivals.push(started.with_context(|| format!("starting {}", kind.name))?);
    }
    let mut figures = Vec::new();
    for connections in &plan.connections {
        let condition = format!("{connections} connections");
        figures.extend(at_full_speed(plan, &rivals, *connections, &others, &condition).await?);
    }
    let connections = plan.connections[0];
    figures.extend(at_half_load(plan, &rivals, connections, &others, &figures).await?);
    for rival in rivals {
        rival.end().await?;
    }
    upstream.process.end().await?;
    stores.end().await?;
    Ok(figures)
}

/// As many requests as each carries: rate, latency under that rate, processor time of a request, memory afterwards.
async fn at_full_speed(
    plan: &Plan,
    rivals: &[Rival],
    connections: u32,
    cores: &str,
    condition: &str,
) -> anyhow::Result<Vec<Figure>> {
    let mut rates = vec![Vec::new(); rivals.len()];
    let mut costs = vec![Vec::new(); rivals.len()];
    let mut memory = vec![Vec::new(); rivals.len()];
    for round in 0..=plan.rounds {
        for (number, rival) in rivals.iter().enumerate() {
            let load = Load {
                connections,
                turn: plan.turn,
                cores,
            };
            let before = rival.process.time()?;
            let done = load.as_fast_as_possible(rival).await?;
            let used = rival.process.time()? - before;
            ensure!(
                done.failed == 0,
                "{} did not answer {} requests of {}",
                rival.kind.name,
                done.failed,
                done.requests
            );
            // The first round warms caches and compilers up.
            if round > 0 {
                rates[number].push(done.per_second);
                costs[number].push(used.as_secs_f64() * 1e6 / done.requests as f64);
                memory[number].push(rival.process.resident_mebibytes()?);
            }
        }
    }
    let figures = |unit, values: Vec<Vec<f64>>| {
        let each = rivals.iter().zip(values);
        each.map(move |(rival, values)| Figure {
            condition: condition.to_owned(),
            rival: rival.kind.name,
            unit,
            values,
        })
    };
    Ok(figures("/s", rates)
        .chain(figures("µs of processor", costs))
        .chain(figures("MiB", memory))
        .collect())
}

/// The same rate for all who carry it: half of what nginx does.
async fn at_half_load(
    plan: &Plan,
    rivals: &[Rival],
    connections: u32,
    cores: &str,
    reached: &[Figure],
) -> anyhow::Result<Vec<Figure>> {
    let rate = reached[0].median() * HALF;
    let condition = format!("{connections} connections, {:.0} /s", rate);
    let mut tails = vec![[const { Vec::new() }; 3]; rivals.len()];
    for _ in 0..plan.rounds {
        for (rival, tails) in rivals.iter().zip(&mut tails) {
            if !rival.kind.carries_half {
                continue;
            }
            let load = Load {
                connections,
                turn: plan.turn,
                cores,
            };
            let latencies = load.at_rate(rival, rate).await?;
            for (tail, at) in tails.iter_mut().zip([0.5, 0.99, 0.999]) {
                tail.push(latencies.quantile_ms(at));
            }
        }
    }
    let units = ["ms p50", "ms p99", "ms p99.9"];
    let mut figures = Vec::new();
    for (number, unit) in units.into_iter().enumerate() {
        for (rival, tails) in rivals.iter().zip(&tails) {
            if !tails[number].is_empty() {
                figures.push(Figure {
                    condition: condition.clone(),
                    rival: rival.kind.name,
                    unit,
                    values: tails[number].clone(),
                });
            }
        }
    }
    Ok(figures)
}

/// A free port of loopback.
async fn free_port() -> anyhow::Result<u16> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    Ok(listener.local_addr()?.port())
}

/// Waits until something answers 200 there.
async fn answers(
    process: &mut Process,
    port: u16,
    path: &str,
    headers: &[String],
) -> anyhow::Result<()> {
    let mut said = String::new();
    for _ in 0..600 {
        process.ensure_alive()?;
        match wrk::status(port, path, headers).await {
            Ok(line) if line.contains(" 200 ") => return Ok(()),
            Ok(line) => said = line,
            Err(error) => said = error.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("nothing answers 200 on port {port} within a minute: {said}")
}
