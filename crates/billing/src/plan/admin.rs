//! Plans as admins keep them.

use std::collections::BTreeMap;

use axum::extract::State;
use contracts::{Money, PlanId, TransactionId};
use garde::Validate;
use http::StatusCode;
use platform::http::{Json, Path};
use platform::problem::ProblemBody;
use platform::{Admin, Problem};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::{Plan, PlanReply, db};
use crate::usage::ResourceType;
use crate::usage::price::UnitPrice;
use crate::{Billing, Error, Result, rules};

/// A plan as it is written: `name`, `price` and `duration` are required of a new one; what is left out of a change stays.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WritePlan {
    /// The name in paths, for good: 1 to 64 letters, digits, `_`, `.`, `:` and `-`. Made where a new plan has none.
    #[garde(skip)]
    pub code: Option<PlanId>,
    #[garde(inner(length(chars, min = 1, max = 100), custom(rules::plain)))]
    pub name: Option<String>,
    #[garde(custom(rules::text))]
    pub description: Option<String>,
    #[serde(rename = "type")]
    #[garde(skip)]
    pub kind: Option<Kind>,
    #[garde(inner(custom(rules::price)))]
    pub price: Option<Money>,
    #[garde(inner(custom(rules::price)))]
    pub original_price: Option<Money>,
    #[garde(skip)]
    pub billing_cycle: Option<Cycle>,
    /// Days.
    #[garde(range(min = 1, max = 3_660))]
    pub duration: Option<i32>,
    #[garde(inner(
        length(max = 50),
        inner(length(chars, max = 200), custom(rules::plain))
    ))]
    pub features: Option<Vec<String>>,
    #[serde(alias = "deviceLimit", alias = "deviceQuota")]
    #[garde(range(min = 0, max = 1_000_000))]
    pub max_devices: Option<i32>,
    #[garde(range(min = 1, max = 1_024))]
    pub cpu_cores: Option<i32>,
    #[serde(rename = "memoryMB")]
    #[garde(range(min = 1, max = 10_000_000))]
    pub memory_mb: Option<i32>,
    #[serde(rename = "storageMB")]
    #[garde(range(min = 1, max = 100_000_000))]
    pub storage_mb: Option<i32>,
    #[serde(rename = "storageQuotaGB")]
    #[garde(range(min = 0, max = 10_000_000))]
    pub storage_quota_gb: Option<i32>,
    #[serde(rename = "trafficQuotaGB")]
    #[garde(range(min = 0, max = 10_000_000))]
    pub traffic_quota_gb: Option<i32>,
    #[garde(skip)]
    pub is_popular: Option<bool>,
    #[garde(skip)]
    pub is_active: Option<bool>,
    #[garde(skip)]
    pub is_public: Option<bool>,
    /// What usage costs beside the plan, in yuan for one of each resource: `{"device_time": 0.01}`.
    #[schema(value_type = Option<Object>)]
    #[garde(skip)]
    pub usage_prices: Option<BTreeMap<ResourceType, UnitPrice>>,
}

/// What kind of plan it is.
#[derive(Clone, Copy, Debug, Deserialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
#[schema(as = PlanType)]
pub enum Kind {
    Free,
    Basic,
    Pro,
    Enterprise,
}

/// How often a plan is billed.
#[derive(Clone, Copy, Debug, Deserialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
#[schema(as = BillingCycle)]
pub enum Cycle {
    Monthly,
    Yearly,
}

/// Plans to be deleted.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
pub struct DeletePlans {
    /// 1 to 100 ids or codes.
    #[garde(length(min = 1, max = 100))]
    pub ids: Vec<PlanId>,
}

/// What became of each plan.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct DeletedPlans {
    pub total: usize,
    pub succeeded: usize,
    pub failed: usize,
    pub results: Vec<DeletedPlan>,
}

/// What became of a plan.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct DeletedPlan {
    pub id: PlanId,
    pub success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// That something is gone.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Gone {
    pub message: &'static str,
}

/// Makes a plan.
#[utoipa::path(post, path = "/plans", tag = "plans", request_body = WritePlan,
    responses((status = 201, body = PlanReply), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn create_plan(
    State(state): State<Billing>,
    _: Admin,
    Json(body): Json<WritePlan>,
) -> Result<(StatusCode, Json<PlanReply>)> {
    for (field, missing) in [
        ("name", body.name.is_none()),
        ("price", body.price.is_none()),
        ("duration", body.duration.is_none()),
    ] {
        if missing {
            return Err(Problem::invalid_field(field, "is required").into());
        }
    }
    let made = || format!("plan-{}", TransactionId::new());
    let id = body.code.as_ref().map_or_else(made, PlanId::to_string);
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let added = sqlx::query(
        "-- plan::insert
        insert into billing.plans
            (id, code, name, description, type, price, billing_cycle, duration, max_devices, cpu_cores, memory_mb,
             storage_mb, storage_quota_gb, traffic_quota_gb, created_at, updated_at)
        values ($1, $1, '', '', 'basic', 0, 'monthly', 1, 1, 1, 1024, 8192, 8, 10, $2, $2) on conflict do nothing",
    )
    .bind(&id)
    .bind(now)
    .execute(&mut *tx)
    .await?;
    if added.rows_affected() == 0 {
        return Err(Error::PlanExists);
    }
    let plan = write(&mut tx, &id, &body, now).await?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, Json(plan.into())))
}

