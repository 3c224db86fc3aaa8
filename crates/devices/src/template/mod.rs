//! Templates: what devices shall be, kept to make more of them.

pub mod api;
pub mod db;
pub mod make;

use contracts::{Timestamp, UserId};
use serde::{Deserialize, Serialize};

use crate::device::create::CreateDevice;

names! {
    /// What a template is for.
    Category, "category" {
        /// Games.
        Gaming = "gaming",
        /// Tests.
        Testing = "testing",
        /// Anything.
        General = "general",
        /// What its maker knows.
        Custom = "custom",
    }
}

/// A template.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Template {
    /// Its id.
    pub id: String,
    /// What its maker calls it.
    pub name: String,
    /// What its maker says about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    // What it is for, as its type says: a text of its own would make another schema of it.
    #[sqlx(try_from = "String")]
    #[schema(inline)]
    pub category: Category,
    /// Processor cores.
    pub cpu_cores: i32,
    /// Memory.
    #[serde(rename = "memoryMB")]
    pub memory_mb: i32,
    /// Storage.
    #[serde(rename = "storageMB")]
    pub storage_mb: i32,
    /// Pixels.
    pub resolution: String,
    /// Dots per inch.
    pub dpi: i32,
    /// The version of Android.
    pub android_version: String,
    /// Marks of its maker.
    pub tags: Vec<String>,
    /// Whether others see it and make devices of it.
    pub is_public: bool,
    /// How many devices were made of it.
    pub usage_count: i64,
    /// Who made it; the one who may change it.
    pub created_by: UserId,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

impl Template {
    /// A device of it that has no name yet.
    pub fn device(&self) -> CreateDevice {
        CreateDevice {
            cpu_cores: Some(self.cpu_cores),
            memory_m_b: Some(self.memory_mb),
            storage_m_b: Some(self.storage_mb),
            resolution: Some(self.resolution.clone()),
            dpi: Some(self.dpi),
            android_version: Some(self.android_version.clone()),
            tags: Some(self.tags.clone()),
            ..CreateDevice::default()
        }
    }
}
