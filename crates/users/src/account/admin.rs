//! Accounts as admins list them.

use std::collections::HashMap;

use axum::extract::State;
use contracts::UserId;
use garde::Validate;
use platform::Admin;
use platform::http::{Json, Page, PageQuery, Query};
use platform::problem::ProblemBody;
use serde::Deserialize;

use super::db;
use super::view::{Account, Role, Status, User};
use crate::Users;
use crate::error::Result;

/// Which accounts, and how.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct ListUsers {
    /// Which page, from 1.
    #[garde(range(min = 1, max = 1_000_000_000))]
    page: Option<i64>,
    /// How many on a page, 1 to 500; default 10.
    #[garde(range(min = 1))]
    page_size: Option<i64>,
    /// The same as `pageSize`.
    #[garde(range(min = 1))]
    limit: Option<i64>,
    /// Part of user name, mail address or full name.
    #[garde(inner(custom(searchable)))]
    search: Option<String>,
    /// Only these.
    #[garde(skip)]
    status: Option<Status>,
    /// Only those with this role.
    #[garde(inner(custom(searchable)))]
    role_id: Option<String>,
    /// Only those of this tenant.
    #[garde(inner(custom(searchable)))]
    tenant_id: Option<String>,
    /// What they are sorted by; default `createdAt`.
    #[garde(skip)]
    #[param(inline)]
    sort_by: Option<SortBy>,
    /// Default `desc`.
    #[garde(skip)]
    #[param(inline)]
    sort_order: Option<SortOrder>,
}

/// What users are sorted by.
#[derive(Clone, Copy, Debug, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum SortBy {
    CreatedAt,
    UpdatedAt,
    LastLoginAt,
    Username,
    Email,
}

/// The direction of a sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SortOrder {
    #[serde(alias = "ASC")]
    Asc,
    #[serde(alias = "DESC")]
    Desc,
}

/// Which accounts are wanted.
#[derive(Debug)]
pub struct Filter {
    pub search: Option<String>,
    pub status: Option<Status>,
    pub role_id: Option<String>,
    pub tenant_id: Option<String>,
}

/// In which order.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    pub by: SortBy,
    pub descending: bool,
}

impl SortBy {
    /// The name as in the query.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CreatedAt => "createdAt",
            Self::UpdatedAt => "updatedAt",
            Self::LastLoginAt => "lastLoginAt",
            Self::Username => "username",
            Self::Email => "email",
        }
    }
}

/// Lists users, for admins.
#[utoipa::path(get, path = "/users", tag = "users", params(ListUsers), responses(
    (status = 200, body = Page<User>),
    (status = 400, body = ProblemBody),
    (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody),
))]
pub async fn list_users(
    State(state): State<Users>,
    _: Admin,
    Query(query): Query<ListUsers>,
) -> Result<Json<Page<User>>> {
    let page = PageQuery {
        page: query.page,
        page_size: query.page_size,
        limit: query.limit,
        offset: None,
    };
    let filter = Filter {
        search: query.search.map(|text| text.to_lowercase()),
        status: query.status,
        role_id: query.role_id,
        tenant_id: query.tenant_id,
    };
    let order = Order {
        by: query.sort_by.unwrap_or(SortBy::CreatedAt),
        descending: query.sort_order != Some(SortOrder::Asc),
    };
    let mut conn = state.platform.db.acquire().await?;
    let total = db::count(&mut conn, &filter).await?;
    let accounts = db::list(&mut conn, &filter, order, page.slice()).await?;
    let ids: Vec<UserId> = accounts.iter().map(|account| account.id.clone()).collect();
    let roles = db::roles_of(&mut conn, &ids).await?;
    Ok(Json(Page::new(with_roles(accounts, roles), total, page)))
}

/// Puts accounts and their roles together.
pub fn with_roles(accounts: Vec<Account>, roles: Vec<(UserId, Role)>) -> Vec<User> {
    let mut by_user: HashMap<UserId, Vec<Role>> = HashMap::new();
    for (user, role) in roles {
        by_user.entry(user).or_default().push(role);
    }
    accounts
        .into_iter()
        .map(|account| {
            let roles = by_user.remove(&account.id).unwrap_or_default();
            account.shown_to_admins(roles)
        })
        .collect()
}

fn searchable(text: &str, _: &()) -> garde::Result {
    if text.len() <= 200 && super::is_storable(text) {
        Ok(())
    } else {
        Err(garde::Error::new("must be at most 200 characters"))
    }
}
