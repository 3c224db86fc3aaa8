//! The routes of orders.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use contracts::{Event, EventBody, Money, OrderId, PlanId, UserId};
use garde::Validate;
use http::StatusCode;
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::idempotency::{Idempotent, Turn};
use platform::problem::ProblemBody;
use platform::{Admin, Caller, CurrentUser, Problem};
use serde::{Deserialize, Serialize};

use super::reply::{OrderQuery, OrderReply};
use super::{Order, OrderState, db};
use crate::callers::Family;
use crate::payment::{self, Funding, Method, Paying};
use crate::plan::Plan;
use crate::{Billing, Error, Result, coupon, metrics, plan, rules};

/// A plan to be ordered. The price is the plan's; an `amount` is not read.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateOrder {
    /// The plan's id or code.
    #[garde(skip)]
    pub plan_id: PlanId,
    /// For whom; the caller where it is left out.
    #[garde(skip)]
    pub user_id: Option<UserId>,
    #[garde(custom(rules::reference))]
    pub coupon_id: Option<String>,
    #[garde(skip)]
    pub payment_method: Option<Method>,
    #[garde(custom(rules::text))]
    pub description: Option<String>,
}

/// Why an order is cancelled.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
pub struct CancelOrder {
    #[garde(custom(rules::text))]
    pub reason: Option<String>,
}

/// Orders to be cancelled.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
pub struct CancelOrders {
    /// 1 to 100.
    #[garde(length(min = 1, max = 100))]
    pub ids: Vec<OrderId>,
    #[garde(custom(rules::text))]
    pub reason: Option<String>,
}

/// What became of each order.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct CancelledOrders {
    pub total: usize,
    pub succeeded: usize,
    pub failed: usize,
    pub results: Vec<CancelledOrder>,
}

/// What became of an order.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct CancelledOrder {
    pub id: OrderId,
    pub success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How an order was paid, as an admin knows it.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfirmOrder {
    #[garde(skip)]
    pub payment_method: Option<Method>,
    #[garde(custom(rules::reference))]
    pub transaction_id: Option<String>,
    #[garde(custom(rules::text))]
    pub note: Option<String>,
}

/// Orders a plan.
#[utoipa::path(post, path = "/orders", tag = "orders", request_body = CreateOrder, params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = OrderReply), (status = 400, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn create_order(
    State(state): State<Billing>,
    caller: Caller,
    family: Family,
    Idempotent { body, key }: Idempotent<CreateOrder>,
) -> Result<Response> {
    let user = caller.acting_for(body.user_id)?;
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, &caller.key_owner()).await? {
        Turn::First(turn) => turn,
        Turn::Replay(response) => return Ok(response),
    };
    let plan = plan::db::find(&mut tx, body.plan_id.as_str()).await?;
    let plan = plan
        .filter(|plan| plan.is_active)
        .ok_or(Error::PlanNotFound)?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let mut order = Order {
        id: OrderId::new(),
        order_no: String::new(),
        user_id: user,
        plan_id: plan.id.clone(),
        plan_name: plan.name.clone(),
        terms: sqlx::types::Json(plan.terms()),
        amount: plan.price,
        discount_amount: Money::ZERO,
        final_amount: plan.price,
        currency: plan.currency.clone(),
        state: OrderState::Pending,
        payment_method: body.payment_method.map(|method| method.name().to_owned()),
        transaction_id: None,
        coupon_id: None,
        coupon_used_at: None,
        expires_at: now + state.config.order_lifetime,
        paid_at: None,
        cancelled_at: None,
        refunded_at: None,
        refund_amount: Money::ZERO,
        remark: body.description,
        metadata: None,
        created_at: now,
        updated_at: now,
    };
    if let Some(id) = &body.coupon_id {
        let coupon = coupon::db::find(&mut tx, id, now).await?;
        let coupon = coupon.filter(|coupon| coupon.user_id == order.user_id);
        let fault = || Problem::invalid_field("couponId", "is not a coupon of this user");
        coupon.ok_or_else(fault)?.lower(&mut order, now)?;
    }
    let order = db::insert(&mut tx, &order).await;
    let mut order = order.map_err(coupon::refuse_second)?;
    let event = EventBody::OrderCreated {
        order_id: order.id.clone(),
        order_no: order.order_no.clone(),
        plan_id: order.plan_id.clone(),
        amount: order.final_amount,
    };
    platform::events::emit(&mut tx, &Event::new(order.user_id.clone(), now, event)).await?;
    // A plan that costs nothing of itself is still confirmed by its payment.
    let paid = order.coupon_id.is_some() && order.final_amount == Money::ZERO;
    if paid {
        order = coupon::pay_nothing(&mut tx, &order, now).await?;
    }
    let reply = OrderReply::new(order, Some(plan), family);
    let response = turn.reply(&mut tx, StatusCode::CREATED, &reply).await?;
    tx.commit().await?;
    metrics::orders_reached(OrderState::Pending, 1);
    if paid {
        payment::count_paid();
    }
    Ok(response)
}

