//! Asking for a captcha.

use axum::extract::State;
use axum::response::IntoResponse;
use http::header;
use platform::http::{ClientAddress, Json};
use platform::problem::ProblemBody;
use serde::Serialize;
use utoipa::ToSchema;

use super::{begin, draw};
use crate::error::Result;
use crate::{Users, limits};

/// A picture to be read.
#[derive(Debug, Serialize, ToSchema)]
pub struct Captcha {
    /// Sent back as `captchaId`.
    id: String,
    /// The picture.
    svg: String,
}

/// Gives a picture with letters, which may be sent back as `captcha` within five minutes, once.
#[utoipa::path(get, path = "/auth/captcha", tag = "auth", security(()), responses(
    (status = 200, body = Captcha), (status = 429, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn get_captcha(
    State(state): State<Users>,
    ClientAddress(address): ClientAddress,
) -> Result<impl IntoResponse> {
    limits::captcha(&state, address).await?;
    let (id, text) = begin(&state).await?;
    let svg = draw::svg(&text);
    Ok((
        [(header::CACHE_CONTROL, "no-store")],
        Json(Captcha { id, svg }),
    ))
}
