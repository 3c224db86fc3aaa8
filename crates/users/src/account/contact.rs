//! Where users are reached, for the services that write to them.

use axum::extract::State;
use contracts::UserId;
use platform::Problem;
use platform::auth::Caller;
use platform::http::{Json, Path};
use serde::Serialize;

use super::db;
use super::view::Status;
use crate::Users;
use crate::error::Result;

/// The addresses of a user.
#[derive(Debug, Serialize)]
pub struct Contact {
    email: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    phone: Option<String>,
}

/// Gives another service the addresses of a user.
///
/// # Errors
/// 401 for who is no service, 404 where there is no such user, or one whose account is not active.
pub async fn give_contact(
    State(state): State<Users>,
    caller: Caller,
    Path(id): Path<UserId>,
) -> Result<Json<Contact>> {
    if !matches!(caller, Caller::Service(_)) {
        return Err(Problem::unauthenticated("the credential of a service is required").into());
    }
    let account = db::find(&mut *state.platform.db.acquire().await?, &id).await?;
    let account = account.filter(|account| account.status == Status::Active);
    let account = account.ok_or_else(|| Problem::not_found("user"))?;
    Ok(Json(Contact {
        email: account.email,
        phone: account.phone,
    }))
}
