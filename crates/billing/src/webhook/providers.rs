//! The routes at which Stripe, Alipay and WeChat Pay tell what happened, each answered in its own words.

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode};
use platform::http::Json;
use platform::problem::ProblemBody;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::types::Json as Jsonb;
use tracing::{info, warn};

use super::api::{count, unread};
use super::db::{Delivery, KeptHeaders};
use super::message::{Message, Said};
use super::settle::settle;
use super::{alipay, stripe, wechatpay};
use crate::{Billing, Error, Result, metrics};

type Body = std::result::Result<Bytes, BytesRejection>;

/// What Stripe is answered.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct StripeReceipt {
    pub received: bool,
}

/// What WeChat Pay is answered.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct WechatPayReceipt {
    /// SUCCESS or FAIL.
    pub code: &'static str,
    pub message: String,
}

/// Takes an event of Stripe, signed by it.
#[utoipa::path(post, path = "/webhooks/stripe", tag = "webhooks", security(()), request_body(content = String, content_type = "application/json"),
    responses((status = 200, body = StripeReceipt), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn receive_stripe_notice(
    State(state): State<Billing>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<StripeReceipt>> {
    let body = body.map_err(unread)?;
    let keys = state.config.webhooks.stripe.as_ref();
    let keys = keys.ok_or(Error::ProviderNotConfigured { provider: "stripe" })?;
    let now = state.platform.clock.now();
    stripe::verify(&headers, &body, &keys.secrets, now).inspect_err(|_| unbelieved())?;
    let kept = KeptHeaders::of(&headers, &stripe::HEADERS);
    take(&state, "stripe", stripe::read(keys, &body), &kept, &body).await?;
    Ok(Json(StripeReceipt { received: true }))
}

/// Takes a notice of Alipay, signed by it.
#[utoipa::path(post, path = "/webhooks/alipay", tag = "webhooks", security(()), request_body(content = String, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, content_type = "text/plain", body = String), (status = 400, content_type = "text/plain", body = String), (status = 401, content_type = "text/plain", body = String), (status = 404, content_type = "text/plain", body = String)))]
pub async fn receive_alipay_notice(state: State<Billing>, body: Body) -> Response {
    answer_alipay(alipay_notice(state, body).await)
}

/// The same as `/webhooks/alipay`.
#[utoipa::path(post, path = "/payments/notify/alipay", tag = "webhooks", security(()), request_body(content = String, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, content_type = "text/plain", body = String), (status = 400, content_type = "text/plain", body = String), (status = 401, content_type = "text/plain", body = String), (status = 404, content_type = "text/plain", body = String)))]
pub async fn receive_alipay_notice_as_before(state: State<Billing>, body: Body) -> Response {
    answer_alipay(alipay_notice(state, body).await)
}

async fn alipay_notice(State(state): State<Billing>, body: Body) -> Result<()> {
    let body = body.map_err(unread)?;
    let keys = state.config.webhooks.alipay.as_ref();
    let keys = keys.ok_or(Error::ProviderNotConfigured { provider: "alipay" })?;
    alipay::verify(&body, &keys.keys).inspect_err(|_| unbelieved())?;
    // Its signature stands in the body.
    let kept = Jsonb(KeptHeaders::default());
    take(&state, "alipay", alipay::read(keys, &body), &kept, &body).await
}

/// Alipay reads the body alone, and delivers again unless it is `success`; the status is for people.
fn answer_alipay(taken: Result<()>) -> Response {
    match taken {
        Ok(()) => "success".into_response(),
        Err(error) => (status_of(error), "fail").into_response(),
    }
}

/// Takes a notice of WeChat Pay, signed by it.
#[utoipa::path(post, path = "/webhooks/wechatpay", tag = "webhooks", security(()), request_body(content = String, content_type = "application/json"),
    responses((status = 200, body = WechatPayReceipt), (status = 400, body = WechatPayReceipt), (status = 401, body = WechatPayReceipt), (status = 404, body = WechatPayReceipt)))]
pub async fn receive_wechatpay_notice(
    state: State<Billing>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    answer_wechatpay(wechatpay_notice(state, headers, body).await)
}

/// The same as `/webhooks/wechatpay`.
#[utoipa::path(post, path = "/payments/notify/wechat", tag = "webhooks", security(()), request_body(content = String, content_type = "application/json"),
    responses((status = 200, body = WechatPayReceipt), (status = 400, body = WechatPayReceipt), (status = 401, body = WechatPayReceipt), (status = 404, body = WechatPayReceipt)))]
pub async fn receive_wechatpay_notice_as_before(
    state: State<Billing>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    answer_wechatpay(wechatpay_notice(state, headers, body).await)
}

async fn wechatpay_notice(
    State(state): State<Billing>,
    headers: HeaderMap,
    body: Body,
) -> Result<()> {
    let body = body.map_err(unread)?;
    let keys = state.config.webhooks.wechatpay.as_ref();
    let keys = keys.ok_or(Error::ProviderNotConfigured {
        provider: "wechatpay",
    })?;
    let now = state.platform.clock.now();
    wechatpay::verify(&headers, &body, &keys.keys, now).inspect_err(|_| unbelieved())?;
    let kept = KeptHeaders::of(&headers, &wechatpay::HEADERS);
    take(
        &state,
        "wechatpay",
        wechatpay::read(keys, &body),
        &kept,
        &body,
    )
    .await
}

fn answer_wechatpay(taken: Result<()>) -> Response {
    match taken {
        Ok(()) => Json(json!({ "code": "SUCCESS", "message": "OK" })).into_response(),
        Err(error) => {
            let message = error.to_string();
            let body = WechatPayReceipt {
                code: "FAIL",
                message,
            };
            (status_of(error), Json(body)).into_response()
        }
    }
}

/// The status of a refusal, which is logged as every other.
fn status_of(error: Error) -> StatusCode {
    error.into_response().status()
}

fn unbelieved() {
    metrics::webhook("bad_signature");
}

/// Settles a believed notice. One that cannot be read is kept all the same, by what it hashes to.
async fn take(
    state: &Billing,
    provider: &'static str,
    message: Option<Message>,
    headers: &Jsonb<KeptHeaders>,
    raw: &[u8],
) -> Result<()> {
    let (event_id, said) = match message {
        Some(message) => (format!("id:{}", message.event_id), Some(message.said)),
        None => (
            format!("sha256:{}", STANDARD.encode(Sha256::digest(raw))),
            None,
        ),
    };
    let delivery = Delivery {
        provider,
        event_id: &event_id,
        signed: true,
        headers: Some(headers),
        raw,
        again: false,
    };
    let settled = settle(state, delivery, said.as_ref()).await?;
    count(&settled);
    let name = settled.outcome.name();
    let receipt = settled.answer?;
    if receipt.duplicate {
        return Ok(());
    }
    match &said {
        Some(Said::Other { event }) if event.contains("dispute") => {
            warn!("a payer disputes a payment: event {event_id} of {provider} says {event}");
        }
        _ => info!(order.id = %receipt.order_id, "notice {event_id} of {provider} was {name}"),
    }
    Ok(())
}
