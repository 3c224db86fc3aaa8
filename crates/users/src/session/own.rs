//! A user's own sessions: seeing them, and ending them.

use axum::extract::State;
use contracts::{SessionId, Timestamp, UserId};
use platform::CurrentUser;
use platform::auth::Proof;
use platform::http::{Json, Path};
use platform::problem::ProblemBody;
use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;

use super::{Which, db, end, enforce};
use crate::Users;
use crate::account::api::Done;
use crate::audit::{self, Entry};
use crate::error::{Error, Result};

/// A session that lives.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OwnSession {
    id: SessionId,
    /// The address of the client at sign-in.
    ip: String,
    browser: String,
    os: String,
    /// Whether this call was made with it.
    is_current: bool,
    /// When its tokens were last issued.
    last_active_at: Timestamp,
    created_at: Timestamp,
}

/// The caller's sessions that live, newest first.
#[utoipa::path(get, path = "/auth/sessions", tag = "auth", responses(
    (status = 200, body = Vec<OwnSession>), (status = 401, body = ProblemBody)))]
pub async fn list_sessions(
    State(state): State<Users>,
    user: CurrentUser,
) -> Result<Json<Vec<OwnSession>>> {
    let mut conn = state.platform.db.acquire().await?;
    let sessions = db::list(&mut conn, &user.id, state.platform.clock.now()).await?;
    let shown = sessions.into_iter().map(|session| OwnSession {
        is_current: Proof::Session(session.id.clone()) == user.proof,
        id: session.id,
        ip: session.address,
        browser: session.browser,
        os: session.os,
        last_active_at: session.last_active_at,
        created_at: session.created_at,
    });
    Ok(Json(shown.collect()))
}

/// Ends one of the caller's sessions.
#[utoipa::path(delete, path = "/auth/sessions/{id}", tag = "auth", params(("id" = SessionId, Path)), responses(
    (status = 200, body = Done),
    (status = 401, body = ProblemBody),
    (status = 404, body = ProblemBody),
    (status = 503, body = ProblemBody),
))]
pub async fn end_session(
    State(state): State<Users>,
    user: CurrentUser,
    Path(id): Path<SessionId>,
) -> Result<Json<Done>> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.now();
    let ended = end(&mut tx, &user.id, Which::One(&id), now).await?;
    write_ended(&mut tx, &user.id, &ended, now).await?;
    tx.commit().await?;
    if ended.is_empty() {
        return Err(Error::NoSession);
    }
    enforce(&state, &ended).await?;
    Ok(Json(Done {
        message: "the session has ended",
    }))
}

/// Ends the caller's sessions but the one in use.
#[utoipa::path(delete, path = "/auth/sessions", tag = "auth", responses(
    (status = 200, body = Done), (status = 401, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn end_other_sessions(
    State(state): State<Users>,
    user: CurrentUser,
) -> Result<Json<Done>> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.now();
    let ended = end(&mut tx, &user.id, Which::AllBut(user.session()?), now).await?;
    write_ended(&mut tx, &user.id, &ended, now).await?;
    tx.commit().await?;
    enforce(&state, &ended).await?;
    Ok(Json(Done {
        message: "the other sessions have ended",
    }))
}

async fn write_ended(
    conn: &mut PgConnection,
    user: &UserId,
    ended: &[SessionId],
    now: Timestamp,
) -> sqlx::Result<()> {
    for session in ended {
        let entry = Entry::done(user, "session.ended", ("session", session.as_str()));
        audit::write(conn, entry, now).await?;
    }
    Ok(())
}
