//! Usage: how long devices ran, hour by hour, as their service tells it. What is told twice is stored once.

pub mod api;
pub mod db;

use anyhow::Context;
use contracts::{DeviceId, Event, EventBody, Money, Timestamp, UserId};
use platform::events::Consumer;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::metrics;

/// Hears how long devices ran.
#[derive(Clone, Copy, Debug)]
pub struct Meter;

impl Consumer for Meter {
    const NAME: &'static str = "billing-usage";
    const KINDS: &'static [&'static str] = &["device.used"];

    async fn apply(&self, tx: &mut PgConnection, event: &Event) -> anyhow::Result<()> {
        let EventBody::DeviceUsed {
            device_id,
            began_at,
            ended_at,
            minutes,
        } = &event.body
        else {
            return Ok(());
        };
        let hour = (*began_at, *ended_at, *minutes);
        let of = (&event.user_id, device_id);
        db::insert(tx, of, hour, event.occurred_at)
            .await
            .with_context(|| format!("storing how long device {device_id} ran from {began_at}"))
    }

    async fn committed(&self, event: &Event) {
        if let EventBody::DeviceUsed { minutes, .. } = &event.body {
            metrics::device_minutes(*minutes);
        }
    }
}

/// What is used.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum ResourceType {
    /// Minutes that devices ran.
    DeviceTime,
}

/// How long a device ran in an hour.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageRecord {
    pub id: String,
    pub user_id: UserId,
    pub device_id: DeviceId,
    #[schema(inline)]
    pub resource_type: ResourceType,
    /// Minutes.
    pub quantity: i32,
    /// Yuan for one of the quantity: 0, since the plan has paid for it.
    pub unit_price: f64,
    pub total_cost: Money,
    pub start_time: Timestamp,
    pub end_time: Timestamp,
    pub created_at: Timestamp,
}

/// Usage of one kind in a span of time.
#[derive(Clone, Copy, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceUsage {
    #[schema(inline)]
    pub resource_type: ResourceType,
    /// Minutes.
    pub total_usage: i64,
    pub total_cost: Money,
    #[serde(skip)]
    pub record_count: i64,
    /// How many users and devices.
    #[serde(skip)]
    pub users: i64,
    #[serde(skip)]
    pub devices: i64,
}
