//! Uploading, listing and fetching apps.

use std::time::Duration;

use axum::extract::{Multipart, State};
use contracts::{AppId, Event, EventBody};
use garde::Validate;
use http::{HeaderMap, StatusCode, header};
use platform::events::emit;
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::problem::ProblemBody;
use platform::{CurrentUser, Problem};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::upload::Fields;
use super::{App, AppStatus, Category, Manifest, db, manifest, upload};
use crate::review::{self, Action};
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
    let _permit = state.uploads.try_acquire().map_err(|_| {
        Problem::not_ready("too many uploads at once; try again")
            .retry_after(Duration::from_secs(5))
    })?;
    let id = AppId::new();
    let (fields, written, key) = upload::receive(&state.objects, &id, form, limit).await?;

    let outcome = register(
        &state,
        &user,
        id,
        fields,
        &key,
        (written.size, written.sha256),
    )
    .await;
    match &outcome {
        // Whether the row is there is not known; an object that it names must not be deleted. The sweep knows later.
        Ok(_) | Err(Error::Database(_)) => {}
        Err(_) => upload::discard(&state.objects, &key).await,
    }
    let app = outcome?;
    info!(app.id = %app.id, "stored version {} of {}, {} bytes", app.version_code, app.package_name, app.size);
    Ok((StatusCode::CREATED, Json(app)))
}

async fn register(
    state: &Apps,
    user: &CurrentUser,
    id: AppId,
    fields: Fields,
    key: &str,
    (size, sha256): (u64, String),
) -> Result<App> {
    let manifest = match state.objects.file(key).await? {
        Some(file) => {
            let _permit = state
                .readings
                .acquire()
                .await
                .map_err(|_| Problem::internal())?;
            manifest::read(file).await?
        }
        None => Manifest::default(),
    };
    let package_name = manifest
        .package_name
        .or(fields.package_name)
        .ok_or_else(|| {
            Problem::invalid_field(
                "packageName",
                "is required, since the manifest of the package cannot be read",
            )
        })?;
    let version_name = manifest
        .version_name
        .or(fields.version_name)
        .unwrap_or_else(|| "1.0".to_owned());
    let now = state.platform.clock.now();
    let app = App {
        id: id.clone(),
        name: fields
            .name
            .or(manifest.label)
            .unwrap_or_else(|| package_name.clone()),
        version: version_name.clone(),
        version_name,
        version_code: manifest.version_code.or(fields.version_code).unwrap_or(1),
        is_latest: true,
        status: AppStatus::PendingReview,
        category: fields.category,
        size: size.cast_signed(),
        sha256,
        description: fields.description,
        min_sdk_version: manifest.min_sdk_version,
        target_sdk_version: manifest.target_sdk_version,
        tags: fields.tags,
        uploader_id: user.id.clone(),
        download_url: String::new(),
        download_count: 0,
        install_count: 0,
        created_at: now,
        updated_at: now,
        seq: 0,
        object_key: key.to_owned(),
        package_name,
    };
    let mut tx = state.platform.db.begin().await?;
    if !db::insert(&mut tx, &app).await? {
        return Err(Error::Exists {
            package_name: app.package_name,
            version_code: app.version_code,
        });
    }
    review::record(&mut tx, &id, Action::Submit, (&user.id, None), now).await?;
    let body = EventBody::AppUploaded {
        app_id: id.clone(),
        package_name: app.package_name.clone(),
        version_code: app.version_code,
    };
    emit(&mut tx, &Event::new(user.id.clone(), now, body)).await?;
    let stored = db::find(&mut tx, &id).await?.ok_or(Error::NotFound(id))?;
    tx.commit().await?;
    Ok(stored)
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
