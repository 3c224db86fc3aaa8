//! A user's balance over time.

use axum::extract::State;
use contracts::{Money, UserId};
use platform::CurrentUser;
use platform::http::{Json, Path};
use platform::problem::ProblemBody;
use serde::Serialize;

use crate::{Billing, Result};

/// A user's balance over time (days in UTC).
#[derive(Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BalanceStatistics {
    pub user_id: UserId,
    pub current_balance: Money,
    /// At the end of yesterday.
    pub yesterday_balance: Money,
    /// At the beginning of the month.
    pub month_start_balance: Money,
    pub month_consumption: Money,
    /// Of the last 30 days.
    pub avg_daily_consumption: Money,
    /// How long the balance lasts so; absent where nothing was consumed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forecast_days_left: Option<i64>,
    pub total_recharge: Money,
    pub total_consume: Money,
    pub transaction_count: i64,
}

/// Shows a user's balance over time.
#[utoipa::path(get, path = "/balance/statistics/{userId}", tag = "balance", params(("userId" = UserId, Path)),
    responses((status = 200, body = BalanceStatistics), (status = 403, body = ProblemBody)))]
pub async fn balance_statistics(
    State(state): State<Billing>,
    user: CurrentUser,
    Path(owner): Path<UserId>,
) -> Result<Json<BalanceStatistics>> {
    let owner = user.acting_for(Some(owner))?;
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    let statistics = sqlx::query_as(
        "-- balance::statistics
        with moments as (
            select date_trunc('day', $2, 'UTC') as today, date_trunc('month', $2, 'UTC') as month
        ), movements as (
            select * from billing.transactions where user_id = $1 and balance_after is not null
        ), sums as (
            select count(*) as transaction_count,
                coalesce(sum(amount) filter (where type = 'consume' and created_at >= month), 0)::bigint as month_consumption,
                coalesce(sum(amount) filter (where type = 'consume' and created_at > $2 - interval '30 days'), 0)::bigint as days
            from movements, moments
        )
        select $1 as user_id, coalesce(b.available, 0) as current_balance,
            coalesce((select balance_after from movements where created_at < today order by created_at desc, seq desc limit 1), 0)
                as yesterday_balance,
            coalesce((select balance_after from movements where created_at < month order by created_at desc, seq desc limit 1), 0)
                as month_start_balance,
            month_consumption, (days + 15) / 30 as avg_daily_consumption,
            (coalesce(b.available, 0) * 30 / nullif(days, 0)) as forecast_days_left,
            coalesce(b.total_recharge, 0) as total_recharge, coalesce(b.total_consume, 0) as total_consume, transaction_count
        from moments cross join sums left join billing.balances b on b.user_id = $1",
    )
    .bind(&owner)
    .bind(now)
    .fetch_one(&mut *conn)
    .await?;
    Ok(Json(statistics))
}
