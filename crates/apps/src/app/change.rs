//! Changing what is said of an app, and deleting it.

use axum::extract::State;
use contracts::AppId;
use garde::Validate;
use platform::CurrentUser;
use platform::http::{Json, Path};
use platform::problem::ProblemBody;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::api::visible;
use super::{App, Category, db};
use crate::{Apps, Error, Result};

/// What is said of an app from now on; what is left out stays.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
pub struct Change {
    /// What people call it.
    #[garde(inner(length(chars, min = 1, max = 100), custom(storable)))]
    pub name: Option<String>,
    /// What it does.
    #[garde(inner(length(chars, max = 2000), custom(storable)))]
    pub description: Option<String>,
    /// What it is for.
    #[garde(skip)]
    pub category: Option<Category>,
    /// Words to find it by, 20 at most.
    #[garde(inner(
        length(max = 20),
        inner(length(chars, min = 1, max = 50), custom(storable))
    ))]
    pub tags: Option<Vec<String>>,
}

fn storable(text: &str, _: &()) -> garde::Result {
    match text.contains('\0') {
        true => Err(garde::Error::new("holds a zero character")),
        false => Ok(()),
    }
}

/// A sentence for people.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Message {
    /// The sentence.
    message: &'static str,
}

/// Changes what is said of an app of the caller's; admins change every app.
#[utoipa::path(patch, path = "/apps/{app_id}", tag = "apps", params(("app_id" = AppId, Path)), request_body = Change, responses((status = 200, body = App), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn change_app(
    State(state): State<Apps>,
    user: CurrentUser,
    Path(id): Path<AppId>,
    Json(change): Json<Change>,
) -> Result<Json<App>> {
    let owner = (!user.is_admin).then_some(&user.id);
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    if !db::change(&mut conn, &id, owner, &change, now).await? {
        return Err(Error::NotFound(id));
    }
    drop(conn);
    Ok(Json(visible(&state, &user, id).await?))
}

/// Deletes an app of the caller's.
#[utoipa::path(delete, path = "/apps/{app_id}", tag = "apps", params(("app_id" = AppId, Path)), responses((status = 200, body = Message), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn delete_app(
    State(state): State<Apps>,
    user: CurrentUser,
    Path(id): Path<AppId>,
) -> Result<Json<Message>> {
    let owner = if user.is_admin { None } else { Some(&user.id) };
    let mut tx = state.platform.db.begin().await?;
    let deleted = db::delete(&mut tx, &id, owner).await?;
    let objects = deleted.ok_or(Error::NotFound(id))?;
    tx.commit().await?;
    for key in objects {
        // The row is the truth; an object that stays behind is only space, until the sweep.
        if let Err(error) = state.objects.delete(&key).await {
            warn!("the object {key} of a deleted app stays behind: {error}");
        }
    }
    Ok(Json(Message {
        message: "app deleted",
    }))
}
