//! A notification: what a user is told, numbered for each user without a gap.

pub mod api;
pub mod db;
pub mod retention;
pub mod stats;
pub mod store;

use std::sync::Arc;

use contracts::{BroadcastId, EventId, NotificationId, Timestamp, UserId};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sqlx::types::Json;

/// The most bytes of JSON that a notification's data may have; it goes to every socket of the user.
pub const MAX_DATA: usize = 16 * 1024;
/// The most characters of a heading.
pub const MAX_TITLE: usize = 200;
/// The most characters of a text.
pub const MAX_MESSAGE: usize = 1000;

/// What a notification is about.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    sqlx::Type,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum Kind {
    /// The platform itself.
    #[default]
    System,
    /// Orders, payments, balance.
    Billing,
    /// A device.
    Device,
    /// Something to buy.
    Promotion,
    /// The account's safety.
    Security,
}

impl Kind {
    /// Its name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Billing => "billing",
            Self::Device => "device",
            Self::Promotion => "promotion",
            Self::Security => "security",
        }
    }
}

/// How much a notification matters.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum Priority {
    /// When there is time.
    Low,
    /// As usual.
    #[default]
    Normal,
    /// Soon.
    High,
    /// Now.
    Urgent,
}

/// Whether the user has read it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum Status {
    /// Not yet.
    Unread,
    /// Yes.
    Read,
}

/// How far it has come on its channels.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum DeliveryStatus {
    /// Waiting for a channel.
    Pending,
    /// Stored for the sockets of the user, and arrived by all other channels.
    Sent,
    /// Given up on one of them.
    Failed,
}

/// A way to the user.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum Channel {
    /// Sockets and event streams.
    Websocket,
    /// Mail.
    Email,
    /// Text messages.
    Sms,
    /// Calls to a URL of the user.
    Webhook,
}

impl Channel {
    /// Every way there is.
    pub const ALL: [Self; 4] = [Self::Websocket, Self::Email, Self::Sms, Self::Webhook];

    /// Its name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Websocket => "websocket",
            Self::Email => "email",
            Self::Sms => "sms",
            Self::Webhook => "webhook",
        }
    }

    /// Whether it leads out of the platform; sockets are fed from the store.
    pub fn leads_out(self) -> bool {
        self != Self::Websocket
    }
}

/// A frame that follows a notification on live sockets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Push {
    /// The name of the event, as in `payment-success`.
    pub event: String,
    /// Its payload.
    pub data: Value,
}

/// A notification that is not stored yet.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Who is told.
    pub user_id: UserId,
    /// What it is about.
    pub kind: Kind,
    /// What happened, as in `order.paid`.
    pub event: Option<&'static str>,
    /// The heading.
    pub title: String,
    /// The text.
    pub message: String,
    /// How much it matters.
    pub priority: Priority,
    /// The ways to the user.
    pub channels: Vec<Channel>,
    /// Whether the sender named them; else they only suggest themselves.
    pub channels_named: bool,
    /// Whether a plain user wrote it. The platform carries no such words to mailboxes and phones: it never saw whose they are.
    pub by_user: bool,
    /// Facts for programs.
    pub data: Option<Map<String, Value>>,
    /// What follows it on live sockets.
    pub pushes: Vec<Push>,
    /// The domain event it is made for.
    pub event_id: Option<EventId>,
    /// The broadcast it is a part of.
    pub broadcast_id: Option<BroadcastId>,
    /// When it is no longer of interest.
    pub expires_at: Option<Timestamp>,
}

impl Draft {
    /// A draft of which only the ways matter.
    #[cfg(test)]
    pub fn plain(user_id: UserId, channels: Vec<Channel>, channels_named: bool) -> Self {
        Self {
            user_id,
            kind: Kind::default(),
            event: None,
            title: String::new(),
            message: String::new(),
            priority: Priority::default(),
            channels,
            channels_named,
            by_user: false,
            data: None,
            pushes: Vec::new(),
            event_id: None,
            broadcast_id: None,
            expires_at: None,
        }
    }

    /// The state of delivery once it is stored: sockets are fed from the store, other channels have yet to come.
    pub fn delivery_status(&self) -> DeliveryStatus {
        if self.channels.iter().any(|channel| channel.leads_out()) {
            DeliveryStatus::Pending
        } else {
            DeliveryStatus::Sent
        }
    }
}

/// A notification as it stands in the store.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Stored {
    /// Names it.
    pub id: NotificationId,
    /// Whose it is.
    pub user_id: UserId,
    /// Its number among the user's notifications.
    pub seq: i64,
    /// What it is about.
    pub kind: Kind,
    event: Option<String>,
    title: String,
    message: String,
    /// How much it matters.
    pub priority: Priority,
    status: Status,
    delivery_status: DeliveryStatus,
    channels: Json<Vec<Channel>>,
    data: Option<Json<Box<RawValue>>>,
    /// What follows it on live sockets.
    pub pushes: Json<Vec<Push>>,
    broadcast_id: Option<BroadcastId>,
    created_at: Timestamp,
    read_at: Option<Timestamp>,
    /// When it is no longer of interest.
    pub expires_at: Option<Timestamp>,
}

/// An object as it was stored, or an empty one. It is never taken apart: as a tree it would take many times the room, and a page
/// has up to 500.
#[derive(Clone, Debug, Default)]
pub struct Facts(Option<Arc<RawValue>>);

impl Serialize for Facts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(facts) => facts.serialize(serializer),
            None => Map::new().serialize(serializer),
        }
    }
}

/// A notification as clients see it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Notification {
    /// Names it.
    pub id: NotificationId,
    /// Its number among the user's notifications; grows by one.
    pub seq: i64,
    /// Whose it is.
    pub user_id: UserId,
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// What happened, as in `order.paid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// The heading.
    pub title: String,
    /// The text.
    pub message: String,
    /// The text once more.
    pub content: String,
    /// How much it matters.
    pub priority: Priority,
    /// Whether it was read.
    pub status: Status,
    /// The same as a truth.
    pub is_read: bool,
    /// How far it has come on its channels.
    pub delivery_status: DeliveryStatus,
    /// The ways to the user.
    pub channels: Vec<Channel>,
    /// Facts for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub data: Option<Facts>,
    /// The same object; empty where there is none.
    #[schema(value_type = Object)]
    pub metadata: Facts,
    /// The broadcast it is a part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broadcast_id: Option<BroadcastId>,
    /// When it was made, where it is a part of a broadcast.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_at: Option<Timestamp>,
    /// When it is no longer of interest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

impl From<Stored> for Notification {
    fn from(stored: Stored) -> Self {
        let data = stored.data.map(|data| Facts(Some(data.0.into())));
        Self {
            id: stored.id,
            seq: stored.seq,
            user_id: stored.user_id,
            kind: stored.kind,
            event: stored.event,
            title: stored.title,
            content: stored.message.clone(),
            message: stored.message,
            priority: stored.priority,
            status: stored.status,
            is_read: stored.status == Status::Read,
            delivery_status: stored.delivery_status,
            channels: stored.channels.0,
            metadata: data.clone().unwrap_or_default(),
            data,
            timestamp: stored.broadcast_id.is_some().then_some(stored.created_at),
            broadcast_id: stored.broadcast_id,
            created_at: stored.created_at,
            read_at: stored.read_at,
            expires_at: stored.expires_at,
        }
    }
}
