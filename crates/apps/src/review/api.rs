//! Reviewing apps.

use axum::extract::State;
use contracts::{AppId, Event, EventBody};
use garde::Validate;
use platform::events::emit;
use platform::http::{Json, Page, PageQuery, Path, Query, SliceQuery};
use platform::problem::ProblemBody;
use platform::{Admin, CurrentUser, Problem};
use serde::Deserialize;
use tracing::info;

use super::{Action, Review, db};
use crate::app::{self, App};
use crate::{Apps, Error, Result};

/// Why something is decided.
#[derive(Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
pub struct Decide {
    /// Up to 1000 characters; required for a refusal and for a request for changes.
    #[garde(inner(length(chars, max = 1000)))]
    comment: Option<String>,
}

/// The steps, each at a route of its own.
macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident, $path:literal, $caller:ident, $user:pat => $who:expr, $action:ident;)+) => {$(
        $(#[$doc])*
        #[utoipa::path(post, path = $path, tag = "reviews", params(("app_id" = AppId, Path)), request_body = Decide,
            responses((status = 200, body = App), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
        pub async fn $name(
            State(state): State<Apps>,
            $user: $caller,
            Path(id): Path<AppId>,
            Json(body): Json<Decide>,
        ) -> Result<Json<App>> {
            decide(&state, &$who, id, Action::$action, body.comment).await
        }
    )+};
}

steps! {
    /// Asks for a review of an app of the caller's that was refused, or given back for changes.
    submit_app, "/apps/{app_id}/submit-review", CurrentUser, user => user, Submit;
    /// Accepts an app: everybody may see it.
    approve_app, "/apps/{app_id}/approve", Admin, Admin(user) => user, Approve;
    /// Refuses an app.
    reject_app, "/apps/{app_id}/reject", Admin, Admin(user) => user, Reject;
    /// Gives an app back to its uploader, who submits it again.
    request_changes, "/apps/{app_id}/request-changes", Admin, Admin(user) => user, RequestChanges;
    /// Puts an app on the shelf.
    publish_app, "/apps/{app_id}/publish", Admin, Admin(user) => user, Publish;
    /// Takes an app from the shelf: only its uploader and admins see it. What is installed stays.
    unpublish_app, "/apps/{app_id}/unpublish", Admin, Admin(user) => user, Unpublish;
}

async fn decide(
    state: &Apps,
    user: &CurrentUser,
    id: AppId,
    action: Action,
    comment: Option<String>,
) -> Result<Json<App>> {
    let comment = comment
        .as_deref()
        .map(str::trim)
        .filter(|it| !it.is_empty());
    if action.needs_comment() && comment.is_none() {
        return Err(
            Problem::invalid_field("comment", "is required: it tells the uploader why").into(),
        );
    }
    let owner = (action.is_uploaders() && !user.is_admin).then_some(&user.id);
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    let is_done = db::step(&mut tx, &id, action, owner, now).await?;
    let app = app::db::find(&mut tx, &id)
        .await?
        .filter(|app| app.is_public() || user.may_see(&app.uploader_id))
        .ok_or_else(|| Error::NotFound(id.clone()))?;
    if !is_done {
        if owner.is_some_and(|owner| *owner != app.uploader_id) {
            return Err(Problem::forbidden("only its uploader may submit an app").into());
        }
        return Err(Error::WrongStatus {
            status: app.status,
            wanted: action.from(),
        });
    }
    db::record(&mut tx, &id, action, (&user.id, comment), now).await?;
    let body = EventBody::AppReviewed {
        app_id: id.clone(),
        name: app.name.clone(),
        version_name: app.version_name.clone(),
        status: app.status.as_str().to_owned(),
        comment: comment.map(str::to_owned),
    };
    emit(&mut tx, &Event::new(app.uploader_id.clone(), now, body)).await?;
    tx.commit().await?;
    info!(app.id = %id, user.id = %user.id, "app {id} is now {}", app.status.as_str());
    Ok(Json(app))
}

/// Lists the apps that wait for a review, the oldest first.
#[utoipa::path(get, path = "/apps/pending-review/list", tag = "reviews", params(PageQuery), responses((status = 200, body = Page<App>), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_pending(
    State(state): State<Apps>,
    _: Admin,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<App>>> {
    let mut conn = state.platform.db.acquire().await?;
    let (apps, total) = app::db::list_pending(&mut conn, page.slice()).await?;
    Ok(Json(Page::new(apps, total, page)))
}

/// Lists what was decided about all apps, the latest first.
#[utoipa::path(get, path = "/apps/audit-records", tag = "reviews", params(PageQuery), responses((status = 200, body = Page<Review>), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_reviews(
    State(state): State<Apps>,
    _: Admin,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Review>>> {
    let mut conn = state.platform.db.acquire().await?;
    let (reviews, total) = db::list(&mut conn, None, page.slice()).await?;
    Ok(Json(Page::new(reviews, total, page)))
}

/// Lists what was decided about an app, the latest first; also about one that is gone.
#[utoipa::path(get, path = "/apps/{app_id}/audit-records", tag = "reviews", params(("app_id" = AppId, Path), SliceQuery), responses((status = 200, body = Vec<Review>), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_reviews_of_app(
    State(state): State<Apps>,
    _: Admin,
    Path(id): Path<AppId>,
    Query(slice): Query<SliceQuery>,
) -> Result<Json<Vec<Review>>> {
    let mut conn = state.platform.db.acquire().await?;
    let (reviews, _) = db::list(&mut conn, Some(&id), slice.slice()).await?;
    Ok(Json(reviews))
}
