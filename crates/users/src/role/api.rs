//! Roles, as admins make and change them.

use axum::extract::State;
use axum::response::Response;
use garde::Validate;
use http::StatusCode;
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::idempotency::{Idempotent, Turn};
use platform::problem::ProblemBody;
use platform::{Admin, Problem};
use serde::Deserialize;
use serde_json::json;
use tracing::info;
use utoipa::ToSchema;

use super::db::{self, Change, Stored};
use super::permission;
use crate::Users;
use crate::account::api::Done;
use crate::account::rule;
use crate::account::view::Role;
use crate::audit::{self, Entry};
use crate::error::{Error, Result};

/// The one role that comes with the system and whose permissions may change: the others pass every check, or none.
const SUPPORT: &str = "support";

/// A new role.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateRole {
    /// 2 to 50 characters; tokens carry it.
    #[garde(custom(self::name))]
    name: String,
    #[garde(inner(custom(self::description)))]
    description: Option<String>,
    /// At most 64.
    #[garde(inner(custom(|ids: &Vec<String>, context: &()| permission::known(ids, context))))]
    permission_ids: Option<Vec<String>>,
}

/// A change of a role; what is absent stays.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateRole {
    /// Of a role that somebody has, the name stays: tokens carry it.
    #[garde(inner(custom(self::name)))]
    name: Option<String>,
    #[garde(inner(custom(self::description)))]
    description: Option<String>,
    /// In place of those it has.
    #[garde(inner(custom(|ids: &Vec<String>, context: &()| permission::known(ids, context))))]
    permission_ids: Option<Vec<String>>,
}

/// Permissions to be given or taken.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PermissionIds {
    #[garde(custom(|ids: &Vec<String>, context: &()| permission::known(ids, context)))]
    permission_ids: Vec<String>,
}

/// Lists roles.
#[utoipa::path(get, path = "/roles", tag = "roles", params(PageQuery), responses(
    (status = 200, body = Page<Role>), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_roles(
    State(state): State<Users>,
    _: Admin,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Role>>> {
    let mut conn = state.platform.db.acquire().await?;
    let total = db::count(&mut conn).await?;
    let roles = db::list(&mut conn, page.slice()).await?;
    Ok(Json(Page::new(roles, total, page)))
}

/// Makes a role.
#[utoipa::path(post, path = "/roles", tag = "roles", request_body = CreateRole, params(("Idempotency-Key" = Option<String>, Header)), responses(
    (status = 201, body = Role),
    (status = 400, body = ProblemBody),
    (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody),
    (status = 409, body = ProblemBody, description = "The name is taken"),
))]
pub async fn create_role(
    State(state): State<Users>,
    Admin(user): Admin,
    Idempotent { body, key }: Idempotent<CreateRole>,
) -> Result<Response> {
    let now = state.platform.clock.now();
    let role = Role {
        id: contracts::TaskId::new().to_string(),
        name: body.name.trim().to_owned(),
        description: body.description,
        permissions: sorted(body.permission_ids.unwrap_or_default()),
        created_at: now,
        updated_at: now,
    };
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, user.id.as_str()).await? {
        Turn::First(turn) => turn,
        Turn::Replay(reply) => return Ok(reply),
    };
    db::insert(&mut tx, &role).await.map_err(taken)?;
    let entry = Entry::done(&user.id, "role.created", ("role", &role.id));
    let entry = entry.with(json!({ "name": role.name, "permissions": role.permissions }));
    audit::write(&mut tx, entry, now).await?;
    let reply = turn.reply(&mut tx, StatusCode::CREATED, &role).await?;
    tx.commit().await?;
    info!(user.id = %user.id, "made role {} ({})", role.name, role.id);
    Ok(reply)
}

/// Shows a role.
#[utoipa::path(get, path = "/roles/{id}", tag = "roles", params(("id" = String, Path)), responses(
    (status = 200, body = Role), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn find_role(
    State(state): State<Users>,
    _: Admin,
    Path(id): Path<String>,
) -> Result<Json<Role>> {
    let mut conn = state.platform.db.acquire().await?;
    let role = db::find(&mut conn, &id).await?;
    Ok(Json(role.ok_or_else(|| Problem::not_found("role"))?))
}

/// Changes a role. What it permits counts everywhere within a second.
#[utoipa::path(patch, path = "/roles/{id}", tag = "roles", params(("id" = String, Path)), request_body = UpdateRole, responses(
    (status = 200, body = Role),
    (status = 400, body = ProblemBody),
    (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody),
    (status = 404, body = ProblemBody),
    (status = 409, body = ProblemBody, description = "The name is taken or in use, or the role came with the system"),
))]
pub async fn update_role(
    State(state): State<Users>,
    Admin(user): Admin,
    Path(id): Path<String>,
    Json(body): Json<UpdateRole>,
) -> Result<Json<Role>> {
    let change = Change {
        name: body.name.map(|name| name.trim().to_owned()),
        description: body.description,
        permissions: body.permission_ids.map(sorted),
    };
    changed(&state, &user.id, &id, |_| change).await
}

