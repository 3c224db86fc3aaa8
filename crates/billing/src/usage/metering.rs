//! What users and devices used, added up.

use axum::extract::State;
use contracts::{DeviceId, Money, Timestamp, UserId};
use garde::Validate;
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::problem::ProblemBody;
use platform::{Admin, CurrentUser};
use serde::{Deserialize, Serialize};

use super::api::UsageQuery;
use super::db::{self, Wanted};
use super::{ResourceUsage, price};
use crate::{Billing, Result};

/// What was used in all.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Metered {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_id: Option<DeviceId>,
    /// Minutes of device time, and what else was counted.
    #[serde(serialize_with = "price::plain")]
    pub total_usage: f64,
    pub total_cost: Money,
    pub record_count: i64,
    pub total_users: i64,
    pub total_devices: i64,
    pub by_resource: Vec<ResourceUsage>,
}

/// What one user or device used.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeteredOne {
    /// The user or the device.
    pub id: String,
    #[serde(serialize_with = "price::plain")]
    pub total_usage: f64,
    pub total_cost: Money,
    pub record_count: i64,
}

/// What was used in one span of a trend.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeteredSpan {
    /// When it begins.
    pub period: Timestamp,
    #[serde(serialize_with = "price::plain")]
    pub total_usage: f64,
    pub total_cost: Money,
    pub record_count: i64,
}

/// How long the spans of a trend are.
#[derive(Clone, Copy, Debug, Default, Deserialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum Interval {
    Hour,
    #[default]
    Day,
    Week,
    Month,
}

/// How long the spans of a trend are.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TrendQuery {
    /// Default day.
    #[param(inline)]
    #[garde(skip)]
    pub interval: Option<Interval>,
}

async fn meter(state: &Billing, wanted: Wanted<'_>) -> Result<Json<Metered>> {
    let mut conn = state.platform.db.acquire().await?;
    let sum = db::sum(&mut conn, wanted).await?;
    Ok(Json(Metered {
        user_id: wanted.user.cloned(),
        device_id: wanted.device.cloned(),
        total_usage: sum.total_usage,
        total_cost: sum.total_cost,
        record_count: sum.record_count,
        total_users: sum.users,
        total_devices: sum.devices,
        by_resource: sum.by_resource,
    }))
}

/// Adds up what a user used.
#[utoipa::path(get, path = "/metering/users/{userId}", tag = "usage", params(("userId" = UserId, Path), UsageQuery),
    responses((status = 200, body = Metered), (status = 403, body = ProblemBody)))]
pub async fn meter_user(
    State(state): State<Billing>,
    user: CurrentUser,
    Path(owner): Path<UserId>,
    Query(query): Query<UsageQuery>,
) -> Result<Json<Metered>> {
    let owner = user.acting_for(Some(owner))?;
    meter(&state, query.wanted(Some(&owner))).await
}

/// Adds up how a device was used: by the caller, or by everybody to an admin.
#[utoipa::path(get, path = "/metering/devices/{deviceId}", tag = "usage", params(("deviceId" = DeviceId, Path), UsageQuery),
    responses((status = 200, body = Metered), (status = 403, body = ProblemBody)))]
pub async fn meter_device(
    State(state): State<Billing>,
    user: CurrentUser,
    Path(device): Path<DeviceId>,
    Query(query): Query<UsageQuery>,
) -> Result<Json<Metered>> {
    let owner = (!user.is_admin).then_some(&user.id);
    let wanted = Wanted {
        device: Some(&device),
        ..query.wanted(owner)
    };
    meter(&state, wanted).await
}

/// Adds up what everybody used.
#[utoipa::path(get, path = "/metering/overview", tag = "usage", params(UsageQuery),
    responses((status = 200, body = Metered), (status = 403, body = ProblemBody)))]
pub async fn meter_all(
    State(state): State<Billing>,
    _: Admin,
    Query(query): Query<UsageQuery>,
) -> Result<Json<Metered>> {
    meter(&state, query.wanted(None)).await
}

/// Lists what each user used, the most expensive first.
#[utoipa::path(get, path = "/metering/users", tag = "usage", params(PageQuery, UsageQuery),
    responses((status = 200, body = Page<MeteredOne>), (status = 403, body = ProblemBody)))]
pub async fn list_metered_users(
    State(state): State<Billing>,
    _: Admin,
    Query(page): Query<PageQuery>,
    Query(query): Query<UsageQuery>,
) -> Result<Json<Page<MeteredOne>>> {
    let wanted = query.wanted(None);
    let mut conn = state.platform.db.acquire().await?;
    let users = db::by_user(&mut conn, wanted, page.slice()).await?;
    let total = db::sum(&mut conn, wanted).await?.users;
    Ok(Json(Page::new(users, total, page)))
}

/// Lists how each device was used, the most expensive first.
#[utoipa::path(get, path = "/metering/devices", tag = "usage", params(PageQuery, UsageQuery),
    responses((status = 200, body = Page<MeteredOne>), (status = 403, body = ProblemBody)))]
pub async fn list_metered_devices(
    State(state): State<Billing>,
    _: Admin,
    Query(page): Query<PageQuery>,
    Query(query): Query<UsageQuery>,
) -> Result<Json<Page<MeteredOne>>> {
    let wanted = query.wanted(None);
    let mut conn = state.platform.db.acquire().await?;
    let devices = db::by_device(&mut conn, wanted, page.slice()).await?;
    let total = db::sum(&mut conn, wanted).await?.devices;
    Ok(Json(Page::new(devices, total, page)))
}

/// Shows what was used span by span, the newest 500 at most, in the order of time.
#[utoipa::path(get, path = "/metering/trend", tag = "usage", params(TrendQuery, UsageQuery),
    responses((status = 200, body = Vec<MeteredSpan>), (status = 403, body = ProblemBody)))]
pub async fn meter_trend(
    State(state): State<Billing>,
    _: Admin,
    Query(trend): Query<TrendQuery>,
    Query(query): Query<UsageQuery>,
) -> Result<Json<Vec<MeteredSpan>>> {
    let mut conn = state.platform.db.acquire().await?;
    let interval = trend.interval.unwrap_or_default();
    let spans = db::by_span(&mut conn, query.wanted(None), interval).await?;
    Ok(Json(spans))
}
