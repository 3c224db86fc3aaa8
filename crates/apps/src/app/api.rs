//! Uploading, listing and fetching apps.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Multipart, State};
use axum::response::{IntoResponse, Response};
use contracts::{AppId, Event, EventBody};
use futures::TryStreamExt;
use garde::Validate;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use object_store::GetRange;
use platform::events::emit;
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::problem::ProblemBody;
use platform::{CurrentUser, Problem};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::upload::Fields;
use super::{App, AppStatus, Category, Manifest, db, manifest, upload};
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
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
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
}

/// How many.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Count {
    /// How many.
    count: i64,
}

/// A sentence for people.
#[derive(Serialize, utoipa::ToSchema)]
pub struct Message {
    /// The sentence.
    message: &'static str,
}

impl ListApps {
    fn filter(self, user: &CurrentUser) -> db::Filter {
        let viewer = if user.is_admin {
            None
        } else {
            Some(user.id.clone())
        };
        db::Filter {
            search: self.search,
            category: self.category,
            status: self.status,
            viewer,
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

/// Deletes an app of the caller's.
#[utoipa::path(delete, path = "/apps/{app_id}", tag = "apps", params(("app_id" = AppId, Path)), responses((status = 200, body = Message), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn delete_app(
    State(state): State<Apps>,
    user: CurrentUser,
    Path(id): Path<AppId>,
) -> Result<Json<Message>> {
    let owner = if user.is_admin { None } else { Some(&user.id) };
    let mut conn = state.platform.db.acquire().await?;
    let key = db::delete(&mut conn, &id, owner)
        .await?
        .ok_or(Error::NotFound(id))?;
    // The row is the truth; an object that stays behind is only space.
    if let Err(error) = state.objects.delete(&key).await {
        warn!("the object {key} of a deleted app stays behind: {error}");
    }
    Ok(Json(Message {
        message: "app deleted",
    }))
}

/// Fetches a package, whole or a range of it.
#[utoipa::path(get, path = "/apps/{app_id}/download", tag = "apps", params(("app_id" = AppId, Path)), responses((status = 200, description = "the package", content_type = "application/vnd.android.package-archive"), (status = 206, description = "the range asked for"), (status = 304, description = "not changed"), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody), (status = 416, body = ProblemBody)))]
pub async fn download_app(
    State(state): State<Apps>,
    user: CurrentUser,
    Path(id): Path<AppId>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response> {
    let app = visible(&state, &user, id).await?;
    let etag = format!("\"{}\"", app.sha256);
    if headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|known| names(known, &etag))
    {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response());
    }
    let size = app.size.cast_unsigned();
    // A part of something else that the client has is of no use to it.
    let is_same = headers
        .get(header::IF_RANGE)
        .is_none_or(|known| known.as_bytes() == etag.as_bytes());
    let wanted = headers
        .get(header::RANGE)
        .filter(|_| is_same)
        .and_then(|value| range(value.to_str().ok()?));
    if wanted.as_ref().is_some_and(|range| {
        matches!(range, GetRange::Bounded(span) if span.start >= size)
            || matches!(range, GetRange::Offset(from) if *from >= size)
    }) {
        let problem = Problem::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            "VALIDATION_FAILED",
            format!("the package has {size} bytes"),
        );
        return Ok((
            [(header::CONTENT_RANGE, format!("bytes */{size}"))],
            problem,
        )
            .into_response());
    }
    let object = match state.objects.read(&app.object_key, wanted.clone()).await {
        // Deleted between the row and its object.
        Err(error) if error.is_absent() => return Err(Error::NotFound(app.id)),
        object => object?,
    };
    if wanted.is_none() && method == Method::GET {
        db::count_download(&mut *state.platform.db.acquire().await?, &app.id).await?;
    }
    let span = object.range.clone();
    let mut response =
        Body::from_stream(object.into_stream().map_err(std::io::Error::other)).into_response();
    let set = response.headers_mut();
    let values = [
        (
            header::CONTENT_TYPE,
            "application/vnd.android.package-archive".to_owned(),
        ),
        (header::CONTENT_LENGTH, (span.end - span.start).to_string()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::ETAG, etag),
        (
            header::CONTENT_DISPOSITION,
            format!(
                "attachment; filename=\"{}-{}.apk\"",
                app.package_name, app.version_code
            ),
        ),
    ];
    for (name, value) in values {
        set.insert(name, value.parse().map_err(|_| Problem::internal())?);
    }
    if wanted.is_some() {
        let content_range = format!("bytes {}-{}/{size}", span.start, span.end - 1);
        set.insert(
            header::CONTENT_RANGE,
            content_range.parse().map_err(|_| Problem::internal())?,
        );
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

async fn visible(state: &Apps, user: &CurrentUser, id: AppId) -> Result<App> {
    let mut conn = state.platform.db.acquire().await?;
    let app = db::find(&mut conn, &id)
        .await?
        .filter(|app| app.is_public() || user.may_see(&app.uploader_id));
    app.ok_or(Error::NotFound(id))
}

/// Whether `If-None-Match` names this tag, or all.
fn names(known: &HeaderValue, etag: &str) -> bool {
    let text = known.to_str().unwrap_or_default();
    text.split(',')
        .map(str::trim)
        .any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == etag)
}

/// The first span of a `Range` header; several spans, and what cannot be read, count as none (RFC 9110 allows it).
fn range(text: &str) -> Option<GetRange> {
    let spec = text
        .strip_prefix("bytes=")
        .filter(|spec| !spec.contains(','))?;
    let (from, to) = spec.trim().split_once('-')?;
    match (from.parse::<u64>(), to.parse::<u64>()) {
        (Ok(from), Ok(to)) if from <= to => Some(GetRange::Bounded(from..to.saturating_add(1))),
        (Ok(from), Err(_)) if to.is_empty() => Some(GetRange::Offset(from)),
        (Err(_), Ok(last)) if from.is_empty() && last > 0 => Some(GetRange::Suffix(last)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        assert_eq!(range("bytes=0-9"), Some(GetRange::Bounded(0..10)));
        assert_eq!(range("bytes=5-"), Some(GetRange::Offset(5)));
        assert_eq!(range("bytes=-5"), Some(GetRange::Suffix(5)));
        for text in [
            "bytes=9-0",
            "bytes=0-1,3-4",
            "items=0-1",
            "bytes=",
            "bytes=a-b",
        ] {
            assert_eq!(range(text), None, "{text}");
        }
    }

    #[test]
    fn any_range_that_is_read_is_one_span() {
        const WORDS: [&str; 10] = [
            "bytes=",
            "0",
            "-",
            "9",
            "18446744073709551615",
            ",",
            " ",
            "5",
            "+1",
            "items=",
        ];
        bolero::check!()
            .with_iterations(3_000)
            .with_max_len(8)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                match range(&text) {
                    Some(GetRange::Bounded(span)) => assert!(span.start < span.end, "{text}"),
                    Some(GetRange::Suffix(last)) => assert!(last > 0, "{text}"),
                    Some(GetRange::Offset(_)) | None => {}
                }
                assert!(
                    range(&text).is_none()
                        || text.starts_with("bytes=") && !text.contains([',', '+']),
                    "{text}"
                );
            });
    }

    #[test]
    fn any_list_of_tags_names_the_one_that_stands_in_it() {
        const WORDS: [&str; 8] = ["\"a\"", "W/", "*", ",", ", ", "\"", "a", "\"b\""];
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(8)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                let Ok(value) = HeaderValue::from_str(&text) else {
                    return;
                };
                assert!(
                    !names(&value, "\"a\"") || text.contains("\"a\"") || text.contains('*'),
                    "{text}"
                );
                let Ok(value) = HeaderValue::from_str(&format!("{text}, W/\"a\"")) else {
                    return;
                };
                assert!(names(&value, "\"a\""), "{text}");
            });
    }
}
