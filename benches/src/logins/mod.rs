//! Sign-ins per second beside what the library of the password hash does by itself on all cores, and what they cost other
//! requests.

mod bare;
mod replica;

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures::StreamExt;
use futures::stream;
use tokio::time::{sleep, sleep_until};

use crate::report::{Figure, quantile_ms};
use crate::stores::Private;
use replica::Replica;

/// How sign-ins are measured.
pub struct Plan {
    /// How often each has its turn.
    pub rounds: u32,
    /// How long a turn takes.
    pub turn: Duration,
    /// How many clients sign in at once, each a user of its own.
    pub clients: usize,
    /// How many other requests are asked for in a second meanwhile.
    pub rate: u32,
}

const BARE: &str = "argon2, all cores, nothing else";
const OURS: &str = "ours, by HTTP";
const QUIET: &str = "nobody signs in";
const BUSY: &str = "all cores hash passwords";

/// Measures everybody in turn.
pub async fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let stores = Private::start().await?;
    let replica = Replica::start(&stores, plan.clients).await?;
    let measured = measure(plan, &replica).await;
    replica.end().await?;
    stores.end().await?;
    measured
}

async fn measure(plan: &Plan, replica: &Replica) -> anyhow::Result<Vec<Figure>> {
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    let mut tails = [QUIET, BUSY].map(|rival| (rival, [Vec::new(), Vec::new()]));
    for round in 0..=plan.rounds {
        let library = bare::run(plan.turn).await?;
        let quiet = others(plan, replica).await?;
        let (rate, busy) = tokio::try_join!(sign_ins(plan, replica), others(plan, replica))?;
        // The first round warms everybody up.
        if round == 0 {
            continue;
        }
        bare.push(library);
        ours.push(rate);
        for ((_, tails), latencies) in tails.iter_mut().zip([quiet, busy]) {
            for (tail, at) in tails.iter_mut().zip([0.5, 0.99]) {
                tail.push(quantile_ms(&latencies, at));
            }
        }
    }
    let condition = format!("sign-ins, {} at once", plan.clients);
    let rates = [(BARE, bare), (OURS, ours)].map(|(rival, values)| Figure {
        condition: condition.clone(),
        rival,
        unit: "/s",
        values,
    });
    let mut figures = Vec::from(rates);
    for (number, unit) in ["ms p50", "ms p99"].into_iter().enumerate() {
        figures.extend(tails.iter().map(|(rival, tails)| Figure {
            condition: format!("GET /auth/me, {} /s", plan.rate),
            rival,
            unit,
            values: tails[number].clone(),
        }));
    }
    Ok(figures)
}

/// Signs users in for a turn; how many in a second.
async fn sign_ins(plan: &Plan, replica: &Replica) -> anyhow::Result<f64> {
    let started = Instant::now();
    let until = started + plan.turn;
    let clients = (0..plan.clients).map(|user| async move {
        let mut done = 0_u32;
        while Instant::now() < until {
            replica.sign_in(user).await?;
            done += 1;
        }
        anyhow::Ok(done)
    });
    let done: Vec<u32> = futures::future::try_join_all(clients).await?;
    let done: u32 = done.into_iter().sum();
    ensure!(done > 0, "nobody signed in within {:?}", plan.turn);
    Ok(f64::from(done) / started.elapsed().as_secs_f64())
}

/// Asks who one is at a rate for a turn; how long each took from when it was due.
async fn others(plan: &Plan, replica: &Replica) -> anyhow::Result<Vec<Duration>> {
    // Sign-ins have begun.
    sleep(plan.turn / 10).await;
    let begin = tokio::time::Instant::now();
    let count = (plan.turn.as_secs_f64() * 0.8 * f64::from(plan.rate)) as u32;
    stream::iter(0..count)
        .map(|number| async move {
            let due = begin + Duration::from_secs(1) * number / plan.rate;
            sleep_until(due).await;
            replica.who_am_i().await?;
            Ok(due.elapsed())
        })
        .buffer_unordered(usize::try_from(count)?)
        .collect::<Vec<anyhow::Result<Duration>>>()
        .await
        .into_iter()
        .collect()
}
