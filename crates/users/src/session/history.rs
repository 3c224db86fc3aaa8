//! A user's own sign-ins, as the audit log has them.

use axum::extract::State;
use contracts::{Timestamp, UserId};
use platform::CurrentUser;
use platform::http::{Json, Page, PageQuery, Query, Slice};
use platform::problem::ProblemBody;
use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;

use super::agent::Agent;
use crate::Users;
use crate::error::Result;

/// A sign-in, or somebody's try at one.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SignInTried {
    id: String,
    /// Whether a session was opened.
    success: bool,
    /// Why none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<String>,
    browser: &'static str,
    os: &'static str,
    created_at: Timestamp,
}

/// The caller's sign-ins and failed ones, newest first, for as long as the audit log keeps them.
#[utoipa::path(get, path = "/auth/login-history", tag = "auth", params(PageQuery), responses(
    (status = 200, body = Page<SignInTried>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody)))]
pub async fn login_history(
    State(state): State<Users>,
    user: CurrentUser,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<SignInTried>>> {
    let mut conn = state.platform.db.acquire().await?;
    let (total, entries) = tried(&mut conn, &user.id, page.slice()).await?;
    let entries = entries.into_iter().map(|row| {
        let agent = Agent::of(row.user_agent.as_deref().unwrap_or_default());
        SignInTried {
            id: row.id,
            success: row.success,
            reason: row.reason,
            ip: row.ip_address,
            browser: agent.browser,
            os: agent.os,
            created_at: row.created_at,
        }
    });
    Ok(Json(Page::new(entries.collect(), total, page)))
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    success: bool,
    reason: Option<String>,
    ip_address: Option<String>,
    user_agent: Option<String>,
    created_at: Timestamp,
}

async fn tried(
    conn: &mut PgConnection,
    user: &UserId,
    slice: Slice,
) -> sqlx::Result<(i64, Vec<Row>)> {
    let count = sqlx::query_scalar(
        "-- session::count_tried
        select count(*) from users.audit_log where user_id = $1 and action in ('user.login', 'user.login_failed')",
    );
    let total = count.bind(user).fetch_one(&mut *conn).await?;
    let list = sqlx::query_as(
        "-- session::list_tried
        select id, status = 'success' as success, details->>'reason' as reason, ip_address, user_agent, created_at
        from users.audit_log where user_id = $1 and action in ('user.login', 'user.login_failed')
        order by seq desc limit $2 offset $3",
    );
    let list = list.bind(user).bind(slice.limit).bind(slice.offset);
    Ok((total, list.fetch_all(conn).await?))
}
