//! Usage: how long devices ran, hour by hour, as their service tells it, and what others record. What is told twice is
//! stored and charged once, and so is a minute that an hour and a session tell: by whichever came first.

pub mod api;
pub mod db;
pub mod debt;
pub mod metering;
pub mod price;
pub mod record;
pub mod session;

use anyhow::Context;
use contracts::{DeviceId, Event, EventBody, Money, Timestamp, UserId};
use platform::events::Consumer;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use self::debt::Charge;
use self::price::{Quantity, UnitPrice};
use crate::metrics;

/// Hears how long devices ran.
#[derive(Clone, Copy, Debug)]
pub struct Meter {
    /// What a minute costs where the user's plan does not say.
    pub price: UnitPrice,
}

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
        let told = || format!("storing how long device {device_id} ran from {began_at}");
        db::lock_device(tx, device_id).await.with_context(told)?;
        let span = (*began_at, *ended_at);
        let billed = session::minutes_within(tx, device_id, span).await;
        let minutes = minutes - billed.with_context(told)?;
        if minutes <= 0 {
            return Ok(());
        }
        let hour = (*began_at, *ended_at, minutes);
        let of = (&event.user_id, device_id);
        let plan = db::price(tx, &event.user_id, ResourceType::DeviceTime, span).await;
        let price = plan.with_context(told)?.unwrap_or(self.price);
        let cost = price.cost(Quantity::whole(minutes.into()));
        let new = db::insert(tx, of, hour, (price, cost), event.occurred_at).await;
        if new.with_context(told)? && cost > Money::ZERO {
            let charge = Charge {
                user: &event.user_id,
                device: device_id,
                began_at: *began_at,
                amount: cost,
            };
            debt::charge(tx, charge, event.occurred_at)
                .await
                .with_context(told)?;
        }
        Ok(())
    }

    async fn committed(&self, event: &Event) {
        if let EventBody::DeviceUsed { minutes, .. } = &event.body {
            metrics::device_minutes(*minutes);
        }
    }
}

/// What is used.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    sqlx::Type,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum ResourceType {
    /// Minutes that devices ran.
    DeviceTime,
    /// Gigabytes kept.
    Storage,
    /// Gigabytes sent and received.
    Traffic,
    /// Calls.
    ApiCall,
}

/// What was used.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageRecord {
    pub id: String,
    pub user_id: UserId,
    pub device_id: DeviceId,
    #[schema(inline)]
    pub resource_type: ResourceType,
    /// Minutes, where it is device time.
    #[serde(serialize_with = "price::plain")]
    pub quantity: f64,
    /// Yuan for one of the quantity; 0 where the plan has paid for it.
    #[serde(serialize_with = "price::plain")]
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
    /// Minutes, where it is device time.
    #[serde(serialize_with = "price::plain")]
    pub total_usage: f64,
    pub total_cost: Money,
}

/// What usage comes to, of all kinds and of each.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    pub total_usage: f64,
    pub total_cost: Money,
    pub record_count: i64,
    pub users: i64,
    pub devices: i64,
    pub by_resource: Vec<ResourceUsage>,
}
