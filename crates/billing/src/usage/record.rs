//! Usage that services and admins record: stored and debited in one transaction, or not at all.

use axum::extract::State;
use axum::response::Response;
use contracts::{DeviceId, Money, Timestamp, TransactionId, UserId};
use garde::Validate;
use http::StatusCode;
use platform::Problem;
use platform::idempotency::{Idempotent, Turn};
use platform::problem::ProblemBody;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::price::{self, Quantity, UnitPrice};
use super::{ResourceType, db};
use crate::balance::{self, Movement};
use crate::callers::{MoneyMover, SandboxOpen};
use crate::ledger::Details;
use crate::times::Bound;
use crate::{Billing, Result, rules};

/// What was used.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecordUsage {
    /// By whom; the caller where it is left out.
    #[garde(skip)]
    pub user_id: Option<UserId>,
    #[garde(skip)]
    pub device_id: DeviceId,
    #[garde(skip)]
    pub resource_type: ResourceType,
    #[garde(skip)]
    pub quantity: Quantity,
    /// Outside of the sandbox the one of the user's plan.
    #[garde(skip)]
    pub unit_price: UnitPrice,
    #[schema(value_type = Option<String>)]
    #[garde(skip)]
    pub start_time: Option<Bound>,
    #[schema(value_type = Option<String>)]
    #[garde(skip)]
    pub end_time: Option<Bound>,
    #[garde(custom(rules::text))]
    pub description: Option<String>,
}

/// What was recorded.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecordedUsage {
    pub id: TransactionId,
    pub user_id: UserId,
    pub device_id: DeviceId,
    pub resource_type: ResourceType,
    #[serde(serialize_with = "price::plain")]
    pub quantity: f64,
    #[serde(serialize_with = "price::plain")]
    pub unit_price: f64,
    pub total_cost: Money,
    /// The movement on the balance, where it cost something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transaction_id: Option<TransactionId>,
    pub created_at: Timestamp,
}

/// Usage about to be stored.
#[derive(Clone, Debug)]
pub struct NewUsage<'a> {
    pub id: &'a TransactionId,
    pub user: &'a UserId,
    pub device: &'a DeviceId,
    pub resource: ResourceType,
    pub quantity: Quantity,
    pub price: UnitPrice,
    pub cost: Money,
    pub transaction: Option<&'a TransactionId>,
    pub description: Option<&'a str>,
    pub span: (Timestamp, Timestamp),
}

/// Records usage and debits what it cost.
#[utoipa::path(post, path = "/usage/record", tag = "usage", request_body = RecordUsage, params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = RecordedUsage), (status = 400, body = ProblemBody), (status = 402, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn record_usage(
    State(state): State<Billing>,
    caller: MoneyMover,
    SandboxOpen(sandbox): SandboxOpen,
    Idempotent { body, key }: Idempotent<RecordUsage>,
) -> Result<Response> {
    let user = caller.acting_for(body.user_id)?;
    let cost = body.unit_price.cost(body.quantity);
    if cost > Money::MAX_INPUT {
        let fault = "the usage costs more than 1000000";
        return Err(Problem::invalid_field("quantity", fault).into());
    }
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, &caller.key_owner()).await? {
        Turn::First(turn) => turn,
        Turn::Replay(response) => return Ok(response),
    };
    let now = state.platform.clock.shared(&mut tx).await?;
    if !sandbox {
        let due = due(&mut tx, &user, body.resource_type, (now, now), &state).await?;
        if body.unit_price != due {
            let fault = format!("is not the price of the user's plan, {}", due.yuan());
            return Err(Problem::invalid_field("unitPrice", fault).into());
        }
    }
    let end = body.end_time.map_or(now, Bound::end);
    let start = body.start_time.map_or(end, Bound::start);
    if start > end {
        return Err(Problem::invalid_field("endTime", "must not be before startTime").into());
    }
    let mut transaction = None;
    if cost > Money::ZERO {
        let resource = body.resource_type.name();
        let details = Details {
            description: body.description.clone().unwrap_or_else(|| resource.into()),
            device_id: Some(body.device_id.to_string()),
            operator_id: caller.operator(),
            ..Details::default()
        };
        let moved = balance::move_money(&mut tx, &user, Movement::Consume, cost, details, now);
        transaction = Some(moved.await?.transaction.id);
    }
    let id = TransactionId::new();
    let usage = NewUsage {
        id: &id,
        user: &user,
        device: &body.device_id,
        resource: body.resource_type,
        quantity: body.quantity,
        price: body.unit_price,
        cost,
        transaction: transaction.as_ref(),
        description: body.description.as_deref(),
        span: (start, end),
    };
    insert(&mut tx, &usage, now).await?;
    let reply = RecordedUsage {
        id,
        user_id: user,
        device_id: body.device_id,
        resource_type: body.resource_type,
        quantity: body.quantity.number(),
        unit_price: body.unit_price.yuan(),
        total_cost: cost,
        transaction_id: transaction,
        created_at: now,
    };
    let response = turn.reply(&mut tx, StatusCode::CREATED, &reply).await?;
    tx.commit().await?;
    Ok(response)
}

/// What one of a resource costs a user in a span: what the plan says, else for device time the setting, else nothing.
pub async fn due(
    conn: &mut PgConnection,
    user: &UserId,
    resource: ResourceType,
    span: (Timestamp, Timestamp),
    state: &Billing,
) -> sqlx::Result<UnitPrice> {
    let plan = db::price(conn, user, resource, span).await?;
    Ok(plan.unwrap_or(match resource {
        ResourceType::DeviceTime => state.config.device_minute_price,
        ResourceType::Storage | ResourceType::Traffic | ResourceType::ApiCall => {
            UnitPrice::default()
        }
    }))
}

/// Stores usage in the transaction of its movement.
pub async fn insert(
    conn: &mut PgConnection,
    usage: &NewUsage<'_>,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- usage::insert_record
        insert into billing.usage_records
            (id, user_id, device_id, resource_type, quantity, unit_price, total_cost, transaction_id, description,
             began_at, ended_at, created_at)
        values ($1, $2, $3, $4, $5::bigint / 10000.0, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(usage.id)
    .bind(usage.user)
    .bind(usage.device)
    .bind(usage.resource)
    .bind(usage.quantity.0)
    .bind(usage.price)
    .bind(usage.cost)
    .bind(usage.transaction)
    .bind(usage.description)
    .bind(usage.span.0)
    .bind(usage.span.1)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

impl ResourceType {
    /// The name in the store and on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DeviceTime => "device_time",
            Self::Storage => "storage",
            Self::Traffic => "traffic",
            Self::ApiCall => "api_call",
        }
    }
}
