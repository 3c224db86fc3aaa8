//! Sockets: a notification reaches them on every replica, and nothing is missed over a reconnection.

use anyhow::Context;
use cluster_tests::sockets::{connect, next, send};
use cluster_tests::{GATEWAY, NOTIFICATIONS, PATIENCE, all_instances};
use futures::SinkExt;
use serde_json::json;
use testkit::Cluster;
use tokio::process::Command;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

#[tokio::test]
async fn a_notification_reaches_the_sockets_on_every_replica() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let addresses = all_instances(&cluster, "notifications", 3).await;
    let mut sockets = Vec::new();
    for address in &addresses {
        let mut socket = connect(&format!("ws://{address}/notifications?userId=test")).await?;
        next(&mut socket, "welcome").await?;
        sockets.push(socket);
    }

    for (number, address) in addresses.iter().enumerate() {
        let text = format!("Hello {number}");
        send(
            format!("http://{address}/notifications/send"),
            "test",
            &text,
        )
        .await?;

        for socket in &mut sockets {
            assert_eq!(
                next(socket, "notification").await?["message"],
                text.as_str()
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_comes_back_gets_exactly_what_it_missed() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let addresses = all_instances(&cluster, "notifications", 3).await;
    let send_url = cluster.url(GATEWAY, "/api/notifications/send");
    let mut socket = connect(&format!("ws://{}/notifications?userId=test", addresses[0])).await?;
    send(send_url.clone(), "test", "seen").await?;
    let last_seen = next(&mut socket, "notification").await?["seq"]
        .as_i64()
        .context("no seq")?;
    socket.close(None).await?;
    for number in 0..5 {
        send(send_url.clone(), "test", &format!("missed {number}")).await?;
    }

    let mut socket = connect(&format!(
        "ws://{}/notifications?userId=test&lastSeq={last_seen}",
        addresses[1]
    ))
    .await?;

    for number in 0..5 {
        let heard = next(&mut socket, "notification").await?;
        assert_eq!(
            (heard["message"].as_str(), heard["seq"].as_i64()),
            (
                Some(format!("missed {number}").as_str()),
                Some(last_seen + 1 + number)
            )
        );
    }
    send(send_url, "test", "live").await?;
    assert_eq!(next(&mut socket, "notification").await?["message"], "live");
    Ok(())
}

#[tokio::test]
async fn sockets_go_through_the_gateway() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let mut socket = connect(&cluster.websocket_url(GATEWAY, "/notifications?userId=test")).await?;
    next(&mut socket, "welcome").await?;

    send(
        cluster.url(NOTIFICATIONS, "/notifications/send"),
        "test",
        "through the door",
    )
    .await?;

    assert_eq!(
        next(&mut socket, "notification").await?["message"],
        "through the door"
    );
    socket
        .send(Message::Text(json!({ "event": "ping" }).to_string().into()))
        .await?;
    Ok(())
}

/// The real client of npm, by both transports, through the gateway, with a token.
#[tokio::test]
async fn the_socket_io_client_hears_its_user_by_websocket_and_by_polling() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let token = cluster_tests::register(&cluster, "alice").await?;

    for transport in ["websocket", "polling"] {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/socket-io.mjs");
        let mut client = Command::new("node");
        client
            .args([script, &cluster.url(GATEWAY, ""), transport, &token])
            .kill_on_drop(true);
        let output = timeout(PATIENCE, client.output())
            .await
            .context("the client hangs")??;

        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{transport}: {said} {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
