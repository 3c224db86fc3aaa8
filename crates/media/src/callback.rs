//! The route at which providers tell how a step went. What they tell is written down, and a worker goes on from there,
//! as it does after a question: so both may come, in any order and any number.

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use contracts::{TaskId, Timestamp};
use hmac::Mac;
use http::HeaderMap;
use platform::Problem;
use platform::http::{Json, Path};
use platform::problem::ProblemBody;
use platform::standard_webhook::{ID, SIGNATURE, TIMESTAMP, mac};
use secrecy::SecretSlice;
use serde::Serialize;

use crate::provider::Report;
use crate::{Error, Media, Result, job, metrics};

/// How old, or how far in the future, a signed report may be, in seconds.
const TOLERANCE: u64 = 300;

/// What a provider is answered.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Receipt {
    /// It was understood.
    received: bool,
    /// It changed nothing.
    duplicate: bool,
}

/// Takes a provider's report of a step, signed as our messages to it are. It ends the asking early; repeated, or after
/// the end, it changes nothing.
#[utoipa::path(post, path = "/media/callbacks/{task_id}/{step_index}", tag = "media", security(()),
    params(("task_id" = TaskId, Path), ("step_index" = i16, Path)), request_body = Report,
    responses((status = 200, body = Receipt), (status = 400, body = ProblemBody), (status = 401, description = "not signed, too old, or wrong", body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn receive_callback(
    State(state): State<Media>,
    Path((task_id, index)): Path<(TaskId, String)>,
    headers: HeaderMap,
    body: std::result::Result<Bytes, BytesRejection>,
) -> Result<Json<Receipt>> {
    let body = body.map_err(|_| Problem::invalid_field("body", "could not be read"))?;
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    let step = match index.parse() {
        Ok(index) => job::db::find_step(&mut conn, &task_id, index).await?,
        Err(_) => None,
    };
    // Who does not sign is not told which steps there are.
    let provider = step
        .as_ref()
        .and_then(|step| state.providers.find(step.provider.as_deref()?));
    let is_signed =
        provider.is_some_and(|provider| is_signed(&headers, &body, &provider.key(), now));
    let Some(step) = step.filter(|_| is_signed) else {
        metrics::callback("refused");
        return Err(Error::BadSignature);
    };
    let report: Report = serde_json::from_slice(&body)
        .map_err(|error| Problem::invalid_field("body", format!("is no report: {error}")))?;
    let changed = if report.is_final() {
        job::db::report(&mut conn, step.id, &report, now).await?
    } else {
        job::db::tell(&mut conn, step.id, &report, now).await?
    };
    if changed {
        state.work.wake();
    }
    metrics::callback(if changed { "taken" } else { "duplicate" });
    Ok(Json(Receipt {
        received: true,
        duplicate: !changed,
    }))
}

fn is_signed(headers: &HeaderMap, body: &[u8], key: &SecretSlice<u8>, now: Timestamp) -> bool {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(id), Some(timestamp), Some(signatures)) =
        (header(ID), header(TIMESTAMP), header(SIGNATURE))
    else {
        return false;
    };
    let seconds = timestamp.parse::<i64>();
    let is_near = seconds.is_ok_and(|seconds| now.utc().timestamp().abs_diff(seconds) <= TOLERANCE);
    let mac = mac(key, id, timestamp, body);
    let mut fits = false;
    for signature in signatures.split(' ').take(8) {
        let given = signature
            .strip_prefix("v1,")
            .and_then(|code| STANDARD.decode(code).ok());
        // Compared in constant time.
        fits |= given.is_some_and(|given| mac.clone().verify_slice(&given).is_ok());
    }
    is_near && fits
}
