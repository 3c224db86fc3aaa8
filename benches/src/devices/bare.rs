//! What the engine does by itself: `docker run -d` in a shell loop.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::process::Command;
use tokio::time::timeout;

/// The longest that a turn may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// With the limits and the ports that a device has.
const LOOP: &str = r#"
export DOCKER_HOST="$1" IMAGE="$2"
seq 1 "$3" | xargs -P "$4" -I NUMBER sh -c 'docker run -d --name bare-NUMBER --cpus 1 --memory 512m --memory-swap 512m \
    -p 127.0.0.1:$((20000 + NUMBER)):5555 -p 127.0.0.1:$((21000 + NUMBER)):8080 -p 127.0.0.1:$((22000 + NUMBER)):27183 \
    "$IMAGE" > /dev/null'
"#;
const CLEAN: &str = r#"DOCKER_HOST="$1"; export DOCKER_HOST; docker ps -aq --filter name=bare- | xargs -r docker rm -f > /dev/null"#;

/// Runs so many containers, some at once; how many in a second.
pub async fn run(endpoint: &str, count: usize, parallel: usize) -> anyhow::Result<f64> {
    let (count_text, parallel) = (count.to_string(), parallel.to_string());
    let started = Instant::now();
    let arguments = [endpoint, testkit::IMAGE, &count_text, &parallel];
    let run = shell(LOOP, &arguments).await;
    let rate = count as f64 / started.elapsed().as_secs_f64();
    shell(CLEAN, &[endpoint]).await?;
    run.map(|()| rate)
}

async fn shell(script: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).args(arguments);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let done = timeout(PATIENCE, command.output()).await;
    let done = done.context("docker took too long")?.context("sh")?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "docker failed: {said}");
    Ok(())
}
