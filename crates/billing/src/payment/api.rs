//! The routes of payments.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use contracts::{Money, OrderId, UserId};
use garde::Validate;
use http::StatusCode;
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::idempotency::{Idempotent, Turn};
use platform::problem::ProblemBody;
use platform::{CurrentUser, Problem};
use serde::Deserialize;

use super::{Funding, Method, Paying, Payment, begin, db, pay};
use crate::{Billing, Error, Result, callers, order, rules};

/// Bytes of a stored reply, which is a payment.
const MOST_REPLY: usize = 64 * 1024;

/// An order to be paid.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreatePayment {
    #[garde(skip)]
    pub order_id: OrderId,
    #[garde(skip)]
    pub method: Method,
    /// Where it is sent, it must be what is due.
    #[garde(skip)]
    pub amount: Option<Money>,
}

/// A payment asked for by its number.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueryPayment {
    #[garde(custom(rules::required_text))]
    pub payment_no: String,
}

/// Pays an order from the balance in one step, or begins a payment at its provider, which will tell how it ends; the
/// payer goes on at `paymentUrl` or by `qrCode`.
#[utoipa::path(post, path = "/payments", tag = "payments", request_body = CreatePayment, params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = Payment), (status = 400, body = ProblemBody), (status = 402, body = ProblemBody), (status = 409, body = ProblemBody),
        (status = 502, body = ProblemBody, description = "the provider refused"), (status = 504, body = ProblemBody, description = "the provider did not answer; send the request again")))]
pub async fn create_payment(
    State(state): State<Billing>,
    user: CurrentUser,
    Idempotent { body, key }: Idempotent<CreatePayment>,
) -> Result<Response> {
    callers::limit(&state, &user, "payments").await?;
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, &format!("user:{}", user.id)).await? {
        Turn::First(turn) => turn,
        Turn::Replay(response) => {
            drop(tx);
            return resume(&state, response).await;
        }
    };
    let order = order::db::lock(&mut tx, &body.order_id).await?;
    let order = order
        .filter(|order| user.may_see(&order.user_id))
        .ok_or(Error::OrderNotFound)?;
    let now = state.platform.clock.shared(&mut tx).await?;
    order.payable(now)?;
    order.agrees(body.amount)?;
    let provider = state.providers.of(body.method);
    let paid = body.method == Method::Balance;
    let payment = if paid {
        let paying = Paying {
            method: body.method,
            transaction_id: None,
            payment: None,
            operator_id: None,
        };
        pay(&mut tx, &order, paying, Funding::Balance, now).await?.1
    } else {
        let payment = Payment {
            provider: provider.map(|provider| provider.name().to_owned()),
            ..Payment::of(&order, body.method, now)
        };
        db::insert(&mut tx, &payment).await?
    };
    let response = turn.reply(&mut tx, StatusCode::CREATED, &payment).await?;
    tx.commit().await?;
    if paid {
        super::count_paid();
    }
    let Some(provider) = provider else {
        return Ok(response);
    };
    let payment = begin::begin(&state, provider, &payment).await?;
    let mut conn = state.platform.db.acquire().await?;
    Ok(turn.amend(&mut conn, StatusCode::CREATED, &payment).await?)
}

/// The reply to a request that came again. Where the first one was cut off before its provider had answered, this one
/// goes on from there.
async fn resume(state: &Billing, response: Response) -> Result<Response> {
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, MOST_REPLY).await;
    let bytes = bytes.map_err(|_| Problem::internal())?;
    let reply: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let id = reply["id"].as_str().unwrap_or_default();
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    let payment = db::find(&mut conn, id).await?;
    drop(conn);
    let provider = |payment: &Payment| state.providers.named(payment.provider.as_deref()?);
    let body = match payment {
        Some(payment) if reply.get("paymentUrl").or(reply.get("qrCode")).is_none() => {
            match provider(&payment) {
                Some(provider) if begin::is_due(&payment, now) => {
                    Json(begin::begin(state, provider, &payment).await?).into_response()
                }
                Some(_) => Json(payment).into_response(),
                None => bytes.into_response(),
            }
        }
        _ => bytes.into_response(),
    };
    Ok(Response::from_parts(parts, body.into_body()))
}

/// Lists the caller's payments, or everybody's to an admin.
#[utoipa::path(get, path = "/payments", tag = "payments", params(PageQuery), responses((status = 200, body = Page<Payment>)))]
pub async fn list_payments(
    State(state): State<Billing>,
    user: CurrentUser,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Payment>>> {
    let owner: Option<&UserId> = (!user.is_admin).then_some(&user.id);
    let mut conn = state.platform.db.acquire().await?;
    let payments = db::list(&mut conn, owner, query.slice()).await?;
    let total = db::count(&mut conn, owner).await?;
    Ok(Json(Page::new(payments, total, query)))
}

/// Shows a payment.
#[utoipa::path(get, path = "/payments/{id}", tag = "payments", params(("id" = String, Path)),
    responses((status = 200, body = Payment), (status = 404, body = ProblemBody)))]
pub async fn find_payment(
    State(state): State<Billing>,
    user: CurrentUser,
    Path(id): Path<OrderId>,
) -> Result<Json<Payment>> {
    let mut conn = state.platform.db.acquire().await?;
    visible(db::find(&mut conn, id.as_str()).await?, &user)
}

/// Shows a payment by its number.
#[utoipa::path(post, path = "/payments/query", tag = "payments", request_body = QueryPayment,
    responses((status = 200, body = Payment), (status = 404, body = ProblemBody)))]
pub async fn query_payment(
    State(state): State<Billing>,
    user: CurrentUser,
    Json(body): Json<QueryPayment>,
) -> Result<Json<Payment>> {
    let mut conn = state.platform.db.acquire().await?;
    visible(
        db::find_by_number(&mut conn, &body.payment_no).await?,
        &user,
    )
}

fn visible(payment: Option<Payment>, user: &CurrentUser) -> Result<Json<Payment>> {
    payment
        .filter(|payment| user.may_see(&payment.user_id))
        .map(Json)
        .ok_or(Error::PaymentNotFound)
}
