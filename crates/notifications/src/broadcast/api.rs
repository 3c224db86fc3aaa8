//! The routes of broadcasts, for admins alone.

use axum::extract::State;
use axum::response::Response;
use contracts::{BroadcastId, UserId};
use garde::Validate;
use http::StatusCode;
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::idempotency::{Idempotent, Turn};
use platform::problem::ProblemBody;
use platform::{Admin, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::ShownBroadcast;
use super::db::{self, NewBroadcast};
use crate::accounts::Census;
use crate::notification::api::check_data;
use crate::notification::{Channel, Kind, Priority};
use crate::{Error, Notifications, Result};

const TAG: &str = "notification-broadcasts";

/// What many users are told: all, those with a role, or those who are named.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SendBroadcast {
    /// The heading.
    #[garde(length(chars, min = 1, max = 200))]
    title: String,
    /// The text.
    #[garde(length(chars, min = 1, max = 1000))]
    message: String,
    /// Facts for programs, at most 16 KiB.
    #[garde(skip)]
    #[schema(value_type = Option<Object>)]
    data: Option<Map<String, Value>>,
    /// What it is about; `system` where it is not said.
    #[garde(skip)]
    #[serde(rename = "type")]
    kind: Option<Kind>,
    /// How much it matters; `normal` where it is not said.
    #[garde(skip)]
    priority: Option<Priority>,
    /// The ways to the users; where none is named, those that each chose, or `websocket`.
    #[garde(inner(length(min = 1, max = 4)))]
    channels: Option<Vec<Channel>>,
    /// Only those with this role.
    #[garde(inner(length(chars, min = 1, max = 100)))]
    role: Option<String>,
    /// Only these, 10 000 at most.
    #[garde(inner(length(min = 1, max = 10_000)))]
    user_ids: Option<Vec<UserId>>,
}

/// What was begun.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Begun {
    message: &'static str,
    /// How many there are to tell.
    recipients: i64,
    /// Names the broadcast.
    id: BroadcastId,
}

/// Begins to tell many users; replicas go on with it until everybody was told once.
#[utoipa::path(post, path = "/notifications/broadcast", tag = TAG, request_body = SendBroadcast, params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, body = Begun), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn send_broadcast(
    State(state): State<Notifications>,
    Admin(admin): Admin,
    Idempotent { body, key }: Idempotent<SendBroadcast>,
) -> Result<Response> {
    check_data(body.data.as_ref())?;
    let user_ids = body.user_ids.map(once_each);
    let census = match (&user_ids, &body.role) {
        (Some(_), Some(_)) => {
            return Err(Problem::invalid_field("role", "is not named beside userIds").into());
        }
        (Some(users), None) => Census {
            count: users.len() as i64,
            last_seq: users.len() as i64,
        },
        (None, role) => state.accounts.census(role.as_deref()).await?,
    };
    let new = NewBroadcast {
        kind: body.kind.unwrap_or_default(),
        title: body.title,
        message: body.message,
        priority: body.priority.unwrap_or_default(),
        channels: body.channels,
        data: body.data,
        role: body.role,
        user_ids,
        upto: census.last_seq,
        recipients: census.count,
    };
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, &format!("user:{}", admin.id)).await? {
        Turn::First(turn) => turn,
        Turn::Replay(reply) => return Ok(reply),
    };
    let broadcast = db::insert(&mut tx, new, &admin.id, state.platform.clock.now()).await?;
    let begun = Begun {
        message: "Broadcast begun",
        recipients: broadcast.recipients,
        id: broadcast.id,
    };
    let reply = turn.reply(&mut tx, StatusCode::OK, &begun).await?;
    tx.commit().await?;
    Ok(reply)
}

/// Lists broadcasts, newest first.
#[utoipa::path(get, path = "/notifications/broadcasts", tag = TAG, params(PageQuery),
    responses((status = 200, body = Page<ShownBroadcast>), (status = 403, body = ProblemBody)))]
pub async fn list_broadcasts(
    State(state): State<Notifications>,
    _: Admin,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<ShownBroadcast>>> {
    let mut conn = state.platform.db.acquire().await?;
    let broadcasts = db::list(&mut conn, page.slice()).await?;
    let broadcasts = broadcasts.into_iter().map(ShownBroadcast::from).collect();
    let total = db::count(&mut conn).await?;
    Ok(Json(Page::new(broadcasts, total, page)))
}

/// Shows how far a broadcast has come.
#[utoipa::path(get, path = "/notifications/broadcasts/{id}", tag = TAG, params(("id" = String, Path)),
    responses((status = 200, body = ShownBroadcast), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn find_broadcast(
    State(state): State<Notifications>,
    _: Admin,
    Path(id): Path<BroadcastId>,
) -> Result<Json<ShownBroadcast>> {
    let mut conn = state.platform.db.acquire().await?;
    let found = db::find(&mut conn, &id).await?;
    Ok(Json(found.ok_or(Error::BroadcastNotFound)?.into()))
}

/// Tells nobody else.
#[utoipa::path(post, path = "/notifications/broadcasts/{id}/cancel", tag = TAG, params(("id" = String, Path)),
    responses((status = 200, body = ShownBroadcast), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn cancel_broadcast(
    State(state): State<Notifications>,
    _: Admin,
    Path(id): Path<BroadcastId>,
) -> Result<Json<ShownBroadcast>> {
    let mut tx = state.platform.db.begin().await?;
    db::find(&mut tx, &id)
        .await?
        .ok_or(Error::BroadcastNotFound)?;
    let cancelled = db::cancel(&mut tx, &id, state.platform.clock.now()).await?;
    let cancelled = cancelled.ok_or(Error::BroadcastOver)?;
    tx.commit().await?;
    Ok(Json(cancelled.into()))
}

fn once_each(mut users: Vec<UserId>) -> Vec<UserId> {
    users.sort_unstable();
    users.dedup();
    users
}
