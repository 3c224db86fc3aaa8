//! The figures of a dashboard. Days and months are in UTC.

use axum::extract::State;
use chrono::NaiveDate;
use contracts::{Money, Timestamp};
use garde::Validate;
use platform::Admin;
use platform::http::{Json, Query};
use platform::problem::ProblemBody;
use serde::{Deserialize, Serialize};

use crate::{Billing, Result};

/// The figures of now.
#[derive(Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Dashboard {
    pub total_users: i64,
    /// How many devices run.
    pub active_devices: i64,
    pub today_revenue: Money,
    pub month_revenue: Money,
    pub today_orders: i64,
    pub pending_orders: i64,
    pub last_updated: Timestamp,
}

/// How many.
#[derive(Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct Count {
    pub count: i64,
}

/// How much was earned, less what was given back.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Revenue {
    pub revenue: Money,
}

/// How many devices do what.
#[derive(Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct Distribution {
    /// On the way to another state.
    pub idle: i64,
    pub running: i64,
    pub stopped: i64,
    pub error: i64,
}

/// Of how many days.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DaysQuery {
    /// 1 to 365, today the last of them; default 30.
    #[garde(range(min = 1, max = 365))]
    pub days: Option<i32>,
}

/// What was earned on a day.
#[derive(Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct RevenueOfDay {
    #[schema(value_type = String, format = Date)]
    pub date: NaiveDate,
    pub revenue: Money,
}

/// Who registered on a day.
#[derive(Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsersOfDay {
    #[schema(value_type = String, format = Date)]
    pub date: NaiveDate,
    pub new_users: i64,
    /// At the end of the day.
    pub total_users: i64,
}

/// Who ordered something, moved money or ran a device on a day.
#[derive(Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ActivityOfDay {
    #[schema(value_type = String, format = Date)]
    pub date: NaiveDate,
    pub active_users: i64,
}

async fn dashboard(state: &Billing) -> Result<Json<Dashboard>> {
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    let figures = sqlx::query_as(
        "-- stats::dashboard
        with moments as (select date_trunc('day', $1, 'UTC') as today, date_trunc('month', $1, 'UTC') as month)
        select (select count(*) from billing.known_users) as total_users,
            (select count(*) from billing.known_devices where status = 'running') as active_devices,
            (select coalesce(sum(amount), 0)::bigint from billing.revenue where created_at >= today) as today_revenue,
            (select coalesce(sum(amount), 0)::bigint from billing.revenue where created_at >= month) as month_revenue,
            (select count(*) from billing.orders where created_at >= today) as today_orders,
            (select count(*) from billing.orders where state = 'PENDING' and expires_at > $1) as pending_orders,
            $1 as last_updated
        from moments",
    )
    .bind(now)
    .fetch_one(&mut *conn)
    .await?;
    Ok(Json(figures))
}

/// Shows the figures of now.
#[utoipa::path(get, path = "/stats/dashboard", tag = "stats", responses((status = 200, body = Dashboard), (status = 403, body = ProblemBody)))]
pub async fn show_dashboard(State(state): State<Billing>, _: Admin) -> Result<Json<Dashboard>> {
    dashboard(&state).await
}

/// The same.
#[utoipa::path(get, path = "/stats/overview", tag = "stats", responses((status = 200, body = Dashboard), (status = 403, body = ProblemBody)))]
pub async fn show_overview(State(state): State<Billing>, _: Admin) -> Result<Json<Dashboard>> {
    dashboard(&state).await
}

/// Counts the devices that run.
#[utoipa::path(get, path = "/stats/devices/online", tag = "stats", responses((status = 200, body = Count), (status = 403, body = ProblemBody)))]
pub async fn count_online_devices(State(state): State<Billing>, _: Admin) -> Result<Json<Count>> {
    let count = dashboard(&state).await?.0.active_devices;
    Ok(Json(Count { count }))
}

/// Counts who registered today.
#[utoipa::path(get, path = "/stats/users/today", tag = "stats", responses((status = 200, body = Count), (status = 403, body = ProblemBody)))]
pub async fn count_new_users(State(state): State<Billing>, _: Admin) -> Result<Json<Count>> {
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    let count = "select count(*) from billing.known_users where registered_at >= date_trunc('day', $1, 'UTC')";
    let count = sqlx::query_as(count).bind(now).fetch_one(&mut *conn);
    Ok(Json(count.await?))
}

/// Shows what was earned today.
#[utoipa::path(get, path = "/stats/revenue/today", tag = "stats", responses((status = 200, body = Revenue), (status = 403, body = ProblemBody)))]
pub async fn revenue_today(State(state): State<Billing>, _: Admin) -> Result<Json<Revenue>> {
    let revenue = dashboard(&state).await?.0.today_revenue;
    Ok(Json(Revenue { revenue }))
}

