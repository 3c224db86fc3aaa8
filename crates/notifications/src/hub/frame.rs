//! What goes to a socket: one event with its payload.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::Utf8Bytes;
use serde::Serialize;
use serde_json::{Value, json};

/// Tells clients that the instance restarts.
const RESTARTING: &str = "server:restarting";

/// One event on its way to sockets; made once, shared by all of them.
#[derive(Debug)]
pub struct Frame {
    /// The name of the event.
    pub event: Cow<'static, str>,
    /// The number by which a client says what it saw last.
    pub seq: Option<i64>,
    /// How long the client should stay away, where it is told to go.
    pub return_after: Option<Duration>,
    /// The payload.
    pub data: Value,
    /// Both as the text of a plain WebSocket.
    pub text: Utf8Bytes,
}

impl Frame {
    /// A frame without a number.
    pub fn new(event: impl Into<Cow<'static, str>>, data: Value) -> Arc<Self> {
        Self::numbered(event.into(), None, data)
    }

    /// The greeting, under the number from where on its client is given notifications, where that is one user's.
    pub fn welcome(seq: Option<i64>, data: Value) -> Arc<Self> {
        Self::numbered("welcome".into(), seq, data)
    }

    /// A notification under its number.
    pub fn notification(seq: i64, notification: &impl Serialize) -> Arc<Self> {
        let data = serde_json::to_value(notification).unwrap_or_default();
        Self::numbered("notification".into(), Some(seq), data)
    }

    /// The `error` that tells a client why it was refused or cut.
    pub fn error(code: &str, message: &str) -> Arc<Self> {
        Self::new("error", json!({ "code": code, "message": message }))
    }

    /// The notice that this instance restarts, and when to come back.
    pub fn restarting(return_after: Duration) -> Arc<Self> {
        let data = json!({
            "retryAfterMs": return_after.as_millis() as u64,
            "message": "this instance restarts: reconnect retryAfterMs after it has closed this connection",
        });
        let mut frame = Self::of(RESTARTING.into(), None, data);
        frame.return_after = Some(return_after);
        Arc::new(frame)
    }

    fn numbered(event: Cow<'static, str>, seq: Option<i64>, data: Value) -> Arc<Self> {
        Arc::new(Self::of(event, seq, data))
    }

    fn of(event: Cow<'static, str>, seq: Option<i64>, data: Value) -> Self {
        #[derive(Serialize)]
        struct Text<'a> {
            event: &'a str,
            data: &'a Value,
        }
        let text = Text {
            event: &event,
            data: &data,
        };
        let text = serde_json::to_string(&text).unwrap_or_default().into();
        Self {
            event,
            seq,
            return_after: None,
            data,
            text,
        }
    }
}
