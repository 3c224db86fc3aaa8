//! Reports: what moved in a span of time, day by day (UTC).

use axum::extract::State;
use chrono::{NaiveDate, TimeDelta};
use contracts::{Money, Timestamp, UserId};
use garde::Validate;
use platform::http::{Json, Path, Query};
use platform::problem::ProblemBody;
use platform::{Admin, CurrentUser, Problem};
use serde::{Deserialize, Serialize};

use crate::balance::TransactionType;
use crate::times::Bound;
use crate::{Billing, Result};

/// Of which span.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct ReportQuery {
    /// A day or a moment; 30 days before the end where it is left out.
    #[param(value_type = Option<String>)]
    #[garde(skip)]
    pub start_date: Option<Bound>,
    /// A day or a moment, with which the span ends, by 366 days at most; now where it is left out.
    #[param(value_type = Option<String>)]
    #[garde(skip)]
    pub end_date: Option<Bound>,
}

/// What a user's balance did in a span.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BillReport {
    pub user_id: UserId,
    pub start_date: Timestamp,
    pub end_date: Timestamp,
    pub total_recharge: Money,
    pub total_consumption: Money,
    pub total_refund: Money,
    pub lines: Vec<BillLine>,
}

/// The movements of one kind on one day.
#[derive(Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct BillLine {
    #[schema(value_type = String, format = Date)]
    pub date: NaiveDate,
    #[serde(rename = "type")]
    #[sqlx(rename = "type")]
    pub kind: TransactionType,
    pub count: i64,
    pub amount: Money,
}

/// What was earned in a span.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevenueReport {
    pub start_date: Timestamp,
    pub end_date: Timestamp,
    pub total_revenue: Money,
    pub total_refunds: Money,
    /// Revenue less refunds.
    pub net_revenue: Money,
    pub lines: Vec<RevenueLine>,
}

/// What was earned on one day.
#[derive(Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct RevenueLine {
    #[schema(value_type = String, format = Date)]
    pub date: NaiveDate,
    pub revenue: Money,
    pub refunds: Money,
}

impl ReportQuery {
    fn span(&self, now: Timestamp) -> Result<(Timestamp, Timestamp)> {
        let end = self.end_date.map_or(now, Bound::end);
        let start = self
            .start_date
            .map_or(end - TimeDelta::days(30), Bound::start);
        if start > end || start + TimeDelta::days(366) < end {
            let fault = "must not be before startDate, nor more than 366 days after it";
            return Err(Problem::invalid_field("endDate", fault).into());
        }
        Ok((start, end))
    }
}

/// Reports what a user's balance did.
#[utoipa::path(get, path = "/reports/bills/{userId}", tag = "stats", params(("userId" = UserId, Path), ReportQuery),
    responses((status = 200, body = BillReport), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn report_bills(
    State(state): State<Billing>,
    user: CurrentUser,
    Path(owner): Path<UserId>,
    Query(query): Query<ReportQuery>,
) -> Result<Json<BillReport>> {
    let owner = user.acting_for(Some(owner))?;
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    let (start_date, end_date) = query.span(now)?;
    let lines: Vec<BillLine> = sqlx::query_as(
        "-- reports::bills
        select (created_at at time zone 'UTC')::date as date, type, count(*), sum(amount)::bigint as amount
        from billing.transactions
        where user_id = $1 and balance_after is not null and created_at between $2 and $3 group by 1, 2 order by 1, 2",
    )
    .bind(&owner)
    .bind(start_date)
    .bind(end_date)
    .fetch_all(&mut *conn)
    .await?;
    let total = |kind| {
        let lines = lines.iter().filter(|line| line.kind == kind);
        lines.map(|line| line.amount).sum()
    };
    Ok(Json(BillReport {
        user_id: owner,
        start_date,
        end_date,
        total_recharge: total(TransactionType::Recharge),
        total_consumption: total(TransactionType::Consume),
        total_refund: total(TransactionType::Refund),
        lines,
    }))
}

/// Reports what was earned.
#[utoipa::path(get, path = "/reports/revenue", tag = "stats", params(ReportQuery),
    responses((status = 200, body = RevenueReport), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn report_revenue(
    State(state): State<Billing>,
    _: Admin,
    Query(query): Query<ReportQuery>,
) -> Result<Json<RevenueReport>> {
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    let (start_date, end_date) = query.span(now)?;
    let lines: Vec<RevenueLine> = sqlx::query_as(
        "-- reports::revenue
        select (created_at at time zone 'UTC')::date as date,
            coalesce(sum(amount) filter (where not refund), 0)::bigint as revenue,
            coalesce(-sum(amount) filter (where refund), 0)::bigint as refunds
        from billing.revenue where created_at between $1 and $2 group by 1 order by 1",
    )
    .bind(start_date)
    .bind(end_date)
    .fetch_all(&mut *conn)
    .await?;
    let total_revenue: Money = lines.iter().map(|line| line.revenue).sum();
    let total_refunds: Money = lines.iter().map(|line| line.refunds).sum();
    Ok(Json(RevenueReport {
        start_date,
        end_date,
        total_revenue,
        total_refunds,
        net_revenue: total_revenue - total_refunds,
        lines,
    }))
}
