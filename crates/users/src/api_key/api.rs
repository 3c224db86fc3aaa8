//! Making API keys and their secrets, and seeing them.

use axum::body::to_bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use contracts::{ApiKeyId, Timestamp, UserId};
use garde::Validate;
use http::StatusCode;
use platform::auth::ApiKeySecret;
use platform::http::{Json, Page, PageQuery, Path, Query, SliceQuery};
use platform::idempotency::{Idempotent, Turn};
use platform::problem::ProblemBody;
use platform::{CurrentUser, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sqlx::PgConnection;
use tracing::info;
use utoipa::ToSchema;

use super::db::{self, Filter, New};
use super::view::{ApiKey, ApiKeyStatistics, NewApiKey, Status};
use super::{MOST, changeable, rotatable};
use crate::Users;
use crate::account;
use crate::audit::{self, Entry};
use crate::error::{Error, Result};

/// More than any stored reply has.
const LONGEST_REPLY: usize = 256 * 1024;

/// A new key.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateApiKey {
    /// 1 to 100 characters.
    #[garde(custom(super::name))]
    name: String,
    /// Each `resource:action`, once; `*` stands for all resources, all actions or both. The OpenAPI document names the scope
    /// of each route, and one that no route wants is refused.
    #[garde(custom(|scopes: &Vec<String>, context: &()| super::scopes(scopes, context)))]
    scopes: Vec<String>,
    /// From when on it is refused; never where it is absent.
    #[garde(skip)]
    expires_at: Option<Timestamp>,
    #[garde(inner(length(chars, max = 500), custom(account::storable)))]
    description: Option<String>,
    #[garde(inner(custom(account::preferences)))]
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
}

/// A request that says nothing.
#[derive(Debug, Deserialize, Validate, ToSchema)]
pub struct Nothing {}

/// Which keys, and how.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct ListApiKeys {
    /// Which page, from 1.
    #[garde(range(min = 1, max = 1_000_000_000))]
    page: Option<i64>,
    /// How many on a page, 1 to 500; default 10.
    #[garde(range(min = 1))]
    page_size: Option<i64>,
    /// The same as `pageSize`.
    #[garde(range(min = 1))]
    limit: Option<i64>,
    /// Only these.
    #[garde(skip)]
    #[param(inline)]
    status: Option<Status>,
}

/// Which keys of a user.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListApiKeysOfUser {
    /// How many, 1 to 500; default 100.
    #[garde(range(min = 1))]
    limit: Option<i64>,
    /// How many to leave out first; default 0.
    #[garde(range(min = 0))]
    offset: Option<i64>,
    /// Only these.
    #[garde(skip)]
    #[param(inline)]
    status: Option<Status>,
}

/// What is kept of a reply with a secret, for whoever asks again with the same `Idempotency-Key`.
#[derive(Serialize, Deserialize)]
struct Kept {
    shown: ApiKey,
    /// What the secret follows from.
    nonce: String,
}

/// Makes a key of the caller. The secret is shown here and never again.
#[utoipa::path(post, path = "/api-keys", tag = "api-keys", request_body = CreateApiKey, responses(
    (status = 201, body = NewApiKey),
    (status = 400, body = ProblemBody),
    (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody),
    (status = 409, body = ProblemBody),
))]
pub async fn create_api_key(
    State(state): State<Users>,
    user: CurrentUser,
    Idempotent { body, key }: Idempotent<CreateApiKey>,
) -> Result<Response> {
    user.session()?;
    let now = state.platform.clock.now();
    if body.expires_at.is_some_and(|expires_at| expires_at <= now) {
        return Err(Problem::invalid_field("expiresAt", "must be in the future").into());
    }
    let new = New {
        id: ApiKeyId::new(),
        user_id: user.id.clone(),
        name: body.name.trim().to_owned(),
        description: body.description,
        metadata: body.metadata.map(Value::Object),
        scopes: body.scopes,
        expires_at: body.expires_at,
    };
    let (nonce, secret) = make_secret(&state);
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, user.id.as_str()).await? {
        Turn::First(turn) => turn,
        Turn::Replay(reply) => return show_again(&state, &mut tx, reply).await,
    };
    if !db::lock_user(&mut tx, &user.id).await? {
        return Err(Error::NoUser);
    }
    let used = db::count_of(&mut tx, &user.id).await?;
    if used >= MOST {
        return Err(Error::TooManyApiKeys { used });
    }
    db::insert(&mut tx, &new, (secret.prefix(), secret.hash()), now).await?;
    let shown = db::find(&mut tx, &new.id, now).await?;
    let kept = Kept {
        shown: shown.ok_or(Error::NoApiKey)?,
        nonce: hex::encode(nonce),
    };
    let entry = Entry::done(&user.id, "api_key.created", ("api_key", new.id.as_str()));
    let entry = entry.with(json!({ "name": new.name, "scopes": new.scopes }));
    audit::write(&mut tx, entry, now).await?;
    turn.reply(&mut tx, StatusCode::CREATED, &kept).await?;
    tx.commit().await?;
    let prefix = secret.prefix();
    info!(user.id = %user.id, api_key.id = %new.id, "made API key {prefix}… of {}", user.id);
    Ok((StatusCode::CREATED, Json(kept.with(&secret))).into_response())
}