/// Shows what was earned this month.
#[utoipa::path(get, path = "/stats/revenue/month", tag = "stats", responses((status = 200, body = Revenue), (status = 403, body = ProblemBody)))]
pub async fn revenue_month(State(state): State<Billing>, _: Admin) -> Result<Json<Revenue>> {
    let revenue = dashboard(&state).await?.0.month_revenue;
    Ok(Json(Revenue { revenue }))
}

/// Counts devices by what they do.
#[utoipa::path(get, path = "/stats/devices/distribution", tag = "stats", responses((status = 200, body = Distribution), (status = 403, body = ProblemBody)))]
pub async fn device_distribution(
    State(state): State<Billing>,
    _: Admin,
) -> Result<Json<Distribution>> {
    let distribution = sqlx::query_as(
        "-- stats::device_distribution
        select count(*) filter (where status in ('creating', 'starting', 'stopping', 'rebooting')) as idle,
            count(*) filter (where status = 'running') as running, count(*) filter (where status = 'stopped') as stopped,
            count(*) filter (where status = 'error') as error
        from billing.known_devices",
    );
    Ok(Json(distribution.fetch_one(&state.platform.db).await?))
}

macro_rules! days {
    () => {
        "with days as (
            select day, day at time zone 'UTC' as begins, (day + interval '1 day') at time zone 'UTC' as ends
            from generate_series(($1 at time zone 'UTC')::date - ($2 - 1), ($1 at time zone 'UTC')::date, interval '1 day') day
        ) "
    };
}

async fn by_day<T>(state: &Billing, query: &DaysQuery, sql: &'static str) -> Result<Json<Vec<T>>>
where
    T: for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> + Send + Unpin,
{
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    let days = sqlx::query_as(sql).bind(now).bind(query.days.unwrap_or(30));
    Ok(Json(days.fetch_all(&mut *conn).await?))
}

/// Shows what was earned day by day.
#[utoipa::path(get, path = "/stats/revenue/trend", tag = "stats", params(DaysQuery), responses((status = 200, body = Vec<RevenueOfDay>), (status = 403, body = ProblemBody)))]
pub async fn revenue_trend(
    State(state): State<Billing>,
    _: Admin,
    Query(query): Query<DaysQuery>,
) -> Result<Json<Vec<RevenueOfDay>>> {
    let sql = concat!(
        "-- stats::revenue_trend\n",
        days!(),
        "select day::date as date, coalesce(sum(r.amount), 0)::bigint as revenue
        from days left join billing.revenue r on r.created_at >= begins and r.created_at < ends group by day order by day"
    );
    by_day(&state, &query, sql).await
}

/// Shows who registered day by day.
#[utoipa::path(get, path = "/stats/users/growth", tag = "stats", params(DaysQuery), responses((status = 200, body = Vec<UsersOfDay>), (status = 403, body = ProblemBody)))]
pub async fn user_growth(
    State(state): State<Billing>,
    _: Admin,
    Query(query): Query<DaysQuery>,
) -> Result<Json<Vec<UsersOfDay>>> {
    let sql = concat!(
        "-- stats::user_growth\n",
        days!(),
        "select day::date as date,
            count(u.user_id) as new_users,
            (select count(*) from billing.known_users where registered_at < (select min(begins) from days))
                + sum(count(u.user_id)) over (order by day)::bigint as total_users
        from days left join billing.known_users u on u.registered_at >= begins and u.registered_at < ends
        group by day order by day"
    );
    by_day(&state, &query, sql).await
}

/// Shows how many were active day by day.
#[utoipa::path(get, path = "/stats/users/activity", tag = "stats", params(DaysQuery), responses((status = 200, body = Vec<ActivityOfDay>), (status = 403, body = ProblemBody)))]
pub async fn user_activity(
    State(state): State<Billing>,
    _: Admin,
    Query(query): Query<DaysQuery>,
) -> Result<Json<Vec<ActivityOfDay>>> {
    let sql = concat!(
        "-- stats::user_activity\n",
        days!(),
        "select day::date as date, count(distinct a.user_id) as active_users
        from days left join lateral (
            select user_id from billing.orders where created_at >= begins and created_at < ends
            union all select user_id from billing.transactions where created_at >= begins and created_at < ends
            union all select user_id from billing.usage where began_at >= begins and began_at < ends
        ) a on true group by day order by day"
    );
    by_day(&state, &query, sql).await
}
