//! The routes that show and move balances.

use axum::extract::State;
use axum::response::Response;
use contracts::{Money, OrderId, Timestamp, UserId};
use garde::Validate;
use http::StatusCode;
use platform::http::{Json, Path};
use platform::idempotency::{IdempotencyKey, Idempotent, Turn};
use platform::problem::ProblemBody;
use platform::{Admin, CurrentUser};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::db::Fallen;
use super::{BalanceReply, Moved, Movement, db, move_money};
use crate::callers::MoneyMover;
use crate::ledger::Details;
use crate::{Billing, Result, rules};

/// How many alerts are told.
const MOST_ALERTS: i64 = 50;

/// Money to be moved on a balance.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MoveMoney {
    /// Whose balance; the caller's where it is left out.
    #[garde(skip)]
    pub user_id: Option<UserId>,
    #[garde(custom(rules::amount))]
    pub amount: Money,
    #[garde(custom(rules::text))]
    pub description: Option<String>,
    /// The same as `description`.
    #[garde(custom(rules::text))]
    pub reason: Option<String>,
    #[garde(skip)]
    pub order_id: Option<OrderId>,
    #[garde(custom(rules::reference))]
    pub payment_id: Option<String>,
    #[garde(custom(rules::reference))]
    pub device_id: Option<String>,
    #[garde(custom(rules::metadata))]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Value>,
}

/// A correction of a balance.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdjustBalance {
    #[garde(skip)]
    pub user_id: UserId,
    /// Not 0; below zero takes away.
    #[garde(custom(rules::signed_amount))]
    pub amount: Money,
    #[garde(custom(rules::required_text))]
    pub reason: String,
}

/// Whether a balance is low.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Alerts {
    pub user_id: UserId,
    pub has_low_balance_alert: bool,
    pub balance: Money,
    pub low_balance_threshold: Money,
    /// Newest first.
    pub alerts: Vec<Alert>,
}

/// Something a user should know about the balance.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Alert {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub message: String,
    pub created_at: Timestamp,
}

/// Shows a user's balance; one who has none gets an empty one.
#[utoipa::path(get, path = "/balance/user/{userId}", tag = "balance", params(("userId" = UserId, Path)),
    responses((status = 200, body = BalanceReply), (status = 403, body = ProblemBody)))]
pub async fn find_balance(
    State(state): State<Billing>,
    user: CurrentUser,
    Path(owner): Path<UserId>,
) -> Result<Json<BalanceReply>> {
    let owner = user.acting_for(Some(owner))?;
    Ok(Json(balance_of(&state, &owner).await?))
}

/// Tells whether a user's balance is low, and when it fell so low: the last fifty times, newest first.
#[utoipa::path(get, path = "/balance/user/{userId}/alerts", tag = "balance", params(("userId" = UserId, Path)),
    responses((status = 200, body = Alerts), (status = 403, body = ProblemBody)))]
pub async fn list_alerts(
    State(state): State<Billing>,
    user: CurrentUser,
    Path(owner): Path<UserId>,
) -> Result<Json<Alerts>> {
    let owner = user.acting_for(Some(owner))?;
    let balance = balance_of(&state, &owner).await?;
    let low = balance.balance <= balance.low_balance_threshold;
    let fallen = {
        let mut conn = state.platform.db.acquire().await?;
        db::alerts(&mut conn, &owner, MOST_ALERTS).await?
    };
    let mut alerts: Vec<Alert> = fallen.into_iter().map(Alert::from).collect();
    // One that was never above its threshold did not fall to it.
    if low && alerts.is_empty() {
        alerts.push(Alert::from(Fallen {
            balance: balance.balance,
            threshold: balance.low_balance_threshold,
            created_at: balance.updated_at,
        }));
    }
    Ok(Json(Alerts {
        user_id: owner,
        has_low_balance_alert: low,
        balance: balance.balance,
        low_balance_threshold: balance.low_balance_threshold,
        alerts,
    }))
}

impl From<Fallen> for Alert {
    fn from(fallen: Fallen) -> Self {
        Self {
            kind: "low_balance",
            message: format!(
                "the balance is {}, not above {}",
                fallen.balance, fallen.threshold
            ),
            created_at: fallen.created_at,
        }
    }
}