/// Lists the caller's orders, or everybody's to an admin.
#[utoipa::path(get, path = "/orders", tag = "orders", params(OrderQuery),
    responses((status = 200, body = Page<OrderReply>), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_orders(
    State(state): State<Billing>,
    user: CurrentUser,
    family: Family,
    Query(query): Query<OrderQuery>,
) -> Result<Json<Page<OrderReply>>> {
    let owner = match &query.user_id {
        None if user.is_admin => None,
        named => Some(user.acting_for(named.clone())?),
    };
    Ok(Json(page(&state, owner.as_ref(), &query, family).await?))
}

/// Shows an order, or a page of the orders of a user.
#[utoipa::path(get, path = "/orders/{id}", tag = "orders", params(("id" = String, Path, description = "order id, else user id"), PageQuery),
    responses((status = 200, body = OrderReply), (status = 404, body = ProblemBody)))]
pub async fn find_order_or_list(
    State(state): State<Billing>,
    caller: Caller,
    family: Family,
    Path(id): Path<UserId>,
    Query(query): Query<OrderQuery>,
) -> Result<Response> {
    let mut conn = state.platform.db.acquire().await?;
    if let Some(order) = db::find(&mut conn, id.as_str()).await? {
        if !caller.may_see(&order.user_id) {
            return Err(Error::OrderNotFound);
        }
        let reply = OrderReply::load(&mut conn, order, family).await?;
        return Ok(Json(reply).into_response());
    }
    drop(conn);
    // An id that names neither an order nor a user of whom we know is not found; one's own list may be empty.
    if !caller.may_see(&id) {
        return Err(Error::OrderNotFound);
    }
    let own = caller.user().is_some_and(|user| user.id == id);
    let page = page(&state, Some(&id), &query, family).await?;
    if page.total == 0 && !own {
        return Err(Error::OrderNotFound);
    }
    Ok(Json(page).into_response())
}

async fn page(
    state: &Billing,
    owner: Option<&UserId>,
    query: &OrderQuery,
    family: Family,
) -> Result<Page<OrderReply>> {
    let mut conn = state.platform.db.acquire().await?;
    let orders = db::list(&mut conn, owner, query).await?;
    let total = db::count(&mut conn, owner, query).await?;
    let orders = OrderReply::load_all(&mut conn, orders, family).await?;
    Ok(Page::new(orders, total, query.page()))
}

/// Cancels an order that is not paid.
#[utoipa::path(post, path = "/orders/{id}/cancel", tag = "orders", params(("id" = OrderId, Path)), request_body = CancelOrder,
    responses((status = 200, body = OrderReply), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn cancel_order(
    State(state): State<Billing>,
    user: CurrentUser,
    family: Family,
    Path(id): Path<OrderId>,
    Json(body): Json<CancelOrder>,
) -> Result<Json<OrderReply>> {
    let (order, plan) = cancel(&state, &user, &id, body.reason.as_deref()).await?;
    Ok(Json(OrderReply::new(order, plan, family)))
}

/// Cancels several orders; each stands for itself.
#[utoipa::path(post, path = "/orders/batch/cancel", tag = "orders", request_body = CancelOrders,
    responses((status = 200, body = CancelledOrders), (status = 400, body = ProblemBody)))]
