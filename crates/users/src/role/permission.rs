//! Permissions: which there are, and which the caller has.

use axum::extract::State;
use platform::auth::api_key;
use platform::http::{Json, Page, PageQuery, Query};
use platform::problem::ProblemBody;
use platform::{Admin, CurrentUser};
use serde::Serialize;
use utoipa::ToSchema;

use super::db;
use crate::Users;
use crate::error::Result;

/// The most permissions of a role.
pub const MOST: usize = 64;

/// One of them.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Permission {
    /// Names it in requests.
    id: String,
    /// The same.
    name: String,
    /// On what.
    resource: String,
    /// `read` or `write`.
    action: String,
    description: String,
}

impl Permission {
    fn new(scope: &str) -> Self {
        let (resource, action) = scope.split_once(':').unwrap_or((scope, ""));
        let does = match action {
            "read" => "See",
            _ => "Change",
        };
        Self {
            id: scope.to_owned(),
            name: scope.to_owned(),
            description: format!("{does} {resource} of all users"),
            resource: resource.to_owned(),
            action: action.to_owned(),
        }
    }
}

/// Whether a role may carry all of these: permissions that there are, or `resource:*`, `*:action` and `*` for several.
pub fn known(permissions: &[String], _: &()) -> garde::Result {
    if permissions.len() > MOST {
        return Err(garde::Error::new("must be at most 64"));
    }
    match permissions.iter().all(|text| api_key::is_scope(text)) {
        true => Ok(()),
        false => Err(garde::Error::new(
            "must be permissions as GET /permissions lists them",
        )),
    }
}

/// Lists the permissions that a role may carry. `resource:*`, `*:action` and `*` stand for several.
#[utoipa::path(get, path = "/permissions", tag = "roles", params(PageQuery), responses(
    (status = 200, body = Page<Permission>), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_permissions(_: Admin, Query(page): Query<PageQuery>) -> Json<Page<Permission>> {
    let all = api_key::known();
    let slice = page.slice();
    let from = usize::try_from(slice.offset).unwrap_or(usize::MAX);
    let most = usize::try_from(slice.limit).unwrap_or_default();
    let shown = all.iter().skip(from).take(most);
    let shown = shown.map(|scope| Permission::new(scope)).collect();
    Json(Page::new(
        shown,
        all.len().try_into().unwrap_or(i64::MAX),
        page,
    ))
}

/// The names of the caller's permissions, in order; those of an admin are all there are.
#[utoipa::path(get, path = "/menu-permissions/my-permissions", tag = "roles", responses(
    (status = 200, body = Vec<String>), (status = 401, body = ProblemBody)))]
pub async fn my_permissions(
    State(state): State<Users>,
    user: CurrentUser,
) -> Result<Json<Vec<String>>> {
    own(&state, &user).await.map(Json)
}

/// What the caller may see of all users, for the menu of a console: the resources of the permissions.
#[utoipa::path(get, path = "/menu-permissions/my-menus", tag = "roles", responses(
    (status = 200, body = Vec<String>), (status = 401, body = ProblemBody)))]
pub async fn my_menus(State(state): State<Users>, user: CurrentUser) -> Result<Json<Vec<String>>> {
    let permissions = own(&state, &user).await?;
    let resources = permissions.iter().filter_map(|name| name.split(':').next());
    let mut menus: Vec<String> = resources.map(str::to_owned).collect();
    menus.dedup();
    Ok(Json(menus))
}

async fn own(state: &Users, user: &CurrentUser) -> Result<Vec<String>> {
    if user.is_admin {
        return Ok(api_key::known().into_iter().collect());
    }
    let mut conn = state.platform.db.acquire().await?;
    Ok(db::permissions_of(&mut conn, &user.id).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_carries_what_some_route_wants_and_nothing_else() {
        let fits = |text: &str| known(&[text.to_owned()], &()).is_ok();

        assert!(fits("devices:read") && fits("devices:*") && fits("*:read") && fits("*"));
        assert!(!fits("users:write") && !fits("roles:write") && !fits("device:read") && !fits(""));
        assert!(known(&vec!["*".to_owned(); MOST + 1], &()).is_err());
    }
}
