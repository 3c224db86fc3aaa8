//! Making, listing, renaming and removing groups.

use axum::extract::State;
use contracts::TaskId;
use garde::Validate;
use http::StatusCode;
use platform::http::{Json, Path};
use platform::{CurrentUser, Problem};
use serde::{Deserialize, Serialize};

use super::{Group, db};
use crate::{Devices, Error, error::Result};

/// What a group shall be.
#[derive(Clone, Debug, Deserialize, Validate, utoipa::ToSchema)]
pub struct CreateGroup {
    /// What its devices call it; one that its owner has no other group of.
    #[garde(length(chars, min = 1, max = 100))]
    pub name: String,
    /// What its owner says about it.
    #[garde(length(chars, max = 500))]
    pub description: Option<String>,
    /// At most 10.
    #[garde(length(max = 10), inner(inner(length(chars, min = 1, max = 50))))]
    pub tags: Option<Vec<String>>,
}

/// What shall be different. What is left out stays.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
pub struct PatchGroup {
    /// Its new name, also in its devices.
    #[garde(length(chars, min = 1, max = 100))]
    pub name: Option<String>,
    /// What its owner says about it.
    #[garde(length(chars, max = 500))]
    pub description: Option<String>,
    /// At most 10.
    #[garde(length(max = 10), inner(inner(length(chars, min = 1, max = 50))))]
    pub tags: Option<Vec<String>>,
}

/// The group is gone.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct GroupDeleted {
    message: String,
}

/// Lists the caller's groups by name.
#[utoipa::path(get, path = "/devices/groups", tag = "groups", responses((status = 200, body = Vec<Group>)))]
pub async fn list_groups(
    State(state): State<Devices>,
    user: CurrentUser,
) -> Result<Json<Vec<Group>>> {
    let mut conn = state.platform.db.acquire().await?;
    Ok(Json(db::list(&mut conn, &user.id).await?))
}

/// Makes a group. Devices that name it already are in it.
#[utoipa::path(post, path = "/devices/groups", tag = "groups", request_body = CreateGroup, responses((status = 201, body = Group), (status = 400), (status = 403, description = "The caller has 500 groups"), (status = 409, description = "The caller has a group of this name")))]
pub async fn create_group(
    State(state): State<Devices>,
    user: CurrentUser,
    Json(body): Json<CreateGroup>,
) -> Result<(StatusCode, Json<Group>)> {
    // Not a task's, but an id like all of ours.
    let id = TaskId::new().to_string();
    let mut tx = state.platform.db.begin().await?;
    let current = db::count_locked(&mut tx, &user.id).await?;
    if current >= db::MOST {
        return Err(Error::QuotaExceeded {
            quota: "groups",
            key: "groups",
            current,
            limit: db::MOST,
        });
    }
    let inserted = db::insert(&mut tx, (&id, &user.id), &body, state.platform.clock.now()).await;
    inserted.map_err(taken)?;
    let group = db::find(&mut tx, &user.id, &id).await?;
    tx.commit().await?;
    let group = group.ok_or(sqlx::Error::RowNotFound)?;
    Ok((StatusCode::CREATED, Json(group)))
}

/// Changes a group.
#[utoipa::path(patch, path = "/devices/groups/{id}", tag = "groups", params(("id" = String, Path)), request_body = PatchGroup,
    responses((status = 200, body = Group), (status = 400), (status = 404), (status = 409, description = "The caller has a group of this name")))]
pub async fn patch_group(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<String>,
    Json(body): Json<PatchGroup>,
) -> Result<Json<Group>> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.now();
    let found = valid(&id)?
        && db::patch(&mut tx, (&id, &user.id), &body, now)
            .await
            .map_err(taken)?;
    if !found {
        return Err(Problem::not_found("group").into());
    }
    let group = db::find(&mut tx, &user.id, &id).await?;
    tx.commit().await?;
    Ok(Json(group.ok_or(sqlx::Error::RowNotFound)?))
}

/// Removes a group; its devices stay, and are in none.
#[utoipa::path(delete, path = "/devices/groups/{id}", tag = "groups", params(("id" = String, Path)), responses((status = 200, body = GroupDeleted), (status = 404)))]
pub async fn delete_group(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<String>,
) -> Result<Json<GroupDeleted>> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.now();
    if !(valid(&id)? && db::delete(&mut tx, (&id, &user.id), now).await?) {
        return Err(Problem::not_found("group").into());
    }
    tx.commit().await?;
    Ok(Json(GroupDeleted {
        message: "the group was deleted".into(),
    }))
}

/// What is no id names nothing.
fn valid(id: &str) -> Result<bool, Problem> {
    match contracts::id::is_valid(id) {
        true => Ok(true),
        false => Err(Problem::not_found("group")),
    }
}

fn taken(error: sqlx::Error) -> Problem {
    let constraint = error
        .as_database_error()
        .and_then(|error| error.constraint());
    match constraint {
        Some("groups_name_key") => {
            Problem::conflict("CONFLICT", "there is a group of this name already")
        }
        _ => Problem::from(error),
    }
}
