//! The routes of refunds to where the money came from, for admins.

use axum::extract::State;
use axum::response::Response;
use contracts::{Money, OrderId};
use garde::Validate;
use http::StatusCode;
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::idempotency::{Idempotent, Turn};
use platform::problem::ProblemBody;
use platform::{Admin, Problem};
use serde::Deserialize;

use super::{Refund, RefundState, Wanted, carry_out, db, to_balance, to_source};
use crate::order::OrderState;
use crate::payment::{self, Payment};
use crate::{Billing, Error, Result, metrics, order, rules};

/// How much of a payment is given back, and why.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
pub struct RefundPayment {
    /// At most what is left; all of that where it is left out.
    #[garde(custom(rules::optional_amount))]
    pub amount: Option<Money>,
    #[garde(custom(rules::text))]
    pub reason: Option<String>,
}

/// Why a refund is not allowed.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
pub struct RejectRefund {
    #[garde(custom(rules::text))]
    pub reason: Option<String>,
}

/// Gives a payment back, in whole or in part, to where it came from; what came from the balance, or by nobody whom we
/// can call, goes to the balance. The provider may take a while: until then the payment is `refunding`, where all of it
/// goes back.
#[utoipa::path(post, path = "/payments/{id}/refund", tag = "payments", params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header)), request_body = RefundPayment,
    responses((status = 200, body = Payment), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn refund_payment(
    state: State<Billing>,
    admin: Admin,
    path: Path<OrderId>,
    body: Idempotent<RefundPayment>,
) -> Result<Response> {
    refund(state, admin, path, body).await
}

/// The same as `/payments/{id}/refund`.
#[utoipa::path(post, path = "/admin/payments/{id}/refund", tag = "payments", params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header)), request_body = RefundPayment,
    responses((status = 200, body = Payment), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn refund_payment_as_admin(
    state: State<Billing>,
    admin: Admin,
    path: Path<OrderId>,
    body: Idempotent<RefundPayment>,
) -> Result<Response> {
    refund(state, admin, path, body).await
}

async fn refund(
    State(state): State<Billing>,
    Admin(admin): Admin,
    Path(id): Path<OrderId>,
    Idempotent { body, key }: Idempotent<RefundPayment>,
) -> Result<Response> {
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, &format!("user:{}", admin.id)).await? {
        Turn::First(turn) => turn,
        Turn::Replay(response) => return Ok(response),
    };
    let paid = payment::db::find(&mut tx, id.as_str()).await?;
    let paid = paid.ok_or(Error::PaymentNotFound)?;
    let order = order::db::lock(&mut tx, &paid.order_id).await?;
    let order = order.ok_or(Error::PaymentNotFound)?;
    // What was given back already, or never came, is not the order's money.
    let applied = payment::db::applied(&mut tx, &order.id).await?;
    let paid = applied.filter(|applied| applied.id == paid.id);
    let paid = paid.ok_or(Error::PaymentState {
        wanted: "refunded: it has not paid its order",
    })?;
    let amount = order.refundable(body.amount)?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let wanted = Wanted {
        amount,
        reason: body.reason.unwrap_or_else(|| "refund".to_owned()),
        operator_id: admin.id.to_string(),
    };
    let mut open = None;
    let mut order_reached = order.state;
    if paid.provider.is_some() {
        let limit = state.config.refund_approval_above;
        let begins = match limit {
            // What went back before counts: a second admin is not got round by small steps.
            Some(limit) if order.refund_amount + amount > limit => RefundState::Requested,
            _ => RefundState::Pending,
        };
        let refund = to_source(&mut tx, &order, &paid, wanted, begins, now).await?;
        open = (begins == RefundState::Pending).then_some(refund.id);
    } else {
        order_reached = to_balance(&mut tx, &order, &paid, wanted, now)
            .await?
            .0
            .state;
    }
    let paid = payment::db::find(&mut tx, &paid.id).await?;
    let response = turn.reply(&mut tx, StatusCode::OK, &paid).await?;
    tx.commit().await?;
    if order_reached == OrderState::Refunded {
        metrics::orders_reached(order_reached, 1);
    }
    let Some(open) = open else {
        return Ok(response);
    };
    // From here on the refund goes on by itself, whatever becomes of this request.
    if let Err(error) = carry_out::carry_out(&state, &open).await {
        tracing::warn!(refund.id = open, "a refund goes on later: {error}");
        return Ok(response);
    }
    let mut conn = state.platform.db.acquire().await?;
    let paid = payment::db::find(&mut conn, id.as_str()).await?;
    Ok(turn.amend(&mut conn, StatusCode::OK, &paid).await?)
}

/// Lists refunds that wait for an admin or for their provider.
#[utoipa::path(get, path = "/admin/payments/refunds/pending", tag = "payments", params(PageQuery),
    responses((status = 200, body = Page<Refund>), (status = 403, body = ProblemBody)))]
