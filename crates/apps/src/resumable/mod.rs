//! Resumable uploads by the tus protocol 1.0 (<https://tus.io/protocols/resumable-upload>), with its extensions creation,
//! creation-with-upload, expiration and termination.
//!
//! What arrives is stored in parts, each an object that a row names; the row and the new offset are written in one
//! statement, so that an offset that was told is kept whatever dies, and a client goes on at any replica. When the last
//! byte is there, the parts are joined to one object, and the app is made of it: by the replica that took the last byte, or,
//! if that one dies, by any other.

pub mod api;
mod assemble;
mod db;
pub mod jobs;
mod metadata;
mod receive;

use contracts::{AppId, Timestamp, UploadId, UserId};
use serde::Serialize;
use sqlx::types::Json;

use crate::app::upload::Fields;

/// Where parts lie in the object store.
pub const FOLDER: &str = "app-parts";

/// How far an upload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum UploadStatus {
    /// Bytes are missing.
    Receiving,
    /// All bytes are there, and the app is being made.
    Assembling,
    /// It is an app.
    Stored,
    /// It is none; `error` tells why.
    Refused,
}

/// A resumable upload.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Upload {
    /// Names the upload.
    pub id: UploadId,
    #[serde(skip)]
    user_id: UserId,
    /// How many bytes there will be.
    pub length: i64,
    /// How many bytes are stored.
    #[serde(rename = "offset")]
    #[sqlx(rename = "received")]
    pub offset: i64,
    /// How far it is.
    pub status: UploadStatus,
    /// The app that it became.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_id: Option<AppId>,
    /// Why it became none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it began.
    pub created_at: Timestamp,
    /// When what is stored of it is forgotten; each part that comes puts it off.
    pub expires_at: Timestamp,
    #[serde(skip)]
    fields: Json<Fields>,
    #[serde(skip)]
    metadata: String,
    #[serde(skip)]
    attempts: i32,
}
