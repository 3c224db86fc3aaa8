//! The plain WebSocket: one JSON text frame for each event, `{"event": …, "data": …}`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::response::{IntoResponse, Response};
use http::{Extensions, HeaderMap, Uri};
use platform::Problem;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::{Hello, MAX_INCOMING, Sockets, farewell, malformed};
use crate::Notifications;
use crate::hub::{Frame, Identity, Link, Live, MAX_WAITING};

const PING_EVERY: Duration = Duration::from_secs(25);
/// How long a client may be silent before it is taken for gone.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a client that we leave may take to read the reason.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a client says.
#[derive(Deserialize)]
pub struct Incoming {
    event: String,
    #[serde(default)]
    data: Value,
}

/// Lets a socket in.
pub async fn open(
    State(state): State<Notifications>,
    uri: Uri,
    headers: HeaderMap,
    extensions: Extensions,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let sockets = state.sockets();
    let admitted = async {
        let hello = Hello::of(&uri, &headers)?;
        let identity = sockets.admit(&hello, &headers, &extensions).await?;
        let upgrade = upgrade
            .map_err(|_| Problem::invalid_field("Upgrade", "this is a WebSocket of version 13"))?;
        Ok::<_, Problem>((hello, identity, upgrade))
    };
    match admitted.await {
        Ok((hello, identity, upgrade)) => upgrade
            .max_message_size(MAX_INCOMING)
            .max_frame_size(MAX_INCOMING)
            .on_upgrade(move |socket| serve(sockets, socket, identity, hello.last_seq)),
        Err(problem) => problem.into_response(),
    }
}

async fn serve(sockets: Sockets, mut socket: WebSocket, identity: Identity, last_seq: Option<i64>) {
    let (queue, mut frames) = mpsc::channel(MAX_WAITING);
    let live = sockets.hub.open(identity, Link::Queue(queue), "websocket");
    let client_id = Uuid::new_v4().to_string();
    let arrival = sockets.arrive(&live, last_seq).await;
    let welcome = sockets.welcome(&live, &client_id, arrival);
    let carry = carry(&sockets, &live, &mut socket, &mut frames);
    // Catching up fills the queue while the client empties it.
    tokio::select! {
        biased;
        () = carry => {}
        () = live.ended.cancelled() => {}
        () = async { welcome.await; std::future::pending().await } => {}
    }
    sockets.hub.remove(&live);
    let Some((goodbye, reason)) = farewell(&live) else {
        // Its client has said goodbye, or is gone: reading on sends the answer that closes the connection in order.
        let _ = timeout(FAREWELL, async {
            while let Some(Ok(_)) = socket.recv().await {}
        })
        .await;
        return;
    };
    let close = CloseFrame {
        code: goodbye.close_code(),
        reason: live.close_reason(goodbye).into(),
    };
    let _ = timeout(FAREWELL, async {
        if let Some(reason) = reason {
            socket.send(Message::Text(reason.text.clone())).await?;
        }
        socket.send(Message::Close(Some(close))).await?;
        // The client answers with its own close, so that what was sent is not lost to a reset.
        while let Some(Ok(_)) = socket.recv().await {}
        Ok::<_, axum::Error>(())
    })
    .await;
}

/// Carries frames both ways until one side ends.
async fn carry(
    sockets: &Sockets,
    live: &Arc<Live>,
    socket: &mut WebSocket,
    frames: &mut mpsc::Receiver<Arc<Frame>>,
) {
    let mut ping = tokio::time::interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            frame = frames.recv() => {
                let Some(frame) = frame else { return };
                if send(socket, Message::Text(frame.text.clone())).await.is_err() {
                    return;
                }
            }
            message = socket.recv() => {
                heard = Instant::now();
                let answer = match message {
                    None | Some(Err(_) | Ok(Message::Close(_))) => return,
                    Some(Ok(Message::Text(text))) => obey(sockets, live, &text, frames, socket).await,
                    Some(Ok(Message::Binary(_))) => Some(malformed("a frame", "JSON text")),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => None,
                };
                if let Some(answer) = answer && send(socket, Message::Text(answer.text.clone())).await.is_err() {
                    return;
                }
            }
            _ = ping.tick() => {
                if heard.elapsed() > SILENCE || send(socket, Message::Ping(bytes::Bytes::new())).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Sends a message to a client that takes it in time. While one waits, no ping tells that the client is gone.
async fn send(socket: &mut WebSocket, message: Message) -> Result<(), ()> {
    match timeout(SILENCE, socket.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(()),
    }
}

/// Does what the client asks; its answer.
async fn obey(
    sockets: &Sockets,
    live: &Arc<Live>,
    text: &str,
    frames: &mut mpsc::Receiver<Arc<Frame>>,
    socket: &mut WebSocket,
) -> Option<Arc<Frame>> {
    let Ok(Incoming { event, data }) = serde_json::from_str(text) else {
        return Some(malformed("a frame", r#"{"event": name, "data": {}}"#));
    };
    let ask = || serde_json::from_value(data).map_err(|_| ());
    match event.as_str() {
        "ping" => Some(Frame::new(
            "pong",
            json!({ "timestamp": sockets.platform.clock.now() }),
        )),
        "unsubscribe" => Some(sockets.unsubscribe(live, ask())),
        "subscribe" => {
            // What the new subscription missed is carried while it is read.
            let mut subscribing = std::pin::pin!(sockets.subscribe(live, ask()));
            loop {
                tokio::select! {
                    answer = &mut subscribing => return Some(answer),
                    frame = frames.recv() => {
                        send(socket, Message::Text(frame?.text.clone())).await.ok()?;
                    }
                }
            }
        }
        _ => Some(Frame::error(
            "UNKNOWN_EVENT",
            "a client sends subscribe, unsubscribe or ping",
        )),
    }
}