async fn balance_of(state: &Billing, owner: &UserId) -> Result<BalanceReply> {
    let mut conn = state.platform.db.acquire().await?;
    let mut balance = db::find(&mut conn, owner).await?;
    if balance.is_none() {
        let now = state.platform.clock.shared(&mut conn).await?;
        db::ensure(&mut conn, owner, now).await?;
        balance = db::find(&mut conn, owner).await?;
    }
    Ok(balance.ok_or(sqlx::Error::RowNotFound)?.into())
}

/// Credits a balance.
#[utoipa::path(post, path = "/balance/recharge", tag = "balance", request_body = MoveMoney, params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, body = Moved), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn recharge(
    State(state): State<Billing>,
    caller: MoneyMover,
    Idempotent { body, key }: Idempotent<MoveMoney>,
) -> Result<Response> {
    moved(&state, &caller, body, key, Movement::Recharge).await
}

/// Debits a balance.
#[utoipa::path(post, path = "/balance/consume", tag = "balance", request_body = MoveMoney, params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, body = Moved), (status = 402, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn consume(
    State(state): State<Billing>,
    caller: MoneyMover,
    Idempotent { body, key }: Idempotent<MoveMoney>,
) -> Result<Response> {
    moved(&state, &caller, body, key, Movement::Consume).await
}

/// Sets available money aside.
#[utoipa::path(post, path = "/balance/freeze", tag = "balance", request_body = MoveMoney, params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, body = Moved), (status = 402, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn freeze(
    State(state): State<Billing>,
    caller: MoneyMover,
    Idempotent { body, key }: Idempotent<MoveMoney>,
) -> Result<Response> {
    moved(&state, &caller, body, key, Movement::Freeze).await
}

/// Releases frozen money.
#[utoipa::path(post, path = "/balance/unfreeze", tag = "balance", request_body = MoveMoney, params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, body = Moved), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn unfreeze(
    State(state): State<Billing>,
    caller: MoneyMover,
    Idempotent { body, key }: Idempotent<MoveMoney>,
) -> Result<Response> {
    moved(&state, &caller, body, key, Movement::Unfreeze).await
}

/// Corrects a balance.
#[utoipa::path(post, path = "/balance/adjust", tag = "balance", request_body = AdjustBalance, params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, body = Moved), (status = 402, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn adjust(
    State(state): State<Billing>,
    Admin(admin): Admin,
    Idempotent { body, key }: Idempotent<AdjustBalance>,
) -> Result<Response> {
    let details = Details {
        description: body.reason,
        operator_id: Some(admin.id.to_string()),
        ..Details::default()
    };
    let owner = format!("user:{}", admin.id);
    commit(
        &state,
        (key, &owner),
        &body.user_id,
        (Movement::Adjust, body.amount),
        details,
    )
    .await
}

async fn moved(
    state: &Billing,
    caller: &MoneyMover,
    body: MoveMoney,
    key: IdempotencyKey,
    movement: Movement,
) -> Result<Response> {
    let user = caller.acting_for(body.user_id)?;
    let default = movement.shift(&user, body.amount).kind.name();
    let details = Details {
        description: body
            .description
            .or(body.reason)
            .unwrap_or_else(|| default.to_owned()),
        order_id: body.order_id,
        payment_id: body.payment_id,
        device_id: body.device_id,
        operator_id: caller.operator(),
        metadata: body.metadata,
    };
    commit(
        state,
        (key, &caller.key_owner()),
        &user,
        (movement, body.amount),
        details,
    )
    .await
}

async fn commit(
    state: &Billing,
    (key, key_owner): (IdempotencyKey, &str),
    user: &UserId,
    (movement, amount): (Movement, Money),
    details: Details,
) -> Result<Response> {
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, key_owner).await? {
        Turn::First(turn) => turn,
        Turn::Replay(response) => return Ok(response),
    };
    let now = state.platform.clock.shared(&mut tx).await?;
    let moved = move_money(&mut tx, user, movement, amount, details, now).await?;
    let response = turn.reply(&mut tx, StatusCode::OK, &moved).await?;
    tx.commit().await?;
    Ok(response)
}
