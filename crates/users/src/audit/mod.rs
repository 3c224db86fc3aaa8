//! The audit log: who did what, when and from where. An entry is written in the transaction of what it tells of, or, for what other
//! services did, made of their events, each once. Entries are never changed, and removed when their time is over; what they say of
//! a user is the id, so that nothing in them names somebody who left.

pub mod api;
mod db;
mod events;
pub mod export;
mod jobs;
pub mod origin;

use contracts::{EventId, Timestamp, UserId};
use serde_json::{Value, json};
use sqlx::PgConnection;

pub use events::Recorder;
pub use jobs::{run_jobs, spawn_jobs};

/// How it went.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    sqlx::Type,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
#[schema(as = AuditStatus)]
pub enum Status {
    /// It was done.
    Success,
    /// It was refused.
    Failed,
    /// It was done, and somebody should look.
    Warning,
}

impl Status {
    /// The name in the table and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Warning => "warning",
        }
    }
}

/// What is written down.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Who did it, or to whom it happened.
    pub user: Option<&'a UserId>,
    /// As in `role.updated`.
    pub action: &'a str,
    /// What it was done to.
    pub resource: (&'a str, Option<&'a str>),
    pub status: Status,
    /// Facts without secrets.
    pub details: Value,
    /// What was changed to what.
    pub changes: Option<Value>,
}

impl<'a> Entry<'a> {
    /// Something that was done.
    pub fn done(user: &'a UserId, action: &'a str, resource: (&'a str, &'a str)) -> Self {
        Self {
            user: Some(user),
            action,
            resource: (resource.0, Some(resource.1)),
            status: Status::Success,
            details: json!({}),
            changes: None,
        }
    }

    /// With facts, none of them secret.
    #[must_use]
    pub fn with(self, details: Value) -> Self {
        Self { details, ..self }
    }

    /// With what was changed.
    #[must_use]
    pub fn changing(self, changes: Value) -> Self {
        Self {
            changes: Some(changes),
            ..self
        }
    }

    /// The same, judged otherwise.
    #[must_use]
    pub fn judged(self, status: Status) -> Self {
        Self { status, ..self }
    }
}

/// Writes an entry down, with where the request under way came from.
///
/// # Errors
/// Where the database fails: what it tells of is not done then.
pub async fn write(conn: &mut PgConnection, entry: Entry<'_>, now: Timestamp) -> sqlx::Result<()> {
    let origin = origin::current();
    db::insert(conn, &EventId::new(), &entry, (&origin, None), now).await?;
    Ok(())
}
