//! One connection, between the local adb and the WebSocket.

use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::Outcome;

/// An open tunnel.
pub type Socket = WebSocketStream<reqwest::Upgraded>;

/// How much goes into a frame.
const PIECE: usize = 32 * 1024;
/// The other side is heard more often than this, if only by its pings.
const SILENCE: Duration = Duration::from_secs(75);
/// How long one side may take nothing of what is sent to it.
const STALL: Duration = Duration::from_secs(60);
/// How long the other side may take to hear that this is the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// Carries bytes both ways until one side ends.
pub async fn carry(socket: Socket, local: TcpStream) -> Outcome {
    let (mut to_device, mut from_device) = socket.split();
    let (mut from_local, mut to_local) = local.into_split();
    let up = async {
        let mut piece = vec![0; PIECE];
        loop {
            let read = match from_local.read(&mut piece).await {
                Ok(0) | Err(_) => return over("adb closed the connection"),
                Ok(read) => read,
            };
            let frame = Message::Binary(Bytes::copy_from_slice(&piece[..read]));
            match timeout(STALL, to_device.send(frame)).await {
                Ok(Ok(())) => {}
                // Why it broke comes from the other direction.
                Ok(Err(_)) => return std::future::pending().await,
                Err(_) => return over("the device takes nothing"),
            }
        }
    };
    let down = async {
        loop {
            let message = match timeout(SILENCE, from_device.next()).await {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => return over(&format!("the connection broke: {error}")),
                Ok(None) => return over("the gateway closed the connection"),
                Err(_) => return over("the gateway is silent"),
            };
            match message {
                Message::Binary(bytes) => match timeout(STALL, to_local.write_all(&bytes)).await {
                    Ok(Ok(())) => {}
                    _ => return over("adb takes nothing"),
                },
                Message::Close(close) => return closed(close),
                _ => {}
            }
        }
    };
    let outcome = tokio::select! {
        outcome = down => outcome,
        outcome = up => outcome,
    };
    let _ = timeout(FAREWELL, to_device.close()).await;
    outcome
}

fn over(why: &str) -> Outcome {
    Outcome::Over(why.to_owned())
}

/// What a close frame means: those of 44xx are like the HTTP status of their last digits.
fn closed(close: Option<CloseFrame>) -> Outcome {
    let Some(close) = close else {
        return over("the gateway closed the connection");
    };
    let code = u16::from(close.code);
    match code {
        4401 | 4403 | 4404 => Outcome::Final(close.reason.as_str().to_owned()),
        1012 => over("an instance restarts; connect again"),
        _ => Outcome::Over(close.reason.as_str().to_owned()),
    }
}
