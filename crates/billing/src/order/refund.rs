//! Refunds of paid orders, to the balance of their user.

use axum::extract::State;
use axum::response::Response;
use contracts::{Money, OrderId, Timestamp};
use garde::Validate;
use http::StatusCode;
use platform::Admin;
use platform::http::Path;
use platform::idempotency::{Idempotent, Turn};
use platform::problem::ProblemBody;
use serde::{Deserialize, Serialize};

use super::reply::OrderReply;
use super::{OrderState, db};
use crate::balance::BalanceReply;
use crate::callers::Family;
use crate::refund::{Wanted, to_balance};
use crate::{Billing, Error, Result, metrics, payment, rules};

/// How much of an order is given back, and why.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
pub struct RefundOrder {
    /// At most what is left; all of that where it is left out.
    #[garde(custom(rules::optional_amount))]
    pub amount: Option<Money>,
    #[garde(custom(rules::text))]
    pub reason: Option<String>,
}

/// A refund and what it left.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Refunded {
    pub order: OrderReply,
    pub refund: OrderRefund,
    pub balance: BalanceReply,
}

/// A refund to the balance.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderRefund {
    pub id: String,
    pub amount: Money,
    pub reason: String,
    pub created_at: Timestamp,
}

/// Gives a paid order back, in whole or in part, to its user's balance.
#[utoipa::path(post, path = "/orders/{id}/refund", tag = "orders", params(("id" = OrderId, Path), ("Idempotency-Key" = Option<String>, Header)), request_body = RefundOrder,
    responses((status = 200, body = Refunded), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn refund_order(
    State(state): State<Billing>,
    Admin(admin): Admin,
    family: Family,
    Path(id): Path<OrderId>,
    Idempotent { body, key }: Idempotent<RefundOrder>,
) -> Result<Response> {
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, &format!("user:{}", admin.id)).await? {
        Turn::First(turn) => turn,
        Turn::Replay(response) => return Ok(response),
    };
    let order = db::lock(&mut tx, &id).await?.ok_or(Error::OrderNotFound)?;
    let amount = order.refundable(body.amount)?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let paid = payment::db::applied(&mut tx, &id).await?;
    let paid = paid.ok_or(sqlx::Error::RowNotFound)?;
    let wanted = Wanted {
        amount,
        reason: body.reason.unwrap_or_else(|| "refund".to_owned()),
        operator_id: admin.id.to_string(),
    };
    let (order, refund, moved) = to_balance(&mut tx, &order, &paid, wanted, now).await?;
    let state_reached = order.state;
    let reply = Refunded {
        order: OrderReply::load(&mut tx, order, family).await?,
        refund: OrderRefund {
            id: refund.id,
            amount: refund.amount,
            reason: refund.reason,
            created_at: refund.created_at,
        },
        balance: moved.balance,
    };
    let response = turn.reply(&mut tx, StatusCode::OK, &reply).await?;
    tx.commit().await?;
    if state_reached == OrderState::Refunded {
        metrics::orders_reached(state_reached, 1);
    }
    Ok(response)
}
