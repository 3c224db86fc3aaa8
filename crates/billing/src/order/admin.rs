//! Orders as admins see them as a whole, and what they note on one.

use axum::extract::State;
use contracts::{Money, OrderId, UserId};
use garde::Validate;
use platform::Admin;
use platform::http::{Json, Path, Query, SliceQuery};
use platform::problem::ProblemBody;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::reply::OrderReply;
use super::{OrderState, db};
use crate::callers::Family;
use crate::{Billing, Error, Result, rules};

/// What is noted on an order.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
pub struct NoteOrder {
    #[garde(custom(rules::text))]
    pub remark: Option<String>,
    #[garde(custom(rules::metadata))]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Value>,
}

/// All orders by their status.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderStats {
    pub total_orders: i64,
    pub by_status: Vec<OrdersOfStatus>,
    /// What was paid and not given back.
    pub total_revenue: Money,
}

/// The orders of one status.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrdersOfStatus {
    pub status: &'static str,
    pub count: i64,
    pub total_amount: Money,
}

/// An order in a list to choose from.
#[derive(Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderName {
    pub id: OrderId,
    pub order_no: String,
    pub user_id: UserId,
    pub plan_name: String,
}

/// Notes something on an order.
#[utoipa::path(patch, path = "/orders/{id}", tag = "orders", params(("id" = OrderId, Path)), request_body = NoteOrder,
    responses((status = 200, body = OrderReply), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn note_order(
    State(state): State<Billing>,
    _: Admin,
    family: Family,
    Path(id): Path<OrderId>,
    Json(body): Json<NoteOrder>,
) -> Result<Json<OrderReply>> {
    note(&state, family, &id, body).await
}

/// The same.
#[utoipa::path(put, path = "/orders/{id}", tag = "orders", params(("id" = OrderId, Path)), request_body = NoteOrder,
    responses((status = 200, body = OrderReply), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn put_order_note(
    State(state): State<Billing>,
    _: Admin,
    family: Family,
    Path(id): Path<OrderId>,
    Json(body): Json<NoteOrder>,
) -> Result<Json<OrderReply>> {
    note(&state, family, &id, body).await
}

async fn note(
    state: &Billing,
    family: Family,
    id: &OrderId,
    body: NoteOrder,
) -> Result<Json<OrderReply>> {
    let mut conn = state.platform.db.acquire().await?;
    sqlx::query(
        "-- order::note
        update billing.orders set remark = coalesce($2, remark), metadata = coalesce($3, metadata) where id = $1",
    )
    .bind(id)
    .bind(&body.remark)
    .bind(&body.metadata)
    .execute(&mut *conn)
    .await?;
    let order = db::find(&mut conn, id.as_str()).await?;
    let order = order.ok_or(Error::OrderNotFound)?;
    Ok(Json(OrderReply::load(&mut conn, order, family).await?))
}

/// Counts all orders.
#[utoipa::path(get, path = "/orders/stats", tag = "orders", responses((status = 200, body = OrderStats), (status = 403, body = ProblemBody)))]
pub async fn count_orders(
    State(state): State<Billing>,
    _: Admin,
    family: Family,
) -> Result<Json<OrderStats>> {
    let mut conn = state.platform.db.acquire().await?;
    let rows: Vec<(OrderState, i64, Money, Money)> = sqlx::query_as(
        "-- order::stats
        select state, count(*), sum(final_amount)::bigint, sum(final_amount - refund_amount)::bigint
        from billing.orders group by state",
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut stats = OrderStats {
        total_orders: 0,
        by_status: Vec::new(),
        total_revenue: Money::ZERO,
    };
    for (state, count, total_amount, left) in rows {
        let status = match family {
            Family::Upper => state.name(),
            Family::Lower => state.five(),
        };
        stats.total_orders += count;
        if ["paid", "refunded"].contains(&state.five()) {
            stats.total_revenue = stats.total_revenue + left;
        }
        let known = stats.by_status.iter_mut().find(|one| one.status == status);
        match known {
            Some(known) => {
                known.count += count;
                known.total_amount = known.total_amount + total_amount;
            }
            None => stats.by_status.push(OrdersOfStatus {
                status,
                count,
                total_amount,
            }),
        }
    }
    Ok(Json(stats))
}

/// Lists orders to choose from, the newest first.
#[utoipa::path(get, path = "/orders/quick-list", tag = "orders", params(SliceQuery), responses((status = 200, body = Vec<OrderName>), (status = 403, body = ProblemBody)))]
pub async fn list_order_names(
    State(state): State<Billing>,
    _: Admin,
    Query(query): Query<SliceQuery>,
) -> Result<Json<Vec<OrderName>>> {
    let slice = query.slice();
    let names = sqlx::query_as(
        "select id, order_no, user_id, plan_name from billing.orders order by created_at desc, seq desc limit $1 offset $2",
    );
    let names = names.bind(slice.limit).bind(slice.offset);
    Ok(Json(names.fetch_all(&state.platform.db).await?))
}
