//! What the supervisor tells its members, one JSON object a line.

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::info;

use crate::record::Addresses;

/// One line from the supervisor to a member.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Message {
    /// A step on the way, for people.
    Step(String),
    /// Both stores answer.
    Ready(Addresses),
    /// The supervisor gave up and ends.
    Failed(String),
}

/// Everything the supervisor has said since it started; a member that comes late hears it all.
#[derive(Clone)]
pub struct News(watch::Sender<Vec<Message>>);

impl News {
    /// Starts with nothing said.
    pub fn new() -> Self {
        Self(watch::Sender::new(Vec::new()))
    }

    /// Tells members of a step, and the log.
    pub fn step(&self, text: impl Into<String>) {
        let text = text.into();
        info!("{text}");
        self.say(Message::Step(text));
    }

    /// Tells all members something.
    pub fn say(&self, message: Message) {
        self.0.send_modify(|said| said.push(message));
    }

    /// Listens, from the first word on.
    pub fn listen(&self) -> watch::Receiver<Vec<Message>> {
        self.0.subscribe()
    }
}
