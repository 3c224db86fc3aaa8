//! Uploading, listing and fetching apps.

use axum::extract::{Multipart, State};
use contracts::AppId;
use garde::Validate;
use http::{HeaderMap, StatusCode, header};
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::problem::ProblemBody;
use platform::{CurrentUser, Problem};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::{App, AppStatus, Category, db, register, upload};
use crate::{Apps, Error, Result};

/// What a form has beside the package, at most.
const FORM_AROUND: u64 = 1 << 20;

/// The form of an upload.
#[derive(utoipa::ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "describes the form, which is read as a stream")]
pub struct UploadApp {
    /// The package.
    #[schema(format = Binary, content_media_type = "application/octet-stream")]
    file: String,
    /// What people call it; the package's own label by default.
    name: Option<String>,
    /// What it does.
    description: Option<String>,
    /// What it is for.
    category: Option<Category>,
    /// Words to find it by, comma-separated.
    tags: Option<String>,
    /// The Android package, where the manifest cannot be read.
    package_name: Option<String>,
    /// The version as people read it, where the manifest cannot be read.
    version_name: Option<String>,
    /// The version as Android compares it, where the manifest cannot be read.
    version_code: Option<i64>,
}

/// What a list is narrowed to.
#[derive(Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct ListApps {
    /// A part of name or package.
    #[garde(length(max = 200))]
    search: Option<String>,
    /// The category.
    #[garde(skip)]
    category: Option<Category>,
    /// Where it stands.
    #[garde(skip)]
    status: Option<AppStatus>,
    /// The same as `status`.
    #[garde(skip)]
    review_status: Option<AppStatus>,
    /// The tenant of who uploaded it.
    #[garde(length(max = 100))]
    tenant_id: Option<String>,
}

/// How many.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Count {
    /// How many.
    count: i64,
}

impl ListApps {
    /// What the caller may see of it.
    pub fn filter(self, user: &CurrentUser) -> db::Filter {
        db::Filter {
            search: self.search,
            category: self.category,
            status: self.status.or(self.review_status),
            tenant_id: self.tenant_id,
            ..db::Filter::visible_to(user)
        }
    }
}

/// Stores a package. It is readable through every instance when the reply comes.
#[utoipa::path(
    post, path = "/apps/upload", tag = "apps",
    request_body(content = UploadApp, content_type = "multipart/form-data"),
    responses(
        (status = 201, body = App),
        (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
        (status = 409, description = "package and version are there already", body = ProblemBody),
        (status = 413, body = ProblemBody), (status = 415, body = ProblemBody),
    ),
)]
pub async fn upload_app(
    State(state): State<Apps>,
    user: CurrentUser,
    headers: HeaderMap,
    form: std::result::Result<Multipart, axum::extract::multipart::MultipartRejection>,
) -> Result<(StatusCode, Json<App>)> {
    let form = form.map_err(|_| {
        Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "BAD_TYPE",
            "the body must be multipart/form-data with a field `file`",
        )
    })?;
    let limit = state.config.max_upload;
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > limit.saturating_add(FORM_AROUND)) {
        return Err(Error::TooLarge { limit });
    }
    let _permit = state.uploads.try_acquire().map_err(|_| Error::Busy)?;
    let new = AppId::new();
    let (fields, written, key) = upload::receive(&state.objects, &new, form, limit).await?;

    let stored = async {
        let app =
            register::describe(&state, &user.id, new.clone(), fields, (&key, &written)).await?;
        let mut tx = state.platform.db.begin().await?;
        let app = register::insert(&mut tx, app).await?;
        tx.commit().await?;
        Ok(app)
    };
    let outcome: Result<App> = stored.await;
    register::tidy(&state, &new, &outcome).await;
    let app = outcome?;
    info!(app.id = %app.id, "stored version {} of {}, {} bytes", app.version_code, app.package_name, app.size);
    Ok((StatusCode::CREATED, Json(app)))
}

/// Lists apps, newest first: those everybody may see and the caller's own.
#[utoipa::path(get, path = "/apps", tag = "apps", params(ListApps, PageQuery), responses((status = 200, body = Page<App>), (status = 401, body = ProblemBody)))]
pub async fn list_apps(
    State(state): State<Apps>,
    user: CurrentUser,
    Query(filter): Query<ListApps>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<App>>> {
    let mut conn = state.platform.db.acquire().await?;
    let (apps, total) = db::list(&mut conn, &filter.filter(&user), page.slice()).await?;
    Ok(Json(Page::new(apps, total, page)))
}

/// Counts apps.
#[utoipa::path(get, path = "/apps/count", tag = "apps", params(ListApps), responses((status = 200, body = Count), (status = 401, body = ProblemBody)))]
pub async fn count_apps(
    State(state): State<Apps>,
    user: CurrentUser,
    Query(filter): Query<ListApps>,
) -> Result<Json<Count>> {
    let mut conn = state.platform.db.acquire().await?;
    Ok(Json(Count {
        count: db::count(&mut conn, &filter.filter(&user)).await?,
    }))
}

/// Shows an app.
#[utoipa::path(get, path = "/apps/{app_id}", tag = "apps", params(("app_id" = AppId, Path)), responses((status = 200, body = App), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn find_app(
    State(state): State<Apps>,
    user: CurrentUser,
    Path(id): Path<AppId>,
) -> Result<Json<App>> {
    Ok(Json(visible(&state, &user, id).await?))
}

/// The app, where the caller may see it.
pub async fn visible(state: &Apps, user: &CurrentUser, id: AppId) -> Result<App> {
    let mut conn = state.platform.db.acquire().await?;
    let app = db::find(&mut conn, &id)
        .await?
        .filter(|app| app.is_public() || user.may_see(&app.uploader_id));
    app.ok_or(Error::NotFound(id))
}
