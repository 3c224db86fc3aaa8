//! How an API key is shown; the secret once, when it is made.

use contracts::{ApiKeyId, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// Whether a key may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
#[schema(as = ApiKeyStatus)]
pub enum Status {
    /// It may.
    Active,
    /// It was switched off, and may be switched on again.
    Inactive,
    /// It was switched off for good.
    Revoked,
    /// Its time is over.
    Expired,
}

/// An API key without its secret.
#[derive(Clone, Debug, Serialize, Deserialize, sqlx::FromRow, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiKey {
    pub id: ApiKeyId,
    pub user_id: UserId,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Value>,
    /// The beginning of the secret.
    #[schema(example = "cp_live_1a2b3c4")]
    pub prefix: String,
    /// What it may be used for, as far as its user may.
    #[schema(example = json!(["devices:read", "orders:*"]))]
    pub scopes: Vec<String>,
    pub status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// How many requests it was used for; some seconds behind.
    pub usage_count: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// An API key with its secret, which is never shown again.
#[derive(Serialize, ToSchema)]
pub struct NewApiKey {
    #[serde(flatten)]
    pub shown: ApiKey,
    /// The secret: the value of `X-API-Key`.
    #[schema(example = "cp_live_1a2b3c4…")]
    pub key: String,
}

/// The keys of a user, counted.
#[derive(Debug, Serialize, sqlx::FromRow, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiKeyStatistics {
    pub user_id: UserId,
    pub total: i64,
    pub active: i64,
    pub inactive: i64,
    pub revoked: i64,
    pub expired: i64,
    /// How many requests they were used for.
    pub total_usage: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Timestamp>,
}
