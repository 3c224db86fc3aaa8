//! Plans: what can be ordered.

pub mod admin;
pub mod api;
pub mod db;

use contracts::event::PlanTerms;
use contracts::{Money, PlanId, Timestamp};
use serde::Serialize;

/// A plan, as it is stored.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Plan {
    pub id: PlanId,
    pub code: String,
    pub name: String,
    pub description: String,
    #[sqlx(rename = "type")]
    pub kind: String,
    pub price: Money,
    pub original_price: Option<Money>,
    pub currency: String,
    pub billing_cycle: String,
    pub duration: i32,
    pub features: Vec<String>,
    pub max_devices: i32,
    pub cpu_cores: i32,
    pub memory_mb: i32,
    pub storage_mb: i32,
    pub storage_quota_gb: i32,
    pub traffic_quota_gb: i32,
    pub is_popular: bool,
    pub is_active: bool,
    pub is_public: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Plan {
    /// What it allows.
    pub fn terms(&self) -> PlanTerms {
        PlanTerms {
            name: self.name.clone(),
            days: self.duration.into(),
            max_devices: self.max_devices.into(),
            cpu_cores: self.cpu_cores.into(),
            memory_mb: self.memory_mb.into(),
            storage_mb: self.storage_mb.into(),
            storage_quota_gb: self.storage_quota_gb.into(),
            traffic_quota_gb: self.traffic_quota_gb.into(),
        }
    }
}

/// A plan, as clients read it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Plan)]
pub struct PlanReply {
    pub id: PlanId,
    pub code: String,
    pub name: String,
    pub description: String,
    /// free, basic, pro or enterprise.
    #[serde(rename = "type")]
    pub kind: String,
    pub price: Money,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_price: Option<Money>,
    pub currency: String,
    /// monthly or yearly.
    pub billing_cycle: String,
    /// Days.
    pub duration: i32,
    pub features: Vec<String>,
    pub max_devices: i32,
    /// The same as `maxDevices`.
    pub device_limit: i32,
    /// The same as `maxDevices`.
    pub device_quota: i32,
    pub cpu_cores: i32,
    #[serde(rename = "memoryMB")]
    pub memory_mb: i32,
    #[serde(rename = "storageMB")]
    pub storage_mb: i32,
    #[serde(rename = "storageQuotaGB")]
    pub storage_quota_gb: i32,
    #[serde(rename = "trafficQuotaGB")]
    pub traffic_quota_gb: i32,
    pub is_popular: bool,
    pub is_active: bool,
    pub is_public: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl From<Plan> for PlanReply {
    fn from(plan: Plan) -> Self {
        Self {
            id: plan.id,
            code: plan.code,
            name: plan.name,
            description: plan.description,
            kind: plan.kind,
            price: plan.price,
            original_price: plan.original_price,
            currency: plan.currency,
            billing_cycle: plan.billing_cycle,
            duration: plan.duration,
            features: plan.features,
            max_devices: plan.max_devices,
            device_limit: plan.max_devices,
            device_quota: plan.max_devices,
            cpu_cores: plan.cpu_cores,
            memory_mb: plan.memory_mb,
            storage_mb: plan.storage_mb,
            storage_quota_gb: plan.storage_quota_gb,
            traffic_quota_gb: plan.traffic_quota_gb,
            is_popular: plan.is_popular,
            is_active: plan.is_active,
            is_public: plan.is_public,
            created_at: plan.created_at,
            updated_at: plan.updated_at,
        }
    }
}

/// A plan in a list to choose from.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct PlanName {
    pub id: PlanId,
    pub code: String,
    pub name: String,
    pub price: Money,
}

impl From<Plan> for PlanName {
    fn from(plan: Plan) -> Self {
        Self {
            id: plan.id,
            code: plan.code,
            name: plan.name,
            price: plan.price,
        }
    }
}