pub async fn list_open_refunds(
    State(state): State<Billing>,
    _: Admin,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Refund>>> {
    let mut conn = state.platform.db.acquire().await?;
    let refunds = db::list_open(&mut conn, page.slice()).await?;
    let total = db::count_open(&mut conn).await?;
    Ok(Json(Page::new(refunds, total, page)))
}

/// Allows a refund that another admin asked for.
#[utoipa::path(post, path = "/admin/payments/refunds/{id}/approve", tag = "payments", params(("id" = String, Path)),
    responses((status = 200, body = Refund), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn approve_refund(
    State(state): State<Billing>,
    Admin(admin): Admin,
    Path(id): Path<OrderId>,
) -> Result<Json<Refund>> {
    let mut tx = state.platform.db.begin().await?;
    let (_, refund) = lock_requested(&mut tx, id.as_str()).await?;
    if refund.operator_id.as_deref() == Some(admin.id.as_str()) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "FORBIDDEN",
            "a refund is allowed by another admin than the one who asked for it",
        )
        .into());
    }
    let now = state.platform.clock.shared(&mut tx).await?;
    db::approve(&mut tx, id.as_str(), admin.id.as_str(), now).await?;
    tx.commit().await?;
    if let Err(error) = carry_out::carry_out(&state, id.as_str()).await {
        tracing::warn!(refund.id = id.as_str(), "a refund goes on later: {error}");
    }
    let mut conn = state.platform.db.acquire().await?;
    let refund = db::find(&mut conn, id.as_str()).await?;
    refund.map(Json).ok_or(Error::RefundNotFound)
}

/// Does not allow a refund; its amount can be refunded again.
#[utoipa::path(post, path = "/admin/payments/refunds/{id}/reject", tag = "payments", params(("id" = String, Path)), request_body = RejectRefund,
    responses((status = 200, body = Refund), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn reject_refund(
    State(state): State<Billing>,
    Admin(admin): Admin,
    Path(id): Path<OrderId>,
    Json(body): Json<RejectRefund>,
) -> Result<Json<Refund>> {
    let mut tx = state.platform.db.begin().await?;
    let (order, refund) = lock_requested(&mut tx, id.as_str()).await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let reason = body.reason.as_deref().unwrap_or("not allowed");
    let refund = super::reject(&mut tx, &order, &refund, admin.id.as_str(), reason, now).await?;
    tx.commit().await?;
    metrics::refund(refund.state);
    Ok(Json(refund))
}

async fn lock_requested(conn: &mut sqlx::PgConnection, id: &str) -> Result<(order::Order, Refund)> {
    let order = db::order_of(conn, id).await?.ok_or(Error::RefundNotFound)?;
    let order = order::db::lock(conn, &order).await?;
    let order = order.ok_or(Error::RefundNotFound)?;
    let refund = db::find(conn, id).await?.ok_or(Error::RefundNotFound)?;
    if refund.state != RefundState::Requested {
        return Err(Problem::conflict("CONFLICT", "this refund waits for nobody's word").into());
    }
    Ok((order, refund))
}
