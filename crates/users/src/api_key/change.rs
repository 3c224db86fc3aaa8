//! Changing API keys: what they are called and may be used for, switching them, and their end. Whoever verifies keys hears of
//! it within a second.

use axum::extract::State;
use axum::response::Response;
use contracts::{ApiKeyId, Timestamp};
use garde::Validate;
use http::StatusCode;
use platform::CurrentUser;
use platform::http::{Json, Path};
use platform::idempotency::{Idempotent, Turn};
use platform::problem::ProblemBody;
use serde::Deserialize;
use serde_json::json;
use sqlx::PgConnection;
use tracing::info;
use utoipa::ToSchema;

use super::api::Nothing;
use super::db::{self, Change};
use super::view::{ApiKey, Status};
use super::{changeable, toggled};
use crate::Users;
use crate::account::api::Done;
use crate::audit::{self, Entry};
use crate::error::{Error, Result};

/// Whether a key may be used for now.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    Active,
    Inactive,
}

/// A change of a key; what is absent stays.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateApiKey {
    #[garde(inner(custom(super::name)))]
    name: Option<String>,
    /// In place of those it has.
    #[garde(inner(custom(|scopes: &Vec<String>, context: &()| super::scopes(scopes, context))))]
    scopes: Option<Vec<String>>,
    #[garde(skip)]
    status: Option<Switch>,
}

/// Changes a key.
#[utoipa::path(put, path = "/api-keys/{id}", tag = "api-keys", params(("id" = ApiKeyId, Path)), request_body = UpdateApiKey,
    responses(
    (status = 200, body = ApiKey),
    (status = 400, body = ProblemBody),
    (status = 401, body = ProblemBody),
    (status = 404, body = ProblemBody),
    (status = 409, body = ProblemBody),
))]
pub async fn replace_api_key(
    state: State<Users>,
    user: CurrentUser,
    id: Path<ApiKeyId>,
    body: Json<UpdateApiKey>,
) -> Result<Json<ApiKey>> {
    update_api_key(state, user, id, body).await
}

/// Changes a key.
#[utoipa::path(patch, path = "/api-keys/{id}", tag = "api-keys", params(("id" = ApiKeyId, Path)), request_body = UpdateApiKey,
    responses(
    (status = 200, body = ApiKey),
    (status = 400, body = ProblemBody),
    (status = 401, body = ProblemBody),
    (status = 404, body = ProblemBody),
    (status = 409, body = ProblemBody),
))]
pub async fn update_api_key(
    State(state): State<Users>,
    user: CurrentUser,
    Path(id): Path<ApiKeyId>,
    Json(body): Json<UpdateApiKey>,
) -> Result<Json<ApiKey>> {
    let change = Change {
        name: body.name.map(|name| name.trim().to_owned()),
        scopes: body.scopes,
        status: body.status.map(|switch| match switch {
            Switch::Active => Status::Active,
            Switch::Inactive => Status::Inactive,
        }),
    };
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    changeable(db::lock(&mut tx, &id, now).await?, &user)?;
    let key = changed(&mut tx, &id, &change, now).await?;
    let changes = json!({ "name": change.name, "scopes": change.scopes, "status": change.status });
    let entry = Entry::done(&user.id, "api_key.updated", ("api_key", id.as_str()));
    audit::write(&mut tx, entry.changing(changes), now).await?;
    tx.commit().await?;
    info!(user.id = %user.id, api_key.id = %id, "changed API key {id}");
    Ok(Json(key))
}

/// Switches a key off, or on again.
#[utoipa::path(post, path = "/api-keys/{id}/toggle", tag = "api-keys", params(("id" = ApiKeyId, Path)), responses(
    (status = 200, body = ApiKey),
    (status = 401, body = ProblemBody),
    (status = 404, body = ProblemBody),
    (status = 409, body = ProblemBody),
))]
pub async fn toggle_api_key(
    State(state): State<Users>,
    user: CurrentUser,
    Path(id): Path<ApiKeyId>,
    Idempotent {
        body: Nothing {},
        key,
    }: Idempotent<Nothing>,
) -> Result<Response> {
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, user.id.as_str()).await? {
        Turn::First(turn) => turn,
        Turn::Replay(reply) => return Ok(reply),
    };
    let held = changeable(db::lock(&mut tx, &id, now).await?, &user)?;
    let status = toggled(held.status)?;
    let switched = changed(&mut tx, &id, &Change::to(status), now).await?;
    let entry = Entry::done(&user.id, "api_key.updated", ("api_key", id.as_str()));
    let entry = entry.changing(json!({ "status": status }));
    audit::write(&mut tx, entry, now).await?;
    let reply = turn.reply(&mut tx, StatusCode::OK, &switched).await?;
    tx.commit().await?;
    info!(user.id = %user.id, api_key.id = %id, "switched API key {id}");
    Ok(reply)
}

/// Switches a key off for good.
#[utoipa::path(post, path = "/api-keys/{id}/revoke", tag = "api-keys", params(("id" = ApiKeyId, Path)), responses(
    (status = 200, body = ApiKey), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn revoke_api_key(
    State(state): State<Users>,
    user: CurrentUser,
    Path(id): Path<ApiKeyId>,
) -> Result<Json<ApiKey>> {
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    match changeable(db::lock(&mut tx, &id, now).await?, &user) {
        // Whoever asks twice has what he wants.
        Ok(_) | Err(Error::ApiKeyRevoked) => {}
        Err(error) => return Err(error),
    }
    let key = changed(&mut tx, &id, &Change::to(Status::Revoked), now).await?;
    let entry = Entry::done(&user.id, "api_key.revoked", ("api_key", id.as_str()));
    audit::write(&mut tx, entry, now).await?;
    tx.commit().await?;
    info!(user.id = %user.id, api_key.id = %id, "revoked API key {id}");
    Ok(Json(key))
}

/// Deletes a key.
#[utoipa::path(delete, path = "/api-keys/{id}", tag = "api-keys", params(("id" = ApiKeyId, Path)), responses(
    (status = 200, body = Done), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn delete_api_key(
    State(state): State<Users>,
    user: CurrentUser,
    Path(id): Path<ApiKeyId>,
) -> Result<Json<Done>> {
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    match changeable(db::lock(&mut tx, &id, now).await?, &user) {
        Ok(_) | Err(Error::ApiKeyRevoked) => db::delete(&mut tx, &id, now).await?,
        Err(error) => return Err(error),
    }
    let entry = Entry::done(&user.id, "api_key.deleted", ("api_key", id.as_str()));
    audit::write(&mut tx, entry, now).await?;
    tx.commit().await?;
    info!(user.id = %user.id, api_key.id = %id, "deleted API key {id}");
    Ok(Json(Done {
        message: "the API key is deleted",
    }))
}

/// Changes a key that is locked, and shows it.
async fn changed(
    conn: &mut PgConnection,
    id: &ApiKeyId,
    change: &Change,
    now: Timestamp,
) -> Result<ApiKey> {
    db::update(conn, id, change, now).await?;
    db::find(conn, id, now).await?.ok_or(Error::NoApiKey)
}

impl Change {
    fn to(status: Status) -> Self {
        Self {
            name: None,
            scopes: None,
            status: Some(status),
        }
    }
}
