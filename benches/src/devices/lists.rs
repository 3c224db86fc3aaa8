//! Lists of ten thousand devices of one user, with filters and by cursor.

use std::time::Instant;

use anyhow::Context;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::{Plan, UNITS};
use crate::devices::replica::Replica;
use crate::report::{Figure, quantile_ms};

/// What is asked for, and what the report calls it.
const LISTS: [(&str, &str); 5] = [
    ("first hundred", "/devices?limit=100"),
    (
        "page 50 of a hundred, with total",
        "/devices?page=50&pageSize=100",
    ),
    ("hundred in error", "/devices?limit=100&status=error"),
    ("hundred of a group", "/devices?limit=100&groupName=rack"),
    (CURSOR, "/devices/cursor?limit=100"),
];
/// Each page is asked for by what the one before it says.
const CURSOR: &str = "hundred by cursor, to the end";

/// Measures how long each list takes, one after the other.
pub async fn measure(plan: &Plan, replica: &Replica) -> anyhow::Result<Vec<Figure>> {
    fill(replica).await?;
    let mut tails = LISTS.map(|(rival, _)| (rival, [Vec::new(), Vec::new()]));
    for _ in 0..plan.rounds {
        for ((name, path), (_, tails)) in LISTS.iter().zip(&mut tails) {
            let mut latencies = Vec::with_capacity(plan.lists);
            let mut next = (*path).to_owned();
            for _ in 0..plan.lists {
                let started = Instant::now();
                let page = replica
                    .ask(Method::GET, &next, None, StatusCode::OK)
                    .await?;
                latencies.push(started.elapsed());
                if *name == CURSOR {
                    let page: Value = serde_json::from_str(&page)?;
                    let cursor = page["nextCursor"].as_str();
                    next = cursor.map_or((*path).to_owned(), |cursor| {
                        format!("{path}&cursor={cursor}")
                    });
                }
            }
            for (tail, (_, at)) in tails.iter_mut().zip(UNITS) {
                tail.push(quantile_ms(&latencies, at));
            }
        }
    }
    let mut figures = Vec::new();
    for (number, (unit, _)) in UNITS.into_iter().enumerate() {
        figures.extend(tails.iter().map(|(rival, tails)| Figure {
            condition: "10,000 devices listed".to_owned(),
            rival,
            unit,
            values: tails[number].clone(),
        }));
    }
    Ok(figures)
}

/// Ten thousand devices of the client, to whom all earlier ones belong, and as many of others; none of them runs.
async fn fill(replica: &Replica) -> anyhow::Result<()> {
    sqlx::query(
        "insert into devices.devices (id, user_id, name, type, provider_type, runtime, status, wanted, cpu_cores, memory_mb, storage_mb,
            resolution, dpi, android_version, group_name, node, adb_port, webrtc_port, scrcpy_port, created_at, updated_at)
        select 'listed-' || n, case when n % 2 = 0 then u.id else 'other-' || n % 97 end, 'phone ' || n, 'phone', 'redroid', 'simulated',
            case when n % 4 < 2 then 'stopped' else 'error' end, 'stopped', 1, 512, 1024, '1080x1920', 320, '11',
            case when n % 50 = 0 then 'rack' end, 'simulated', 20000 + n, 20000 + n, 20000 + n, now() - n * interval '1 second', now()
        from generate_series(1, 20000) n, (select user_id as id from devices.devices limit 1) u",
    )
    .execute(&replica.db)
    .await
    .context("filling the table of devices")?;
    // As autovacuum leaves it.
    sqlx::raw_sql("vacuum analyze devices.devices")
        .execute(&replica.db)
        .await?;
    Ok(())
}
