//! The routes of a user's webhook. Each is the caller's own: nobody sets another's, not even an admin.

use axum::extract::State;
use contracts::Timestamp;
use garde::Validate;
use platform::http::Json;
use platform::problem::ProblemBody;
use platform::{CurrentUser, Problem, standard_webhook};
use serde::{Deserialize, Serialize};

use super::db::{self, Webhook};
use crate::notification::api::Done;
use crate::{Error, Notifications, Result};

const TAG: &str = "notification-webhook";

/// Where to be called.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
pub struct PutWebhook {
    /// Of a public server, by TLS.
    #[garde(length(min = 1, max = 2_000))]
    url: String,
}

/// Where a user is called.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShownWebhook {
    /// The URL.
    url: String,
    /// Checks the signatures, by the Standard Webhooks specification. Shown when it is made, and never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    /// When it was first set.
    created_at: Timestamp,
    /// When it was changed last.
    updated_at: Timestamp,
}

/// Shows where the caller's programs are called.
#[utoipa::path(get, path = "/notifications/webhook", tag = TAG,
    responses((status = 200, body = ShownWebhook), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn find_webhook(
    State(state): State<Notifications>,
    user: CurrentUser,
) -> Result<Json<ShownWebhook>> {
    let mut conn = state.platform.db.acquire().await?;
    let found = db::find(&mut conn, &user.id).await?;
    Ok(Json(shown(found.ok_or(Error::WebhookNotFound)?, None)))
}

/// Sets where the caller's programs are called. The first time a secret is made and shown.
#[utoipa::path(put, path = "/notifications/webhook", tag = TAG, request_body = PutWebhook,
    responses((status = 200, body = ShownWebhook), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody)))]
pub async fn put_webhook(
    State(state): State<Notifications>,
    user: CurrentUser,
    Json(body): Json<PutWebhook>,
) -> Result<Json<ShownWebhook>> {
    let url = state
        .webhook_rules
        .url(&body.url)
        .map_err(|refusal| Problem::invalid_field("url", refusal.to_string()))?;
    let secret = standard_webhook::secret();
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    let (stored, is_new) = db::put(&mut conn, &user.id, (url.as_str(), &secret), now).await?;
    let once = is_new.then(|| standard_webhook::show(&secret));
    Ok(Json(shown(stored, once)))
}

/// Makes another secret, and shows it; the former one counts no longer.
#[utoipa::path(post, path = "/notifications/webhook/rotate", tag = TAG,
    responses((status = 200, body = ShownWebhook), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn rotate_webhook_secret(
    State(state): State<Notifications>,
    user: CurrentUser,
) -> Result<Json<ShownWebhook>> {
    let secret = standard_webhook::secret();
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    let stored = db::rotate(&mut conn, &user.id, &secret, now).await?;
    let stored = stored.ok_or(Error::WebhookNotFound)?;
    Ok(Json(shown(stored, Some(standard_webhook::show(&secret)))))
}

/// Has the caller's programs called no longer.
#[utoipa::path(delete, path = "/notifications/webhook", tag = TAG,
    responses((status = 200, body = Done), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn delete_webhook(
    State(state): State<Notifications>,
    user: CurrentUser,
) -> Result<Json<Done>> {
    let mut conn = state.platform.db.acquire().await?;
    match db::delete(&mut conn, &user.id).await? {
        true => Ok(Json(Done::new("Webhook deleted"))),
        false => Err(Error::WebhookNotFound),
    }
}

fn shown(stored: Webhook, secret: Option<String>) -> ShownWebhook {
    ShownWebhook {
        url: stored.url,
        secret,
        created_at: stored.created_at,
        updated_at: stored.updated_at,
    }
}