/// Changes a plan; orders keep the terms and the price with which they were made.
#[utoipa::path(patch, path = "/plans/{id}", tag = "plans", params(("id" = String, Path)), request_body = WritePlan,
    responses((status = 200, body = PlanReply), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn change_plan(
    State(state): State<Billing>,
    _: Admin,
    Path(id): Path<PlanId>,
    Json(body): Json<WritePlan>,
) -> Result<Json<PlanReply>> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let plan = db::find(&mut tx, id.as_str()).await?;
    let plan = plan.ok_or(Error::PlanNotFound)?;
    if body
        .code
        .as_ref()
        .is_some_and(|code| code.as_str() != plan.code)
    {
        return Err(Problem::invalid_field("code", "stays what it is").into());
    }
    let plan = write(&mut tx, plan.id.as_str(), &body, now).await?;
    tx.commit().await?;
    Ok(Json(plan.into()))
}

async fn write(
    conn: &mut PgConnection,
    id: &str,
    body: &WritePlan,
    now: contracts::Timestamp,
) -> Result<Plan> {
    let prices = body.usage_prices.as_ref().map(|prices| {
        let prices = prices
            .iter()
            .map(|(resource, price)| (resource.name(), price.0));
        sqlx::types::Json(prices.collect::<BTreeMap<_, _>>())
    });
    sqlx::query(
        "-- plan::write
        update billing.plans
        set name = coalesce($2, name), description = coalesce($3, description), type = coalesce($4, type),
            price = coalesce($5, price), original_price = coalesce($6, original_price),
            billing_cycle = coalesce($7, billing_cycle), duration = coalesce($8, duration),
            features = coalesce($9, features), max_devices = coalesce($10, max_devices),
            cpu_cores = coalesce($11, cpu_cores), memory_mb = coalesce($12, memory_mb),
            storage_mb = coalesce($13, storage_mb), storage_quota_gb = coalesce($14, storage_quota_gb),
            traffic_quota_gb = coalesce($15, traffic_quota_gb), is_popular = coalesce($16, is_popular),
            is_active = coalesce($17, is_active), is_public = coalesce($18, is_public),
            usage_prices = coalesce($19, usage_prices), updated_at = $20
        where id = $1",
    )
    .bind(id)
    .bind(&body.name)
    .bind(&body.description)
    .bind(body.kind)
    .bind(body.price)
    .bind(body.original_price)
    .bind(body.billing_cycle)
    .bind(body.duration)
    .bind(&body.features)
    .bind(body.max_devices)
    .bind(body.cpu_cores)
    .bind(body.memory_mb)
    .bind(body.storage_mb)
    .bind(body.storage_quota_gb)
    .bind(body.traffic_quota_gb)
    .bind(body.is_popular)
    .bind(body.is_active)
    .bind(body.is_public)
    .bind(prices)
    .bind(now)
    .execute(&mut *conn)
    .await?;
    db::find(conn, id).await?.ok_or(Error::PlanNotFound)
}

/// Deletes a plan that was never ordered; one that was can be taken from sale by `isActive`.
#[utoipa::path(delete, path = "/plans/{id}", tag = "plans", params(("id" = String, Path)),
    responses((status = 200, body = Gone), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn delete_plan(
    State(state): State<Billing>,
    _: Admin,
    Path(id): Path<PlanId>,
) -> Result<Json<Gone>> {
    let mut conn = state.platform.db.acquire().await?;
    delete(&mut conn, &id).await?;
    Ok(Json(Gone {
        message: "plan deleted",
    }))
}

/// Deletes several plans; each stands for itself.
#[utoipa::path(post, path = "/plans/batch-delete", tag = "plans", request_body = DeletePlans,
    responses((status = 200, body = DeletedPlans), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn delete_plans(
    State(state): State<Billing>,
    _: Admin,
    Json(body): Json<DeletePlans>,
) -> Result<Json<DeletedPlans>> {
    let mut conn = state.platform.db.acquire().await?;
    let mut results = Vec::with_capacity(body.ids.len());
    for id in body.ids {
        let outcome = delete(&mut conn, &id).await;
        if let Err(error @ Error::Database(_)) = outcome {
            return Err(error);
        }
        results.push(DeletedPlan {
            id,
            success: outcome.is_ok(),
            error: outcome.err().map(|error| error.to_string()),
        });
    }
    let succeeded = results.iter().filter(|result| result.success).count();
    Ok(Json(DeletedPlans {
        total: results.len(),
        succeeded,
        failed: results.len() - succeeded,
        results,
    }))
}

/// The foreign key of orders, not a look before, keeps a plan that is ordered meanwhile.
async fn delete(conn: &mut PgConnection, id: &PlanId) -> Result<()> {
    let deletion = sqlx::query("delete from billing.plans where id = $1 or code = $1")
        .bind(id)
        .execute(conn)
        .await;
    match deletion {
        Ok(done) if done.rows_affected() == 0 => Err(Error::PlanNotFound),
        Ok(_) => Ok(()),
        Err(error) => Err(match error.as_database_error() {
            Some(database) if database.is_foreign_key_violation() => Error::PlanInUse,
            _ => error.into(),
        }),
    }
}
