//! The acceptance checklist of the system's operators, with curl, jq and wscat as written there.

use std::collections::BTreeSet;
use std::process::Stdio;

use anyhow::{Context, ensure};
use cluster_tests::{NOTIFICATIONS, PATIENCE};
use testkit::{Cluster, eventually};
use tokio::process::Command;

/// Runs a line of shell; `localhost` is the cluster's address.
async fn shell(cluster: &Cluster, line: &str) -> anyhow::Result<String> {
    let line = line.replace("localhost", &cluster.address().to_string());
    let output = Command::new("bash")
        .args(["-o", "pipefail", "-c", &line])
        .kill_on_drop(true)
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[tokio::test]
async fn two_devices_get_the_first_and_the_second_ports() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let create = |user: &str, name: &str| {
        format!(
            r#"curl -sS -X POST http://localhost:30000/api/devices -H "Content-Type: application/json" -d '{{"userId": "{user}", "name": "{name}"}}'"#
        )
    };

    shell(&cluster, &create("user1", "device1")).await?;
    shell(&cluster, &create("user2", "device2")).await?;

    let lines = cluster.logs_containing("Allocated ports");
    assert_eq!(lines.len(), 2, "{lines:?}");
    for expected in [
        "Allocated ports: ADB=5555, WebRTC=8080",
        "Allocated ports: ADB=5556, WebRTC=8081",
    ] {
        assert!(
            lines.iter().any(|line| line.contains(expected)),
            "{expected} is not in {lines:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_payment_told_twice_pays_once() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let order = shell(
        &cluster,
        r#"curl -sS -X POST http://localhost:30000/api/billing/orders -H "Content-Type: application/json" -d '{"userId":"test","planId":"basic","amount":100}' | jq -r '.id'"#,
    )
    .await?;
    let pay = format!(
        r#"curl -sS -X POST http://localhost:30005/webhooks/payment -d "orderId={order}&status=paid" | jq .duplicate"#
    );

    assert_eq!(shell(&cluster, &pay).await?, "false");
    assert_eq!(shell(&cluster, &pay).await?, "true");

    let status = format!("curl -sS http://localhost:30005/orders/{order} | jq '.status'");
    assert_eq!(shell(&cluster, &status).await?, r#""PAID""#);
    Ok(())
}

#[tokio::test]
async fn a_socket_on_one_replica_hears_what_is_sent_through_another() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let wscat = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/clients/node_modules/.bin/wscat"
    );
    ensure!(
        std::path::Path::new(wscat).exists(),
        "wscat is missing: tests/install installs it"
    );
    let mut socket = Command::new(wscat)
        .args([
            "-c",
            &cluster.websocket_url(NOTIFICATIONS, "/notifications"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut heard = tokio::io::BufReader::new(socket.stdout.take().context("wscat has no output")?);

    // Connections spread over the replicas, so among many sendings some come through another one than the socket's.
    let mut frames = String::new();
    eventually(PATIENCE, "a notification frame at wscat", async || {
        shell(
            &cluster,
            r#"curl -sS -X POST http://localhost:30006/notifications/send -H "Content-Type: application/json" -d '{"userId":"test","message":"Hello"}'"#,
        )
        .await?;
        read_available(&mut heard, &mut frames).await?;
        let notification = frames.lines().any(|line| line.contains("notification") && line.contains("Hello"));
        ensure!(notification, "{frames:?}");
        Ok(())
    })
    .await;
    Ok(())
}

async fn read_available(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut String,
) -> anyhow::Result<()> {
    use tokio::io::AsyncReadExt as _;
    let mut buffer = [0; 4096];
    while let Ok(count) = tokio::time::timeout(
        std::time::Duration::from_millis(100),
        from.read(&mut buffer),
    )
    .await
    {
        match count? {
            0 => break,
            count => to.push_str(&String::from_utf8_lossy(&buffer[..count])),
        }
    }
    Ok(())
}

#[tokio::test]
async fn ten_calls_of_health_are_answered_by_every_replica() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let ask =
        "for i in {1..10}; do curl -sS http://localhost:30000/health | jq -r '.instance'; done";

    for _ in 0..3 {
        let answers = shell(&cluster, ask).await?;

        assert_eq!(answers.lines().count(), 10, "{answers}");
        let seen: BTreeSet<_> = answers.lines().collect();
        assert_eq!(
            seen,
            BTreeSet::from(["instance-0", "instance-1", "instance-2"])
        );
    }
    let noise = cluster.logs_containing("could not read the stream");
    assert!(
        noise.is_empty(),
        "an idle replica has nothing to warn of: {noise:?}"
    );
    Ok(())
}

#[tokio::test]
async fn every_example_of_the_readme_does_what_it_says() -> anyhow::Result<()> {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let readme = std::fs::read_to_string(readme)?;
    let (_, chapter) = readme
        .split_once("\n## The API by example\n")
        .context("the chapter is not there")?;
    let (chapter, _) = chapter.split_once("\n## ").context("it has no end")?;
    let blocks = chapter.split("```sh\n").skip(1);
    let lines = blocks.filter_map(|block| Some(block.split_once("```")?.0));
    let script: String = ["set -eu\n"].into_iter().chain(lines).collect();
    let cluster = Cluster::start(2).await?;

    let shown = tokio::time::timeout(PATIENCE * 3, shell(&cluster, &script));
    let shown = shown.await.context("the examples hang")??;

    for part in [
        "Cloudphone Stub",
        "maxConcurrentDevices",
        "small phone",
        "\"revoked\"",
    ] {
        ensure!(shown.contains(part), "{part} is not in {shown}");
    }
    // It went on to the last one.
    ensure!(shown.ends_with("how to set another password\""), "{shown}");
    Ok(())
}
