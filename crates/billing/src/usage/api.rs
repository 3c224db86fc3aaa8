//! The routes that show what was used.

use axum::extract::State;
use chrono::TimeDelta;
use contracts::{DeviceId, Money, Timestamp, UserId};
use garde::Validate;
use platform::http::{Dual, Json, Page, PageQuery, Path, Query};
use platform::problem::ProblemBody;
use platform::{Admin, CurrentUser};
use serde::{Deserialize, Serialize};

use super::db::{self, Wanted};
use super::{ResourceUsage, UsageRecord};
use crate::times::Bound;
use crate::{Billing, Result};

/// Which usage is wanted.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct UsageQuery {
    /// A day or a moment.
    #[param(value_type = Option<String>)]
    #[garde(skip)]
    pub start_date: Option<Bound>,
    /// A day or a moment, with which the span ends.
    #[param(value_type = Option<String>)]
    #[garde(skip)]
    pub end_date: Option<Bound>,
    /// Of this device.
    #[garde(skip)]
    pub device_id: Option<DeviceId>,
}

/// Over which span usage is added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    Hour,
    #[default]
    Day,
    Week,
    Month,
    All,
}

/// Over which span usage is added up.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct StatisticsQuery {
    /// The span that ends with `endDate`; default day. Not read where `startDate` is given.
    #[param(inline)]
    #[garde(skip)]
    pub period: Option<Period>,
    /// A day or a moment.
    #[param(value_type = Option<String>)]
    #[garde(skip)]
    pub start_date: Option<Bound>,
    /// A day or a moment; now where it is left out.
    #[param(value_type = Option<String>)]
    #[garde(skip)]
    pub end_date: Option<Bound>,
}

/// What a user used in a span of time.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageStatistics {
    user_id: UserId,
    #[schema(inline)]
    period: Period,
    /// Absent for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    start_date: Option<Timestamp>,
    end_date: Timestamp,
    /// Minutes of device time, and what else was counted.
    #[serde(serialize_with = "super::price::plain")]
    total_usage: f64,
    total_cost: Money,
    record_count: i64,
    by_resource: Vec<ResourceUsage>,
}

/// What everybody used.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageTotals {
    /// Minutes of device time, and what else was counted.
    #[serde(serialize_with = "super::price::plain")]
    total_usage: f64,
    total_cost: Money,
    record_count: i64,
    total_users: i64,
    total_devices: i64,
    by_resource: Vec<ResourceUsage>,
}

impl Period {
    fn span(self) -> Option<TimeDelta> {
        match self {
            Self::Hour => Some(TimeDelta::hours(1)),
            Self::Day => Some(TimeDelta::days(1)),
            Self::Week => Some(TimeDelta::days(7)),
            Self::Month => Some(TimeDelta::days(30)),
            Self::All => None,
        }
    }
}

impl UsageQuery {
    pub fn wanted<'a>(&'a self, user: Option<&'a UserId>) -> Wanted<'a> {
        Wanted {
            user,
            device: self.device_id.as_ref(),
            from: self.start_date.map(Bound::start),
            to: self.end_date.map(Bound::end),
        }
    }
}

