//! Refunds of paid orders, to the balance of their user.

use axum::extract::State;
use axum::response::Response;
use contracts::{Event, EventBody, Money, OrderId, Timestamp, TransactionId};
use garde::Validate;
use http::StatusCode;
use platform::Admin;
use platform::http::Path;
use platform::idempotency::{Idempotent, Turn};
use platform::problem::ProblemBody;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::reply::OrderReply;
use super::{OrderState, db};
use crate::balance::{self, BalanceReply, Movement};
use crate::callers::Family;
use crate::ledger::Details;
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
    pub refund: Refund,
    pub balance: BalanceReply,
}

/// A refund.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refund {
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
    let refund = Refund {
        id: TransactionId::new().to_string(),
        amount,
        reason: body.reason.unwrap_or_else(|| "refund".to_owned()),
        created_at: now,
    };
    let details = Details {
        description: refund.reason.clone(),
        order_id: Some(id.clone()),
        payment_id: Some(paid.id.clone()),
        operator_id: Some(admin.id.to_string()),
        ..Details::default()
    };
    let user = &order.user_id;
    let moved = balance::move_money(&mut tx, user, Movement::Refund, amount, details, now).await?;
    let order = db::add_refund(&mut tx, &id, amount, now).await?;
    payment::db::add_refund(&mut tx, &paid.id, amount, now).await?;
    insert(
        &mut tx,
        &refund,
        (&id, &paid.id),
        &moved.transaction.id,
        admin.id.as_str(),
    )
    .await?;
    let state_reached = order.state;
    if state_reached == OrderState::Refunded {
        let body = EventBody::OrderRefunded {
            order_id: id.clone(),
            order_no: order.order_no.clone(),
            amount: order.final_amount,
        };
        platform::events::emit(&mut tx, &Event::new(order.user_id.clone(), now, body)).await?;
    }
    let reply = Refunded {
        order: OrderReply::load(&mut tx, order, family).await?,
        refund,
        balance: moved.balance,
    };
    let response = turn.reply(&mut tx, StatusCode::OK, &reply).await?;
    tx.commit().await?;
    if state_reached == OrderState::Refunded {
        metrics::orders_reached(state_reached, 1);
    }
    Ok(response)
}

async fn insert(
    conn: &mut PgConnection,
    refund: &Refund,
    (order, payment): (&OrderId, &str),
    transaction: &TransactionId,
    operator: &str,
) -> sqlx::Result<()> {
    sqlx::query(
        "insert into billing.refunds (id, order_id, payment_id, transaction_id, amount, reason, operator_id, created_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(&refund.id)
    .bind(order)
    .bind(payment)
    .bind(transaction)
    .bind(refund.amount)
    .bind(&refund.reason)
    .bind(operator)
    .bind(refund.created_at)
    .execute(conn)
    .await?;
    Ok(())
}
