//! What the service of devices answers to a caller of ours.

use http::{Method, StatusCode};
use platform::{CurrentUser, Problem};
use serde_json::Value;

use crate::{Apps, Error, Result};

/// Asks it as if the caller had called.
///
/// # Errors
/// As it refuses, and 503 where no instance of it answers.
pub async fn ask(
    state: &Apps,
    user: &CurrentUser,
    path: &str,
    body: Option<&Value>,
) -> Result<Value> {
    let method = match body {
        Some(_) => Method::POST,
        None => Method::GET,
    };
    let asked = state.devices.ask_for(user, &method, path, body).await;
    let (status, told) = asked.map_err(|away| Problem::not_ready(away.to_string()))?;
    if status == StatusCode::OK {
        return Ok(told);
    }
    let message = told["message"]
        .as_str()
        .unwrap_or("the service of devices refuses");
    Err(match status {
        StatusCode::BAD_REQUEST => Problem::invalid_field("deviceIds", message),
        StatusCode::FORBIDDEN => Problem::forbidden(message),
        StatusCode::NOT_FOUND => Problem::new(status, "NOT_FOUND", message),
        StatusCode::TOO_MANY_REQUESTS => Problem::new(status, "TOO_MANY_INSTALLATIONS", message),
        _ => Problem::not_ready(message),
    }
    .into())
}

/// Reads its answer.
///
/// # Errors
/// 503 where it cannot be read.
pub fn read<T: serde::de::DeserializeOwned>(told: Value) -> Result<T> {
    serde_json::from_value(told).map_err(|error| {
        tracing::warn!("the service of devices answers what cannot be read: {error}");
        Error::Refused(Problem::not_ready(
            "the service of devices answers what cannot be read",
        ))
    })
}
