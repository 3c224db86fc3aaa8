//! What others reach, as programs of their own: `redis-benchmark`, and Node's `redlock` in `peers/`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::process::Command;
use tokio::time::timeout;

/// The longest a peer may take for one turn.
const PATIENCE: Duration = Duration::from_secs(60);

/// `SET NX EX` of random keys by `redis-benchmark`, so many connections at once; per second.
pub async fn set_nx_ex(url: &str, count: usize, connections: usize) -> anyhow::Result<f64> {
    let mut command = Command::new("redis-benchmark");
    command
        .args(["-u", url, "-n", &count.to_string()])
        .args(["-c", &connections.to_string(), "-r", "1000000", "--csv"])
        .args(["SET", "bare:__rand_int__", "device", "NX", "EX", "600"]);
    let text = output(command).await?;
    // A header, then: "the command","requests per second","average latency", …
    let rate = text
        .lines()
        .last()
        .and_then(|line| line.split("\",\"").nth(1));
    rate.and_then(|rate| rate.trim_matches('"').parse().ok())
        .with_context(|| format!("redis-benchmark printed no rate: {text}"))
}

/// Node's `redlock`, acquired and released; per second.
pub async fn node_redlock(url: &str, count: usize, at_once: usize) -> anyhow::Result<f64> {
    let folder = folder()?;
    let mut command = Command::new("node");
    command
        .arg(folder.join("redlock.mjs"))
        .args([url, &count.to_string(), &at_once.to_string()]);
    let text = output(command).await?;
    let rate = text.trim().parse();
    rate.with_context(|| format!("the peer printed no rate: {text}"))
}

/// A token that the gateway in Node accepts.
pub async fn express_token(secret: &str) -> anyhow::Result<String> {
    let mut command = Command::new("node");
    command.arg(folder()?.join("express-token.cjs"));
    command.env("JWT_SECRET", secret);
    Ok(output(command).await?.trim().to_owned())
}

/// Where the programs in Node are, with what they need.
pub fn folder() -> anyhow::Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
    ensure!(
        folder.join("node_modules").exists(),
        "run `npm ci` in {} first",
        folder.display()
    );
    Ok(folder)
}

async fn output(mut command: Command) -> anyhow::Result<String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let done = timeout(PATIENCE, command.output())
        .await
        .context("a peer took too long")?
        .context("starting a peer")?;
    if !done.status.success() {
        bail!("a peer failed: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(String::from_utf8(done.stdout)?)
}
