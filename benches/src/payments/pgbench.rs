//! The transaction of a payment by pgbench.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::process::Command;
use tokio::time::timeout;

use super::orders::Batch;

/// The longest a turn may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Pays every order of a turn; payments a second.
pub async fn run(database_url: &str, folder: &Path, batch: &Batch) -> anyhow::Result<f64> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/payment.sql");
    let cores = std::thread::available_parallelism()?.get();
    let mut command = Command::new(program()?);
    command
        .arg("--no-vacuum")
        .args(["--protocol", "prepared"])
        .args(["--client", &batch.clients.to_string()])
        .args(["--jobs", &cores.min(batch.clients).to_string()])
        .args(["--transactions", &batch.each.to_string()])
        .args(["--define", &format!("turn={}", batch.number)])
        .args(["--define", "n=0"])
        .arg("--file")
        .arg(script)
        .arg(database_url)
        .current_dir(folder)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let done = timeout(PATIENCE, command.output());
    let done = done.await.context("pgbench took too long")??;
    let said = String::from_utf8_lossy(&done.stdout);
    ensure!(
        done.status.success(),
        "pgbench failed: {said}{}",
        String::from_utf8_lossy(&done.stderr)
    );
    // tps = 1234.567890 (without initial connection time)
    let rate = said.lines().find_map(|line| line.strip_prefix("tps = "));
    let rate = rate.and_then(|rate| rate.split(' ').next()?.parse().ok());
    rate.with_context(|| format!("pgbench printed no rate: {said}"))
}

/// Debian keeps it beside the server, out of the way.
fn program() -> anyhow::Result<std::path::PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|version| Some(version.ok()?.path().join("bin/pgbench")))
        .filter(|program| program.exists())
        .collect();
    found.sort();
    Ok(found.pop().unwrap_or_else(|| "pgbench".into()))
}
