//! Where users are reached, and who they are, for the services that write to them. Each call must come from a service: the
//! word of anybody else counts nothing.

use axum::extract::State;
use contracts::UserId;
use garde::Validate;
use platform::Problem;
use platform::auth::Caller;
use platform::http::{Json, Path, Query};
use serde::{Deserialize, Serialize};

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

/// Which accounts are counted.
#[derive(Debug, Deserialize, Validate)]
pub struct CountAccounts {
    /// Only those with this role.
    #[garde(inner(length(chars, max = 100)))]
    role: Option<String>,
}

/// Which accounts are listed.
#[derive(Debug, Deserialize, Validate)]
pub struct ListAccounts {
    /// Only those with this role.
    #[garde(inner(length(chars, max = 100)))]
    role: Option<String>,
    /// After this number …
    #[garde(range(min = 0))]
    after: i64,
    /// … up to this one.
    #[garde(range(min = 0))]
    upto: i64,
    #[garde(range(min = 1, max = 1_000))]
    limit: i64,
}

/// Gives the addresses of a user.
///
/// # Errors
/// 401 for who is no service, 404 where there is no such user, or one whose account is not active.
pub async fn give_contact(
    State(state): State<Users>,
    caller: Caller,
    Path(id): Path<UserId>,
) -> Result<Json<Contact>> {
    want_service(&caller)?;
    let account = db::find(&mut *state.platform.db.acquire().await?, &id).await?;
    let account = account.filter(|account| account.status == Status::Active);
    let account = account.ok_or_else(|| Problem::not_found("user"))?;
    Ok(Json(Contact {
        email: account.email,
        phone: account.phone,
    }))
}

/// Counts active accounts, and gives the number of the newest.
///
/// # Errors
/// 401 for who is no service.
pub async fn count_accounts(
    State(state): State<Users>,
    caller: Caller,
    Query(query): Query<CountAccounts>,
) -> Result<Json<db::Census>> {
    want_service(&caller)?;
    let mut conn = state.platform.db.acquire().await?;
    Ok(Json(db::census(&mut conn, query.role.as_deref()).await?))
}

/// Lists active accounts with their numbers.
///
/// # Errors
/// 401 for who is no service.
pub async fn list_accounts(
    State(state): State<Users>,
    caller: Caller,
    Query(query): Query<ListAccounts>,
) -> Result<Json<Vec<db::Numbered>>> {
    want_service(&caller)?;
    let mut conn = state.platform.db.acquire().await?;
    let range = (query.after, query.upto);
    let accounts = db::numbered(&mut conn, query.role.as_deref(), range, query.limit).await?;
    Ok(Json(accounts))
}

fn want_service(caller: &Caller) -> std::result::Result<(), Problem> {
    match caller {
        Caller::Service(_) => Ok(()),
        _ => Err(Problem::unauthenticated(
            "the credential of a service is required",
        )),
    }
}