pub async fn cancel_orders(
    State(state): State<Billing>,
    user: CurrentUser,
    Json(body): Json<CancelOrders>,
) -> Result<Json<CancelledOrders>> {
    let mut results = Vec::with_capacity(body.ids.len());
    for id in body.ids {
        let outcome = cancel(&state, &user, &id, body.reason.as_deref()).await;
        // A store that fails is not the fault of this order; what was cancelled stays so and can be asked for again.
        if let Err(error @ Error::Database(_)) = outcome {
            return Err(error);
        }
        results.push(CancelledOrder {
            id,
            success: outcome.is_ok(),
            error: outcome.err().map(|error| error.to_string()),
        });
    }
    let succeeded = results.iter().filter(|result| result.success).count();
    Ok(Json(CancelledOrders {
        total: results.len(),
        succeeded,
        failed: results.len() - succeeded,
        results,
    }))
}

async fn cancel(
    state: &Billing,
    user: &CurrentUser,
    id: &OrderId,
    reason: Option<&str>,
) -> Result<(Order, Option<Plan>)> {
    let mut tx = state.platform.db.begin().await?;
    let order = db::lock(&mut tx, id).await?;
    let order = order
        .filter(|order| user.may_see(&order.user_id))
        .ok_or(Error::OrderNotFound)?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let Some(order) = db::cancel(&mut tx, id, reason, now).await? else {
        return Err(Error::OrderState {
            state: order.state,
            wanted: "cancelled",
        });
    };
    payment::db::cancel_open(&mut tx, id, now).await?;
    let event = Event::new(order.user_id.clone(), now, order.cancelled());
    platform::events::emit(&mut tx, &event).await?;
    // Read before the commit: after it, nothing that fails may hide that the order is cancelled.
    let plan = plan::db::find(&mut tx, order.plan_id.as_str()).await?;
    tx.commit().await?;
    metrics::orders_reached(OrderState::Cancelled, 1);
    Ok((order, plan))
}

/// Marks an order as paid, for money that arrived by another way.
#[utoipa::path(post, path = "/orders/{id}/confirm", tag = "orders", params(("id" = OrderId, Path), ("Idempotency-Key" = Option<String>, Header)), request_body = ConfirmOrder,
    responses((status = 200, body = OrderReply), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn confirm_order(
    State(state): State<Billing>,
    Admin(admin): Admin,
    family: Family,
    Path(id): Path<OrderId>,
    Idempotent { body, key }: Idempotent<ConfirmOrder>,
) -> Result<Response> {
    if body.payment_method == Some(Method::Balance) {
        let fault = Problem::invalid_field("paymentMethod", "a balance pays through /payments");
        return Err(fault.into());
    }
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, &format!("user:{}", admin.id)).await? {
        Turn::First(turn) => turn,
        Turn::Replay(response) => return Ok(response),
    };
    let order = db::lock(&mut tx, &id).await?.ok_or(Error::OrderNotFound)?;
    let now = state.platform.clock.shared(&mut tx).await?;
    order.payable(now)?;
    let paying = Paying {
        method: body
            .payment_method
            .unwrap_or_else(|| Method::of_order(&order)),
        transaction_id: body.transaction_id,
        payment: None,
        operator_id: Some(admin.id.to_string()),
    };
    let (mut order, _) = payment::pay(&mut tx, &order, paying, Funding::Outside, now).await?;
    if let Some(note) = body.note {
        db::remark(&mut tx, &id, &note).await?;
        order.remark = Some(note);
    }
    let reply = OrderReply::load(&mut tx, order, family).await?;
    let response = turn.reply(&mut tx, StatusCode::OK, &reply).await?;
    tx.commit().await?;
    payment::count_paid();
    Ok(response)
}
