//! The routes that show plans. All are public.

use axum::extract::State;
use contracts::PlanId;
use platform::http::{Json, Page, PageQuery, Path, Query, SliceQuery};
use platform::problem::ProblemBody;

use super::{PlanName, PlanReply, db};
use crate::{Billing, Error, Result};

/// Lists the plans.
#[utoipa::path(get, path = "/plans", tag = "plans", security(()), params(PageQuery), responses((status = 200, body = Page<PlanReply>)))]
pub async fn list_plans(
    State(state): State<Billing>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<PlanReply>>> {
    let mut conn = state.platform.db.acquire().await?;
    let plans = db::list(&mut conn, false, query.slice()).await?;
    let total = db::count(&mut conn).await?;
    let plans = plans.into_iter().map(PlanReply::from).collect();
    Ok(Json(Page::new(plans, total, query)))
}

/// Lists the plans that can be ordered.
#[utoipa::path(get, path = "/plans/active", tag = "plans", security(()), params(SliceQuery), responses((status = 200, body = Vec<PlanReply>)))]
pub async fn list_active_plans(
    State(state): State<Billing>,
    Query(query): Query<SliceQuery>,
) -> Result<Json<Vec<PlanReply>>> {
    let mut conn = state.platform.db.acquire().await?;
    let plans = db::list(&mut conn, true, query.slice()).await?;
    Ok(Json(plans.into_iter().map(PlanReply::from).collect()))
}

/// Lists the plans that can be ordered, to choose from.
#[utoipa::path(get, path = "/plans/quick-list", tag = "plans", security(()), params(SliceQuery), responses((status = 200, body = Vec<PlanName>)))]
pub async fn list_plan_names(
    State(state): State<Billing>,
    Query(query): Query<SliceQuery>,
) -> Result<Json<Vec<PlanName>>> {
    let mut conn = state.platform.db.acquire().await?;
    let plans = db::list(&mut conn, true, query.slice()).await?;
    Ok(Json(plans.into_iter().map(PlanName::from).collect()))
}

/// Shows a plan, by id or code.
#[utoipa::path(get, path = "/plans/{id}", tag = "plans", security(()), params(("id" = String, Path)),
    responses((status = 200, body = PlanReply), (status = 404, body = ProblemBody)))]
pub async fn find_plan(
    State(state): State<Billing>,
    Path(id): Path<PlanId>,
) -> Result<Json<PlanReply>> {
    let mut conn = state.platform.db.acquire().await?;
    let plan = db::find(&mut conn, id.as_str())
        .await?
        .ok_or(Error::PlanNotFound)?;
    Ok(Json(plan.into()))
}
