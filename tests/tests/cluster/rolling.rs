//! A rolling restart of everything under load, judged by clients that are not ours.

use std::path::Path;
use std::process::{Output, Stdio};

use anyhow::{Context, ensure};
use cluster_tests::leftovers::Leftovers;
use cluster_tests::operator::command;
use cluster_tests::{BILLING, GATEWAY, PATIENCE, all_instances};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testkit::{Authority, Cluster};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

const REPLICAS: usize = 3;
/// Where the door takes TLS.
const SECURE: u16 = 30443;
/// What `RECONNECT_SPREAD_SECONDS` is set to.
const SPREAD_MS: u64 = 1000;
/// Uploads at once, each longer than it takes a replica to leave once it was asked for the first time.
const UPLOADERS: usize = 2;

/// Asks for a URL without pause over connections that it keeps, until it is interrupted. It has what is left of the
/// processors: this is about restarts, not about overload.
fn wrk(url: &str) -> anyhow::Result<Child> {
    let mut wrk = Command::new("nice");
    wrk.args([
        "-n",
        "19",
        "wrk",
        "-t1",
        "-c4",
        "-d900s",
        "--timeout",
        "30s",
        url,
    ]);
    Ok(wrk.stdout(Stdio::piped()).kill_on_drop(true).spawn()?)
}

/// Interrupts it; how many requests it made, none of which failed.
async fn succeeded(wrk: Child) -> anyhow::Result<u64> {
    let pid = wrk.id().context("wrk has ended")?;
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGINT)?;
    let output = timeout(PATIENCE, wrk.wait_with_output()).await??;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        !said.contains("Socket errors") && !said.contains("Non-2xx"),
        "{said}"
    );
    let line = said.lines().find(|line| line.contains(" requests in "));
    let count = line.and_then(|line| line.split_whitespace().next());
    Ok(count.context("wrk said nothing")?.parse()?)
}

/// Uploads one package after the other until told to end; how many.
async fn upload(
    file: &Path,
    url: &str,
    token: &str,
    who: usize,
    mut ended: watch::Receiver<bool>,
) -> anyhow::Result<usize> {
    let mut count = 0;
    while !*ended.borrow_and_update() {
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--limit-rate",
            "400k",
            "--max-time",
            "120",
        ])
        .args(["--header", &format!("Authorization: Bearer {token}")])
        .args([
            "--form",
            &format!("packageName=com.example.by{who}.n{count}"),
        ])
        .args(["--form", "versionCode=1"])
        .args([
            "--form",
            &format!("file=@{};filename=app.apk", file.display()),
        ])
        .args(["--write-out", "\n%{http_code}", url]);
        let Output {
            status,
            stdout,
            stderr,
        } = curl.kill_on_drop(true).output().await?;
        let said = String::from_utf8_lossy(&stdout);
        ensure!(
            status.success() && said.ends_with("\n201"),
            "{status} {said} {}",
            String::from_utf8_lossy(&stderr)
        );
        count += 1;
    }
    Ok(count)
}

