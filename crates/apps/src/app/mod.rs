//! An app: one version of one package.

pub mod api;
mod archive;
pub mod browse;
pub mod change;
pub mod db;
pub mod download;
pub mod icon;
pub mod jobs;
pub mod link;
pub mod manifest;
pub mod package;
pub mod register;
pub mod resources;
pub mod upload;

use contracts::{AppId, Timestamp, UserId};
use serde::{Deserialize, Serialize};

/// Where an app stands between upload and the shelf.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum AppStatus {
    /// With its uploader, who changes it and submits it again.
    Uploading,
    /// Stored, waiting for a reviewer.
    PendingReview,
    /// Accepted by a reviewer.
    Approved,
    /// Refused by a reviewer.
    Rejected,
    /// On the shelf.
    Available,
    /// Taken from the shelf.
    Unavailable,
}

impl AppStatus {
    /// As it stands in JSON and in the table.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Uploading => "uploading",
            Self::PendingReview => "pending_review",
            Self::Approved => "approved",
            Self::Rejected => "rejected",
            Self::Available => "available",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What an app is for.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Category {
    /// Talking to people.
    Social,
    /// Playing.
    Game,
    /// Getting something done.
    Tool,
    /// Watching and listening.
    Entertainment,
    /// Writing and planning.
    Productivity,
    /// Trading.
    Business,
    /// Learning.
    Education,
    /// Anything else.
    #[default]
    Other,
}

/// One version of one package.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct App {
    /// Names the app.
    pub id: AppId,
    /// What people call it.
    pub name: String,
    /// The Android package.
    pub package_name: String,
    /// The same as `versionName`.
    #[sqlx(rename = "version_name")]
    pub version: String,
    /// The version as people read it.
    #[sqlx(rename = "shown_version")]
    pub version_name: String,
    /// The version as Android compares it.
    pub version_code: i64,
    /// Whether it is the highest version of its package.
    pub is_latest: bool,
    /// Where it stands.
    pub status: AppStatus,
    /// What it is for.
    pub category: Category,
    /// Bytes.
    pub size: i64,
    /// The SHA-256 of the package, hexadecimal.
    pub sha256: String,
    /// Where its icon is fetched, below this service.
    #[sqlx(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icon_url: Option<String>,
    /// What it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The oldest Android API level it runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_sdk_version: Option<i32>,
    /// The Android API level it was made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_sdk_version: Option<i32>,
    /// What it asks to be allowed.
    pub permissions: Vec<String>,
    /// The SHA-256 of the certificate that it is signed with, as the package says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_sha256: Option<String>,
    /// Words to find it by.
    pub tags: Vec<String>,
    /// Who uploaded it.
    pub uploader_id: UserId,
    /// Where the package is fetched, below this service.
    #[sqlx(skip)]
    pub download_url: String,
    /// How often it was fetched.
    pub download_count: i64,
    /// How often it was installed.
    pub install_count: i64,
    /// When it was uploaded.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Its number among all.
    #[serde(skip)]
    pub seq: i64,
    #[serde(skip)]
    pub object_key: String,
    /// Where the icon of its content lies in the object store.
    #[serde(skip)]
    pub icon_key: Option<String>,
}

impl App {
    fn with_urls(mut self) -> Self {
        self.download_url = format!("/apps/{}/download", self.id);
        let has_icon = self.icon_key.is_some();
        self.icon_url = has_icon.then(|| format!("/apps/{}/icon", self.id));
        self
    }

    /// Whether everybody may see it.
    pub fn is_public(&self) -> bool {
        matches!(self.status, AppStatus::Approved | AppStatus::Available)
    }
}
