//! Sockets through the front door.

use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message as Frame, WebSocketUpgrade};
use axum::routing::any;
use contracts::Service;
use futures::{SinkExt, StreamExt};
use gateway::front::FrontConfig;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::backend::Backend;
use crate::door::{Door, directory, eventually};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Repeats what it is told; at "bye" it closes with a reason, at "die" without a word.
fn parrot() -> Router {
    let talk = |upgrade: WebSocketUpgrade| async {
        upgrade
            .protocols(["parrot"])
            .on_upgrade(|mut socket| async move {
                while let Some(Ok(frame)) = socket.recv().await {
                    match frame {
                        Frame::Text(text) if text == "bye" => {
                            let close = axum::extract::ws::CloseFrame {
                                code: 4001,
                                reason: "as you wish".into(),
                            };
                            socket.send(Frame::Close(Some(close))).await.ok();
                        }
                        Frame::Text(text) if text == "die" => return,
                        Frame::Text(_) | Frame::Binary(_) => {
                            socket.send(frame).await.ok();
                        }
                        _ => {}
                    }
                }
            })
    };
    Router::new()
        .route("/notifications", any(talk))
        .route("/ws/notifications", any(talk))
}

async fn open(door: &Door, path: &str) -> Socket {
    let mut request = format!("ws://{}{path}", door.address)
        .into_client_request()
        .unwrap();
    request
        .headers_mut()
        .insert("sec-websocket-protocol", "parrot".parse().unwrap());
    let (socket, response) = connect_async(request).await.unwrap();
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["sec-websocket-protocol"], "parrot");
    assert!(response.headers().contains_key("x-request-id"));
    socket
}

#[tokio::test]
async fn a_socket_passes_with_what_is_said_and_how_it_ends() {
    let backend = Backend::serve("a", parrot()).await;
    let door = Door::to(Service::Notifications, &[backend.upstream()]).await;

    for path in [
        "/notifications",
        "/api/notifications?token=x",
        "/ws/notifications",
    ] {
        let mut socket = open(&door, path).await;
        for size in [0, 1, 125, 126, 70_000, 1_000_000] {
            socket.send(Message::binary(vec![7; size])).await.unwrap();
            assert_eq!(
                socket.next().await.unwrap().unwrap().into_data().len(),
                size
            );
        }
        assert_eq!(
            door.report(Service::Notifications)["instances"][0]["sockets"],
            1
        );

        socket.send("bye".into()).await.unwrap();
        let Message::Close(Some(close)) = socket.next().await.unwrap().unwrap() else {
            panic!("no close frame")
        };
        assert_eq!(
            (u16::from(close.code), close.reason.as_str()),
            (4001, "as you wish")
        );
        drop(socket);
        eventually("it is closed", || async {
            door.report(Service::Notifications)["instances"][0]["sockets"] == 0
        })
        .await;
    }
}

#[tokio::test]
async fn a_refused_handshake_is_passed_on() {
    let router =
        Router::new().fallback(|| async { (http::StatusCode::UNAUTHORIZED, "who are you") });
    let backend = Backend::serve("a", router).await;
    let door = Door::to(Service::Notifications, &[backend.upstream()]).await;

    let refused = connect_async(format!("ws://{}/notifications", door.address))
        .await
        .unwrap_err();

    let Error::Http(response) = refused else {
        panic!("{refused}")
    };
    assert_eq!(response.status(), 401);
}

#[tokio::test]
async fn another_protocol_does_not_pass() {
    let backend = Backend::echo("a").await;
    let door = Door::to(Service::Notifications, &[backend.upstream()]).await;
    let request = door
        .request("GET", "/notifications")
        .header("connection", "upgrade")
        .header("upgrade", "h2c");

    let told = door
        .send(request.body(axum::body::Body::empty()).unwrap())
        .await
        .json();

    assert!(
        told["headers"].get("upgrade").is_none() && told["headers"].get("connection").is_none()
    );
}

#[tokio::test]
async fn an_instance_that_dies_ends_its_sockets() {
    let backend = Backend::serve("a", parrot()).await;
    let door = Door::to(Service::Notifications, &[backend.upstream()]).await;
    let mut socket = open(&door, "/notifications").await;

    socket.send("die".into()).await.unwrap();
    assert!(
        !matches!(socket.next().await, Some(Ok(_))),
        "nobody said goodbye"
    );
    drop(socket);

    eventually("it is closed", || async {
        door.report(Service::Notifications)["instances"][0]["sockets"] == 0
    })
    .await;
}

#[tokio::test]
async fn a_silent_socket_is_ended() {
    let backend = Backend::serve("a", parrot()).await;
    let config = FrontConfig {
        socket_idle: Duration::from_millis(100),
        ..FrontConfig::default()
    };
    let door = Door::before(
        config,
        directory(Service::Notifications, &[backend.upstream()]),
        None,
    )
    .await;
    let mut socket = open(&door, "/notifications").await;

    let Message::Close(Some(close)) = socket.next().await.unwrap().unwrap() else {
        panic!("no close frame")
    };
    assert_eq!(close.code, CloseCode::Away, "nobody restarts");
    drop(socket);
    eventually("it is closed", || async {
        door.report(Service::Notifications)["instances"][0]["sockets"] == 0
    })
    .await;
}

#[tokio::test]
async fn at_the_end_sockets_are_told_to_come_back() {
    let backend = Backend::serve("a", parrot()).await;
    let config = FrontConfig {
        drain_within: Duration::from_millis(200),
        ..FrontConfig::default()
    };
    let door = Door::before(
        config,
        directory(Service::Notifications, &[backend.upstream()]),
        None,
    )
    .await;
    let mut socket = open(&door, "/notifications").await;

    door.drain.cancel();
    socket.send("still here".into()).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), "still here".into());
    let Message::Close(Some(close)) = socket.next().await.unwrap().unwrap() else {
        panic!("no close frame")
    };
    assert_eq!(close.code, CloseCode::Restart);
    let reason: serde_json::Value = serde_json::from_str(&close.reason).unwrap();
    assert!((500..=5_500).contains(&reason["retryAfterMs"].as_u64().unwrap()));
    drop(socket);

    door.front.drained().await;
}