/// Gives a role further permissions.
#[utoipa::path(post, path = "/roles/{id}/permissions", tag = "roles", params(("id" = String, Path)), request_body = PermissionIds, responses(
    (status = 200, body = Role),
    (status = 400, body = ProblemBody),
    (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody),
    (status = 404, body = ProblemBody),
    (status = 409, body = ProblemBody),
))]
pub async fn give_permissions(
    State(state): State<Users>,
    Admin(user): Admin,
    Path(id): Path<String>,
    Json(body): Json<PermissionIds>,
) -> Result<Json<Role>> {
    let more = |role: &Role| {
        let all = role.permissions.iter().cloned().chain(body.permission_ids);
        permissions(all.collect())
    };
    changed(&state, &user.id, &id, more).await
}

/// Takes permissions from a role; those that it does not have are none.
#[utoipa::path(delete, path = "/roles/{id}/permissions", tag = "roles", params(("id" = String, Path)), request_body = PermissionIds, responses(
    (status = 200, body = Role),
    (status = 400, body = ProblemBody),
    (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody),
    (status = 404, body = ProblemBody),
    (status = 409, body = ProblemBody),
))]
pub async fn take_permissions(
    State(state): State<Users>,
    Admin(user): Admin,
    Path(id): Path<String>,
    Json(body): Json<PermissionIds>,
) -> Result<Json<Role>> {
    let fewer = |role: &Role| {
        let mut rest = role.permissions.clone();
        rest.retain(|name| !body.permission_ids.contains(name));
        permissions(rest)
    };
    changed(&state, &user.id, &id, fewer).await
}

/// Deletes a role that nobody has.
#[utoipa::path(delete, path = "/roles/{id}", tag = "roles", params(("id" = String, Path)), responses(
    (status = 200, body = Done),
    (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody),
    (status = 404, body = ProblemBody),
    (status = 409, body = ProblemBody, description = "Somebody has it, or it came with the system"),
))]
pub async fn delete_role(
    State(state): State<Users>,
    Admin(user): Admin,
    Path(id): Path<String>,
) -> Result<Json<Done>> {
    let mut tx = state.platform.db.begin().await?;
    let Stored { role, built_in } = locked(&mut tx, &id).await?;
    if built_in {
        return Err(Error::RoleBuiltIn { name: role.name });
    }
    // Whoever gives it to somebody now waits, and finds it gone.
    if db::is_held(&mut tx, &id).await? {
        return Err(Error::RoleHeld { name: role.name });
    }
    db::delete(&mut tx, &id).await?;
    let entry = Entry::done(&user.id, "role.deleted", ("role", &id));
    let entry = entry.with(json!({ "name": role.name }));
    audit::write(&mut tx, entry, state.platform.clock.now()).await?;
    tx.commit().await?;
    info!(user.id = %user.id, "deleted role {} ({id})", role.name);
    Ok(Json(Done {
        message: "the role is deleted",
    }))
}

async fn locked(conn: &mut sqlx::PgConnection, id: &str) -> Result<Stored> {
    let role = db::lock(conn, id).await?;
    Ok(role.ok_or_else(|| Problem::not_found("role"))?)
}

async fn changed(
    state: &Users,
    by: &contracts::UserId,
    id: &str,
    change: impl FnOnce(&Role) -> Change,
) -> Result<Json<Role>> {
    let mut tx = state.platform.db.begin().await?;
    let Stored { role, built_in } = locked(&mut tx, id).await?;
    let change = change(&role);
    let is_renamed = change.name.as_ref().is_some_and(|name| *name != role.name);
    if built_in && (is_renamed || (change.permissions.is_some() && role.name != SUPPORT)) {
        return Err(Error::RoleBuiltIn { name: role.name });
    }
    if is_renamed && db::is_held(&mut tx, id).await? {
        return Err(Error::RoleHeld { name: role.name });
    }
    let permissions = change.permissions.as_deref().unwrap_or_default();
    if permissions.len() > permission::MOST {
        return Err(Problem::invalid_field("permissionIds", "would be more than 64").into());
    }
    let now = state.platform.clock.now();
    let before = json!({ "name": role.name, "permissions": role.permissions });
    let role = db::update(&mut tx, id, &change, now).await.map_err(taken)?;
    let after = json!({ "name": role.name, "permissions": role.permissions });
    let entry = Entry::done(by, "role.updated", ("role", id));
    let entry = entry.changing(json!({ "from": before, "to": after }));
    audit::write(&mut tx, entry, now).await?;
    tx.commit().await?;
    info!(user.id = %by, "changed role {} ({id}): it permits {:?}", role.name, role.permissions);
    Ok(Json(role))
}

fn permissions(all: Vec<String>) -> Change {
    Change {
        permissions: Some(sorted(all)),
        ..Change::default()
    }
}

fn sorted(mut permissions: Vec<String>) -> Vec<String> {
    permissions.sort_unstable();
    permissions.dedup();
    permissions
}

fn name(text: &str, _: &()) -> garde::Result {
    let text = text.trim();
    let fits = (2..=50).contains(&text.chars().count())
        && text
            .chars()
            .all(|c| c.is_alphanumeric() || " _.-".contains(c));
    rule(fits, "must be 2 to 50 letters, digits, spaces and _ . -")
}

fn description(text: &str, _: &()) -> garde::Result {
    let fits = text.chars().count() <= 500 && !text.contains(char::is_control);
    rule(fits, "must be at most 500 characters on one line")
}

fn taken(error: sqlx::Error) -> Error {
    let constraint = error.as_database_error().and_then(|e| e.constraint());
    match constraint {
        Some("roles_name_key") => Problem::conflict("CONFLICT", "this name is taken")
            .with_field("name", "is taken")
            .into(),
        _ => error.into(),
    }
}
