//! WebSocket clients of the notification service.

use anyhow::{Context, ensure};
use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::{PATIENCE, call};

/// A connected client.
pub type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Connects to a URL of the plain protocol.
///
/// # Errors
/// Where it is refused.
pub async fn connect(url: &str) -> anyhow::Result<Socket> {
    Ok(connect_async(url).await.with_context(|| url.to_owned())?.0)
}

/// The data of the next frame of an event.
///
/// # Errors
/// Where the socket ends, or none comes.
pub async fn next(socket: &mut Socket, event: &str) -> anyhow::Result<Value> {
    let heard = async {
        while let Some(message) = socket.next().await {
            match message? {
                Message::Text(text) => {
                    let frame: Value = serde_json::from_str(&text)?;
                    if frame["event"] == event {
                        return Ok(frame["data"].clone());
                    }
                }
                Message::Close(close) => anyhow::bail!("closed: {close:?}"),
                _ => {}
            }
        }
        anyhow::bail!("the socket ended")
    };
    timeout(PATIENCE, heard)
        .await
        .with_context(|| format!("no {event} came"))?
}

/// Sends a notification to a user.
///
/// # Errors
/// Where it is refused.
pub async fn send(url: String, user: &str, message: &str) -> anyhow::Result<Value> {
    let ask = json!({ "userId": user, "message": message });
    let reply = call(Method::POST, url, Some(ask)).await?;
    ensure!(reply.status == 201, "{reply:?}");
    Ok(reply.body)
}
