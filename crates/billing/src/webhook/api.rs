//! The route at which payment providers tell what happened.

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use http::{HeaderMap, StatusCode};
use platform::http::Json;
use platform::problem::ProblemBody;
use platform::{Problem, standard_webhook};
use tracing::info;

use super::db::{Delivery, KeptHeaders};
use super::message::Said;
use super::notice::{self, Notice};
use super::settle::{Receipt, Settled, settle};
use super::{Outcome, signature};
use crate::callers::SandboxOpen;
use crate::{Billing, Error, Result, metrics, payment};

/// Takes a notice of a payment, signed by the Standard Webhooks specification; in the sandbox unsigned too.
#[utoipa::path(post, path = "/webhooks/payment", tag = "webhooks", security(()),
    request_body(content((Notice = "application/json"), (Notice = "application/x-www-form-urlencoded"))),
    responses((status = 200, body = Receipt), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn receive_payment_notice(
    State(state): State<Billing>,
    SandboxOpen(open): SandboxOpen,
    headers: HeaderMap,
    body: std::result::Result<Bytes, BytesRejection>,
) -> Result<Json<Receipt>> {
    let body = body.map_err(unread)?;
    let believed = believe(&state, open, &headers, &body);
    let webhook_id = believed.inspect_err(|_| metrics::webhook("bad_signature"))?;
    let notice = notice::read(&headers, &body).inspect_err(|_| metrics::webhook("invalid"))?;
    let event_id = notice.event_key(webhook_id);
    let provider = notice.provider().to_owned();
    let kept = KeptHeaders::of(&headers, &standard_webhook::HEADERS);
    let delivery = Delivery {
        provider: &provider,
        event_id: &event_id,
        signed: signature::is_claimed(&headers),
        headers: Some(&kept),
        raw: &body,
        again: false,
    };
    let said = Said::Payment { notice };
    let settled = settle(&state, delivery, Some(&said)).await?;
    count(&settled);
    let receipt = settled.answer?;
    if !receipt.duplicate {
        info!(order.id = %receipt.order_id, "a notice about order {} was {}", receipt.order_id, settled.outcome.name());
    }
    Ok(Json(receipt))
}

/// Counts what was made of a notice, after the commit.
pub fn count(settled: &Settled) {
    metrics::webhook(settled.outcome.name());
    if settled.outcome == Outcome::Paid {
        payment::count_paid();
    }
}

/// A body that could not be read.
pub fn unread(rejection: BytesRejection) -> Problem {
    match rejection.status() {
        status @ StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(status, "TOO_LARGE", "the body is larger than 1 MiB")
        }
        _ => Problem::invalid_field("body", "could not be read"),
    }
}

/// Whether a notice is believed; gives the id in its header, if there is one.
fn believe<'a>(
    state: &Billing,
    sandbox_open: bool,
    headers: &'a HeaderMap,
    body: &[u8],
) -> Result<Option<&'a str>> {
    if signature::is_claimed(headers) {
        let now = state.platform.clock.now();
        return signature::verify(headers, body, &state.config.webhook_keys, now).map(Some);
    }
    if !sandbox_open {
        return Err(Error::BadSignature("the notice is not signed"));
    }
    let id = headers
        .get(standard_webhook::ID)
        .and_then(|value| value.to_str().ok());
    Ok(id.filter(|id| (1..=256).contains(&id.len())))
}
