//! `gateway status`: the cluster as its registry has it.

use anyhow::{Context, bail};
use contracts::{Service, Timestamp};
use coordination::{Entry, Keys, Registry, Snapshot};
use platform::config::Stores;
use platform::{Clock, Env, Settings, redis};
use secrecy::ExposeSecret;
use serde::Serialize;

use super::say;
use crate::cluster::stores_folder;
use crate::serve::Config;

/// Shows every instance of every service.
pub async fn status(env: Env, json: bool) -> anyhow::Result<i32> {
    let settings = Config::from_env(env)?.settings;
    let redis = redis::connect(&redis_url(&settings)?).await?.pool;
    let registry = Registry::new(redis, Keys::new(&settings.key_prefix));
    let snapshot = registry.read().await?;
    if json {
        let instances: Vec<Instance<'_>> = snapshot.entries().map(Instance::of).collect();
        say(&serde_json::to_string_pretty(&instances)?)?;
    } else {
        say(&table(&snapshot, Clock::system().now()))?;
    }
    Ok(0)
}

/// An entry of the registry, and how it does in a word.
#[derive(Serialize)]
struct Instance<'a> {
    #[serde(flatten)]
    entry: &'a Entry,
    health: &'static str,
}

impl<'a> Instance<'a> {
    fn of(entry: &'a Entry) -> Self {
        let health = if entry.load.draining {
            "draining"
        } else {
            "ready"
        };
        Self { entry, health }
    }
}

fn redis_url(settings: &Settings) -> anyhow::Result<String> {
    match &settings.stores {
        Stores::External { redis, .. } => Ok(redis.expose_secret().to_owned()),
        Stores::Embedded => {
            let dir = stores_folder(settings)?;
            if !embedded::is_running(&dir) {
                bail!(
                    "no replica runs here: `cargo run -p gateway` starts one, or REDIS_URL and DATABASE_URL name another cluster"
                );
            }
            Ok(embedded::addresses(&dir)
                .context("reading where the private stores are")?
                .redis_url)
        }
    }
}

const HEAD: [&str; 9] = [
    "SERVICE", "INSTANCE", "ADDRESS", "HOST", "PID", "VERSION", "UPTIME", "MEMORY", "REQ/S",
];

fn table(snapshot: &Snapshot, now: Timestamp) -> String {
    let mut rows = vec![
        [HEAD.as_slice(), &["HEALTH"]]
            .concat()
            .iter()
            .map(|cell| (*cell).to_owned())
            .collect::<Vec<_>>(),
    ];
    for service in Service::ALL {
        let entries = snapshot.of(service.name());
        if entries.is_empty() {
            let mut row = vec![service.name().to_owned(), "none".to_owned()];
            row.resize(HEAD.len(), "-".to_owned());
            row.push("down".to_owned());
            rows.push(row);
        }
        rows.extend(entries.iter().map(|entry| row(entry, now)));
    }
    let widths: Vec<usize> = (0..=HEAD.len())
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    let lines = rows.iter().map(|row| {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn row(entry: &Entry, now: Timestamp) -> Vec<String> {
    let told = &entry.announcement;
    let uptime = (now.utc() - told.started_at).num_seconds().max(0);
    vec![
        told.service.clone(),
        entry.instance.clone(),
        told.address.clone(),
        told.host.clone(),
        told.pid.to_string(),
        told.version.clone(),
        span(uptime),
        format!("{} MB", entry.load.memory_bytes / 1_000_000),
        format!("{:.1}", entry.load.requests_per_second),
        Instance::of(entry).health.to_owned(),
    ]
}

fn span(seconds: i64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}