/// Gives a key of the caller another secret, shown here and never again; the one of before is refused within a second.
#[utoipa::path(post, path = "/api-keys/{id}/rotate", tag = "api-keys", params(("id" = ApiKeyId, Path)), responses(
    (status = 200, body = NewApiKey),
    (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody),
    (status = 404, body = ProblemBody),
    (status = 409, body = ProblemBody),
))]
pub async fn rotate_api_key(
    State(state): State<Users>,
    user: CurrentUser,
    Path(id): Path<ApiKeyId>,
    Idempotent {
        body: Nothing {},
        key,
    }: Idempotent<Nothing>,
) -> Result<Response> {
    user.session()?;
    let now = state.platform.clock.now();
    let (nonce, secret) = make_secret(&state);
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, user.id.as_str()).await? {
        Turn::First(turn) => turn,
        Turn::Replay(reply) => return show_again(&state, &mut tx, reply).await,
    };
    let held = changeable(db::lock(&mut tx, &id, now).await?, &user)?;
    rotatable(&held, &user)?;
    db::replace_secret(&mut tx, &id, (secret.prefix(), secret.hash()), now).await?;
    let shown = db::find(&mut tx, &id, now).await?;
    let kept = Kept {
        shown: shown.ok_or(Error::NoApiKey)?,
        nonce: hex::encode(nonce),
    };
    let entry = Entry::done(&user.id, "api_key.rotated", ("api_key", id.as_str()));
    audit::write(&mut tx, entry, now).await?;
    turn.reply(&mut tx, StatusCode::OK, &kept).await?;
    tx.commit().await?;
    info!(user.id = %user.id, api_key.id = %id, "gave API key {id} another secret");
    Ok(Json(kept.with(&secret)).into_response())
}

/// The caller's keys, or those of all users for admins, newest first.
#[utoipa::path(get, path = "/api-keys", tag = "api-keys", params(ListApiKeys), responses(
    (status = 200, body = Page<ApiKey>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody)))]
pub async fn list_api_keys(
    State(state): State<Users>,
    user: CurrentUser,
    Query(query): Query<ListApiKeys>,
) -> Result<Json<Page<ApiKey>>> {
    let page = PageQuery {
        page: query.page,
        page_size: query.page_size,
        limit: query.limit,
        offset: None,
    };
    let filter = Filter {
        user_id: (!user.is_admin).then_some(user.id),
        status: query.status,
    };
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    let total = db::count(&mut conn, &filter, now).await?;
    let keys = db::list(&mut conn, &filter, page.slice(), now).await?;
    Ok(Json(Page::new(keys, total, page)))
}

/// The keys of a user, newest first.
#[utoipa::path(get, path = "/api-keys/user/{userId}", tag = "api-keys",
    params(("userId" = UserId, Path), ListApiKeysOfUser), responses(
    (status = 200, body = Vec<ApiKey>),
    (status = 400, body = ProblemBody),
    (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody),
))]
pub async fn list_api_keys_of_user(
    State(state): State<Users>,
    user: CurrentUser,
    Path(user_id): Path<UserId>,
    Query(query): Query<ListApiKeysOfUser>,
) -> Result<Json<Vec<ApiKey>>> {
    let filter = Filter {
        user_id: Some(user.acting_for(Some(user_id))?),
        status: query.status,
    };
    let slice = SliceQuery {
        limit: query.limit,
        offset: query.offset,
    };
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.now();
    let keys = db::list(&mut conn, &filter, slice.slice(), now).await?;
    Ok(Json(keys))
}

/// How many keys a user has, and how much they were used.
#[utoipa::path(get, path = "/api-keys/statistics/{userId}", tag = "api-keys", params(("userId" = UserId, Path)), responses(
    (status = 200, body = ApiKeyStatistics), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn api_key_statistics(
    State(state): State<Users>,
    user: CurrentUser,
    Path(user_id): Path<UserId>,
) -> Result<Json<ApiKeyStatistics>> {
    let user_id = user.acting_for(Some(user_id))?;
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.now();
    Ok(Json(db::statistics(&mut conn, &user_id, now).await?))
}

/// A key.
#[utoipa::path(get, path = "/api-keys/{id}", tag = "api-keys", params(("id" = ApiKeyId, Path)), responses(
    (status = 200, body = ApiKey), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn find_api_key(
    State(state): State<Users>,
    user: CurrentUser,
    Path(id): Path<ApiKeyId>,
) -> Result<Json<ApiKey>> {
    let mut conn = state.platform.db.acquire().await?;
    let key = db::find(&mut conn, &id, state.platform.clock.now()).await?;
    let key = key.filter(|key| user.may_see(&key.user_id));
    Ok(Json(key.ok_or(Error::NoApiKey)?))
}

fn make_secret(state: &Users) -> ([u8; 32], ApiKeySecret) {
    let nonce = rand::random();
    (nonce, state.platform.auth.api_key_secret(&nonce))
}

/// The first reply once more, with the secret that it showed, where that still opens something.
async fn show_again(state: &Users, conn: &mut PgConnection, reply: Response) -> Result<Response> {
    let (mut parts, body) = reply.into_parts();
    let bytes = to_bytes(body, LONGEST_REPLY).await;
    let kept = bytes
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok());
    let kept = kept.ok_or_else(Problem::internal)?;
    let mut nonce = [0; 32];
    hex::decode_to_slice(&kept.nonce, &mut nonce).map_err(|_| Problem::internal())?;
    let secret = state.platform.auth.api_key_secret(&nonce);
    if !db::is_secret(conn, &kept.shown.id, secret.hash()).await? {
        return Err(Error::ApiKeyChanged);
    }
    let again = Json(kept.with(&secret)).into_response();
    parts.headers.extend(again.headers().clone());
    Ok(Response::from_parts(parts, again.into_body()))
}

impl Kept {
    fn with(self, secret: &ApiKeySecret) -> NewApiKey {
        NewApiKey {
            shown: self.shown,
            key: secret.expose().to_owned(),
        }
    }
}
