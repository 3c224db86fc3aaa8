//! What goes to a socket: one event with its payload.

use std::borrow::Cow;
use std::sync::Arc;

use axum::extract::ws::Utf8Bytes;
use serde::Serialize;
use serde_json::{Value, json};

/// One event on its way to sockets; made once, shared by all of them.
#[derive(Debug)]
pub struct Frame {
    /// The name of the event.
    pub event: Cow<'static, str>,
    /// The number by which a client says what it saw last.
    pub seq: Option<i64>,
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

    /// A notification under its number.
    pub fn notification(seq: i64, notification: &impl Serialize) -> Arc<Self> {
        let data = serde_json::to_value(notification).unwrap_or_default();
        Self::numbered("notification".into(), Some(seq), data)
    }

    /// The `error` that tells a client why it was refused or cut.
    pub fn error(code: &str, message: &str) -> Arc<Self> {
        Self::new("error", json!({ "code": code, "message": message }))
    }

    fn numbered(event: Cow<'static, str>, seq: Option<i64>, data: Value) -> Arc<Self> {
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
        Arc::new(Self {
            event,
            seq,
            data,
            text,
        })
    }
}
