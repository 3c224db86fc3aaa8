//! Broadcasts: one message for many users, stored for each under a number of the user's own.

pub mod api;
pub mod db;
pub mod jobs;

use contracts::{BroadcastId, Timestamp, UserId};
use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::types::Json;

use crate::notification::{Channel, Draft, Kind, Priority};

/// Where a broadcast stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum State {
    /// The next batch waits for a replica.
    Queued,
    /// A replica stores a batch.
    Running,
    /// Everybody was told.
    Done,
    /// Whoever was not told yet will not be.
    Cancelled,
}

/// One message for many users.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Broadcast {
    /// Names it.
    pub id: BroadcastId,
    kind: Kind,
    title: String,
    message: String,
    priority: Priority,
    channels: Option<Json<Vec<Channel>>>,
    data: Option<Json<Map<String, Value>>>,
    /// Only those with this role.
    pub role: Option<String>,
    /// Only these.
    pub user_ids: Option<Json<Vec<UserId>>>,
    /// How far it goes.
    pub upto: i64,
    /// How far it has come.
    pub cursor: i64,
    recipients: i64,
    told: i64,
    unwanted: i64,
    state: State,
    /// Proves that a worker holds it.
    pub fencing_token: Option<i64>,
    created_at: Timestamp,
    finished_at: Option<Timestamp>,
}

/// A broadcast as admins see it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShownBroadcast {
    /// Names it.
    pub id: BroadcastId,
    /// The heading.
    pub title: String,
    /// The text.
    pub message: String,
    /// Where it stands.
    pub state: State,
    /// How many there were to tell when it was made.
    pub recipients: i64,
    /// How many were told.
    pub told: i64,
    /// How many have switched off notifications of its type.
    pub unwanted: i64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When the last one was told, or it was cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

impl Broadcast {
    /// The notification of one user.
    pub fn draft(&self, user_id: UserId) -> Draft {
        let channels = self.channels.as_ref().map(|channels| channels.0.clone());
        Draft {
            user_id,
            kind: self.kind,
            event: None,
            title: self.title.clone(),
            message: self.message.clone(),
            priority: self.priority,
            channels_named: channels.is_some(),
            by_user: false,
            channels: channels.unwrap_or_else(|| vec![Channel::Websocket]),
            data: self.data.as_ref().map(|data| data.0.clone()),
            pushes: Vec::new(),
            event_id: None,
            broadcast_id: Some(self.id.clone()),
            expires_at: None,
        }
    }
}

impl From<Broadcast> for ShownBroadcast {
    fn from(broadcast: Broadcast) -> Self {
        Self {
            id: broadcast.id,
            title: broadcast.title,
            message: broadcast.message,
            state: broadcast.state,
            recipients: broadcast.recipients,
            told: broadcast.told,
            unwanted: broadcast.unwanted,
            created_at: broadcast.created_at,
            finished_at: broadcast.finished_at,
        }
    }
}
