//! Groups of a user's devices, by name.

pub mod api;
pub mod db;

use contracts::Timestamp;
use serde::Serialize;

/// A group, and how many devices say that they are in it.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    id: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    device_count: i64,
    tags: Vec<String>,
    created_at: Timestamp,
}
