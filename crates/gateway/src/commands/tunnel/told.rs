//! What the command tells: lines for people, or events for programs.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::super::say;
use super::Outcome;

/// Tells in one way or the other.
pub struct Told {
    json: bool,
}

impl Told {
    /// Events, or lines.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// The port is open.
    pub fn listening(&self, device: &str, name: &str, address: SocketAddr) -> anyhow::Result<()> {
        let command = format!("adb connect {address}");
        let event = json!({ "event": "listening", "deviceId": device, "deviceName": name, "address": address, "command": command });
        let line = format!(
            "device {name} ({device}) is reached on {address} until Ctrl-C; in another terminal:\n  {command}"
        );
        self.tell(&event, &line)
    }

    /// A connection came or went.
    pub fn connection(&self, event: &str, number: u64, why: Option<&str>) -> anyhow::Result<()> {
        let mut told = json!({ "event": event, "connection": number });
        if let Some(why) = why {
            told["reason"] = why.into();
        }
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        self.tell(&told, &format!("connection {number} {event}{why}"))
    }

    /// Nothing is carried any more. What is final is told to people as the error of the command.
    pub fn ended(&self, end: &Outcome) -> anyhow::Result<()> {
        let (reason, is_final) = match end {
            Outcome::Over(reason) => (reason, false),
            Outcome::Final(reason) => (reason, true),
        };
        if is_final && !self.json {
            return Ok(());
        }
        let event = json!({ "event": "ended", "reason": reason, "final": is_final });
        self.tell(&event, &format!("the tunnel is closed: {reason}"))
    }

    fn tell(&self, event: &Value, line: &str) -> anyhow::Result<()> {
        match self.json {
            true => say(&event.to_string()),
            false => say(line),
        }
    }
}