/// Lists how long a user's devices ran, hour by hour, the newest first.
#[utoipa::path(get, path = "/usage/user/{userId}", tag = "usage", params(("userId" = UserId, Path), PageQuery, UsageQuery),
    responses((status = 200, body = Vec<UsageRecord>, description = "An array, or a page where `page` or `pageSize` is given"), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_usage(
    State(state): State<Billing>,
    user: CurrentUser,
    Path(owner): Path<UserId>,
    Query(page): Query<PageQuery>,
    Query(query): Query<UsageQuery>,
) -> Result<Dual<UsageRecord>> {
    let owner = user.acting_for(Some(owner))?;
    let wanted = query.wanted(Some(&owner));
    let mut conn = state.platform.db.acquire().await?;
    let found = db::list(&mut conn, wanted, page.dual_slice()).await?;
    let total = match page.wants_page() {
        true => db::sum(&mut conn, wanted).await?.record_count,
        false => 0,
    };
    Ok(Dual::new(found, total, page))
}

/// Lists the same as a page.
#[utoipa::path(get, path = "/billing/usage/{userId}", tag = "usage", params(("userId" = UserId, Path), PageQuery, UsageQuery),
    responses((status = 200, body = Page<UsageRecord>), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn page_usage(
    State(state): State<Billing>,
    user: CurrentUser,
    Path(owner): Path<UserId>,
    Query(page): Query<PageQuery>,
    Query(query): Query<UsageQuery>,
) -> Result<Json<Page<UsageRecord>>> {
    let owner = user.acting_for(Some(owner))?;
    Ok(Json(pages(&state, query.wanted(Some(&owner)), page).await?))
}

/// Adds up what a user used.
#[utoipa::path(get, path = "/usage/user/{userId}/statistics", tag = "usage", params(("userId" = UserId, Path), StatisticsQuery),
    responses((status = 200, body = UsageStatistics), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn usage_statistics(
    State(state): State<Billing>,
    user: CurrentUser,
    Path(owner): Path<UserId>,
    Query(query): Query<StatisticsQuery>,
) -> Result<Json<UsageStatistics>> {
    let owner = user.acting_for(Some(owner))?;
    let mut conn = state.platform.db.acquire().await?;
    let end_date = match query.end_date {
        Some(end) => end.end(),
        None => state.platform.clock.shared(&mut conn).await?,
    };
    let period = query.period.unwrap_or_default();
    let start_date = match query.start_date {
        Some(start) => Some(start.start()),
        None => period.span().map(|span| end_date - span),
    };
    let wanted = Wanted {
        user: Some(&owner),
        device: None,
        from: start_date,
        to: Some(end_date),
    };
    let sum = db::sum(&mut conn, wanted).await?;
    Ok(Json(UsageStatistics {
        user_id: owner,
        period,
        start_date,
        end_date,
        total_usage: sum.total_usage,
        total_cost: sum.total_cost,
        record_count: sum.record_count,
        by_resource: sum.by_resource,
    }))
}

/// Lists what everybody used, the newest first.
#[utoipa::path(get, path = "/billing/admin/usage/records", tag = "usage", params(PageQuery, UsageQuery),
    responses((status = 200, body = Page<UsageRecord>), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_all_usage(
    State(state): State<Billing>,
    _: Admin,
    Query(page): Query<PageQuery>,
    Query(query): Query<UsageQuery>,
) -> Result<Json<Page<UsageRecord>>> {
    Ok(Json(pages(&state, query.wanted(None), page).await?))
}

/// Adds up what everybody used.
#[utoipa::path(get, path = "/billing/admin/usage/stats", tag = "usage", params(UsageQuery),
    responses((status = 200, body = UsageTotals), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn sum_all_usage(
    State(state): State<Billing>,
    _: Admin,
    Query(query): Query<UsageQuery>,
) -> Result<Json<UsageTotals>> {
    let mut conn = state.platform.db.acquire().await?;
    let sum = db::sum(&mut conn, query.wanted(None)).await?;
    Ok(Json(UsageTotals {
        total_usage: sum.total_usage,
        total_cost: sum.total_cost,
        record_count: sum.record_count,
        total_users: sum.users,
        total_devices: sum.devices,
        by_resource: sum.by_resource,
    }))
}

async fn pages(state: &Billing, wanted: Wanted<'_>, page: PageQuery) -> Result<Page<UsageRecord>> {
    let mut conn = state.platform.db.acquire().await?;
    let found = db::list(&mut conn, wanted, page.slice()).await?;
    let total = db::sum(&mut conn, wanted).await?.record_count;
    Ok(Page::new(found, total, page))
}