#[tokio::test]
async fn all_replicas_are_replaced_under_load_and_no_client_notices() -> anyhow::Result<()> {
    let folder = tempfile::TempDir::new()?;
    let (certificate, key) = Authority::new()?
        .issue(&["localhost"])?
        .write(folder.path())?;
    let cluster = Cluster::builder(REPLICAS)
        .env("RECONNECT_SPREAD_SECONDS", SPREAD_MS / 1000)
        .env("GATEWAY_TLS_CERT", certificate.display())
        .env("GATEWAY_TLS_KEY", key.display())
        .start()
        .await?;
    let _leftovers = Leftovers::of(&cluster)?;
    all_instances(&cluster, "gateway", REPLICAS).await;
    let token = cluster_tests::register(&cluster, "alice").await?;
    let file = folder.path().join("app.apk");
    std::fs::write(&file, crate::files::package(&vec![7; 1_500_000]))?;

    let secure = cluster.url(SECURE, "/api/plans/active");
    let loads = [
        wrk(&cluster.url(GATEWAY, "/api/plans/active"))?,
        // It asks for no certificate that it knows.
        wrk(&secure.replacen("http", "https", 1))?,
        wrk(&cluster.url(BILLING, "/health/liveness"))?,
    ];
    let mut sockets = Command::new("node")
        .args([concat!(env!("CARGO_MANIFEST_DIR"), "/clients/rolling.mjs")])
        .args([&cluster.url(GATEWAY, ""), &token])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut connected = BufReader::new(sockets.stderr.take().context("no standard error")?);
    let mut line = String::new();
    timeout(PATIENCE * 2, connected.read_line(&mut line)).await??;
    ensure!(line == "connected\n", "{line}");
    let url = cluster.url(GATEWAY, "/api/apps/upload");
    let (end, ended) = watch::channel(false);

    let restarting = async {
        let mut reload = command(&cluster, &["reload", "--unsupervised"])?.spawn()?;
        let mut printed = BufReader::new(reload.stdout.take().context("no standard output")?);
        let mut shown = String::new();
        while !shown.contains("starts its successor") {
            let read = timeout(PATIENCE, printed.read_line(&mut shown)).await??;
            ensure!(read > 0, "it ended after {shown}");
        }
        let second = command(&cluster, &["reload", "--dry-run"])?
            .output()
            .await?;
        let said = String::from_utf8_lossy(&second.stderr);
        ensure!(said.contains("another reload"), "{said}");
        let read = printed.read_to_string(&mut shown);
        timeout(PATIENCE * 5, read)
            .await
            .context("reload hangs")??;
        let output = reload.wait_with_output().await?;
        end.send_replace(true);
        ensure!(
            output.status.success(),
            "{shown} {}",
            String::from_utf8_lossy(&output.stderr)
        );
        anyhow::Ok(shown)
    };
    let uploads = (0..UPLOADERS).map(|who| upload(&file, &url, &token, who, ended.clone()));
    let (shown, uploads) = tokio::join!(restarting, futures::future::join_all(uploads));
    let shown = shown?;

    for number in 0..REPLICAS {
        let old = cluster.replica(number);
        assert!(
            old.wait_exit().await?.success(),
            "it leaves with exit code 0"
        );
    }
    assert!(shown.contains("replaced 3 replicas"), "{shown}");
    all_instances(&cluster, "gateway", REPLICAS).await;
    for load in loads {
        let requests = succeeded(load).await?;
        assert!(requests > 100, "{requests} requests are no load");
    }
    for count in uploads {
        assert!(count? > 1, "uploads went on");
    }
    drop(sockets.stdin.take());
    let output = timeout(PATIENCE, sockets.wait_with_output()).await??;
    judge(&serde_json::from_slice(&output.stdout)?)
}

/// Whether it is a time to stay away, long enough to miss the one that leaves.
fn is_hint(hint: &u64) -> bool {
    (500..=500 + SPREAD_MS).contains(hint)
}

/// Every client heard every notification once and in order, was told of each restart, and came back by itself.
fn judge(report: &Value) -> anyhow::Result<()> {
    assert_eq!(report["failures"], Value::Array(Vec::new()), "{report:#}");
    let sent: Vec<i64> = serde_json::from_value(report["sent"].clone())?;
    let last = sent.last().copied().unwrap_or_default();
    assert!(sent.len() > 20, "{} notifications are no load", sent.len());
    let clients = report["clients"].as_object().context("no clients")?;
    for (name, client) in clients {
        let heard: Vec<i64> = serde_json::from_value(client["heard"].clone())?;
        assert!(
            heard.iter().copied().eq(1..=last),
            "{name} of {last}: {heard:?}"
        );
        let closes: Vec<String> = serde_json::from_value(client["closes"].clone())?;
        assert!(!closes.is_empty(), "{name} was never sent away");
        let hints: Vec<u64> = serde_json::from_value(client["restarts"].clone())?;
        // Others may lose each socket with the door alone, whose close says it to plain clients.
        assert!(
            !hints.is_empty() || name != "polling",
            "it stays with its instance, and was not told that this leaves"
        );
        assert!(hints.iter().all(is_hint), "{name}: {hints:?}");
        if name == "plain" {
            for close in closes {
                let (code, reason) = close.split_once(' ').context("no reason")?;
                let reason: Value = serde_json::from_str(reason)?;
                assert_eq!(code, "1012");
                assert!(
                    reason["retryAfterMs"]
                        .as_u64()
                        .as_ref()
                        .is_some_and(is_hint)
                );
            }
        }
    }
    Ok(())
}
