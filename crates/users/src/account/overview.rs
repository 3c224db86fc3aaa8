//! How many accounts there are, and who some of them are.

use axum::extract::State;
use contracts::{Timestamp, UserId};
use garde::Validate;
use platform::http::{Json, Query};
use platform::problem::ProblemBody;
use platform::{Admin, Caller, Problem};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::db;
use super::view::Status;
use crate::Users;
use crate::error::Result;

/// The most accounts of one call.
const MOST_AT_ONCE: usize = 100;

/// How many accounts there are; those that were deleted do not count.
#[derive(Debug, Serialize, sqlx::FromRow, ToSchema)]
pub struct UserStats {
    total: i64,
    active: i64,
    inactive: i64,
    /// Suspended.
    banned: i64,
}

/// Which accounts are counted.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct CountUsers {
    #[garde(skip)]
    #[param(inline)]
    status: Option<Status>,
    /// Made at or after this moment.
    #[garde(skip)]
    created_after: Option<Timestamp>,
}

/// How many they are.
#[derive(Debug, Serialize, ToSchema)]
pub struct UserCount {
    count: i64,
}

/// Which accounts are named.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct NameUsers {
    /// 1 to 100 ids with commas between them.
    #[garde(length(max = 8_000))]
    ids: String,
}

/// Who a user is.
#[derive(Debug, Serialize, sqlx::FromRow, ToSchema)]
pub struct Named {
    id: UserId,
    username: String,
    email: String,
}

/// Counts users by their status, for admins.
#[utoipa::path(get, path = "/users/stats", tag = "users", responses(
    (status = 200, body = UserStats), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn user_stats(State(state): State<Users>, _: Admin) -> Result<Json<UserStats>> {
    let mut conn = state.platform.db.acquire().await?;
    Ok(Json(db::stats(&mut conn).await?))
}

/// Counts users, for admins.
#[utoipa::path(get, path = "/users/count", tag = "users", params(CountUsers), responses(
    (status = 200, body = UserCount), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn count_users(
    State(state): State<Users>,
    _: Admin,
    Query(query): Query<CountUsers>,
) -> Result<Json<UserCount>> {
    let mut conn = state.platform.db.acquire().await?;
    let count = db::count_since(&mut conn, query.status, query.created_after).await?;
    Ok(Json(UserCount { count }))
}

/// Names users by their ids, for admins and other services; in no order, and without those that there are not.
#[utoipa::path(get, path = "/users/batch", tag = "users", params(NameUsers), responses(
    (status = 200, body = Vec<Named>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn name_users(
    State(state): State<Users>,
    caller: Caller,
    Query(query): Query<NameUsers>,
) -> Result<Json<Vec<Named>>> {
    match &caller {
        Caller::Service(_) => {}
        Caller::User(user) if user.is_admin => {}
        Caller::User(_) => return Err(Problem::forbidden("the role admin is required").into()),
        Caller::Sandbox => return Err(Problem::unauthenticated("sign in as an admin").into()),
    }
    let ids: Vec<UserId> = query
        .ids
        .split(',')
        .filter_map(|id| id.trim().parse().ok())
        .collect();
    if ids.is_empty() || ids.len() > MOST_AT_ONCE {
        return Err(Problem::invalid_field("ids", "must be 1 to 100 ids").into());
    }
    let mut conn = state.platform.db.acquire().await?;
    Ok(Json(db::named(&mut conn, &ids).await?))
}
