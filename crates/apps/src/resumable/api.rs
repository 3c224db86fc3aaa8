//! The routes of the tus protocol.

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use contracts::UploadId;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use platform::http::{Json, Path};
use platform::problem::ProblemBody;
use platform::{CurrentUser, Problem};

use super::receive::{expiry, receive};
use super::{Upload, UploadStatus, assemble, db, metadata};
use crate::app::upload::discard;
use crate::{Apps, Error, Result};

const VERSION: HeaderValue = HeaderValue::from_static("1.0.0");
const EXTENSIONS: HeaderValue =
    HeaderValue::from_static("creation,creation-with-upload,expiration,termination");
const TUS_RESUMABLE: HeaderName = HeaderName::from_static("tus-resumable");
const TUS_VERSION: HeaderName = HeaderName::from_static("tus-version");
const TUS_EXTENSION: HeaderName = HeaderName::from_static("tus-extension");
const TUS_MAX_SIZE: HeaderName = HeaderName::from_static("tus-max-size");
const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");
const UPLOAD_METADATA: HeaderName = HeaderName::from_static("upload-metadata");
const UPLOAD_EXPIRES: HeaderName = HeaderName::from_static("upload-expires");
const APP_ID: HeaderName = HeaderName::from_static("x-app-id");
/// The media type in which bytes come.
const BYTES: &str = "application/offset+octet-stream";
/// Uploads of a user that are not whole, at most.
const MOST_OPEN: i64 = 20;
const LONGEST_METADATA: usize = 16 << 10;

/// Names the version of the protocol in every answer.
pub async fn name_version(mut response: Response) -> Response {
    response.headers_mut().insert(TUS_RESUMABLE, VERSION);
    response
}

/// Tells what of the protocol is spoken here.
#[utoipa::path(options, path = "/apps/uploads", tag = "uploads", security(()),
    responses((status = 204, description = "`Tus-Version`, `Tus-Extension` and `Tus-Max-Size` tell")))]
pub async fn describe_uploads(State(state): State<Apps>) -> Response {
    let headers = [
        (TUS_VERSION, VERSION),
        (TUS_EXTENSION, EXTENSIONS),
        (TUS_MAX_SIZE, state.config.max_upload.into()),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// Begins a resumable upload (tus 1.0). `Upload-Metadata` has what the form of `POST /apps/upload` has beside the file. Bytes
/// may come with it.
#[utoipa::path(post, path = "/apps/uploads", tag = "uploads",
    params(("Tus-Resumable" = String, Header, description = "1.0.0"), ("Upload-Length" = i64, Header), ("Upload-Metadata" = Option<String>, Header)),
    responses((status = 201, description = "Begun; `Location` names it"), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 412, body = ProblemBody), (status = 413, body = ProblemBody), (status = 415, body = ProblemBody), (status = 429, body = ProblemBody)))]
pub async fn begin_upload(
    State(state): State<Apps>,
    user: CurrentUser,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    speaks(&headers)?;
    let length = number(&headers, &UPLOAD_LENGTH)?;
    let limit = state.config.max_upload;
    if length.cast_unsigned() > limit {
        return Err(Error::TooLarge { limit });
    }
    if length == 0 {
        return Err(Problem::invalid_field("Upload-Length", "is 0: a package is not empty").into());
    }
    let said = headers.get(&UPLOAD_METADATA).map(HeaderValue::to_str);
    let said = said.transpose().map_err(|_| {
        Problem::invalid_field("Upload-Metadata", "is not made of names and Base64")
    })?;
    let said = said.unwrap_or_default();
    if said.len() > LONGEST_METADATA {
        let why = format!("is longer than {LONGEST_METADATA} bytes");
        return Err(Problem::invalid_field("Upload-Metadata", why).into());
    }
    let fields = metadata::read(said)?;
    let brings = media_type(&headers) == Some(BYTES);
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    let what = (length, fields, said);
    let times = (now, expiry(now));
    let begun = db::insert(
        &mut conn,
        &UploadId::new(),
        &user.id,
        what,
        times,
        MOST_OPEN,
    )
    .await?;
    drop(conn);
    let upload = begun.ok_or(Error::TooManyUploads(MOST_OPEN))?;
    let location = format!("/apps/uploads/{}", upload.id);
    let upload = match brings {
        true => take(&state, upload, body).await?,
        false => upload,
    };
    let location = location.parse().map_err(|_| Problem::internal())?;
    Ok(told(StatusCode::CREATED, &upload, Some(location)))
}

/// Tells how far an upload is: `Upload-Offset` also without the body.
#[utoipa::path(get, path = "/apps/uploads/{upload_id}", tag = "uploads", params(("upload_id" = UploadId, Path)), responses((status = 200, body = Upload), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn find_upload(
    State(state): State<Apps>,
    user: CurrentUser,
    Path(id): Path<UploadId>,
) -> Result<Response> {
    let upload = own(&state, &user, id).await?;
    let mut response = told(StatusCode::OK, &upload, None);
    *response.body_mut() = Json(upload).into_response().into_body();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

/// Takes the next bytes of an upload. With the last one the app is made: `X-App-Id` names it, and where it cannot be told yet,
/// the upload does later.
#[utoipa::path(patch, path = "/apps/uploads/{upload_id}", tag = "uploads",
    params(("upload_id" = UploadId, Path), ("Tus-Resumable" = String, Header, description = "1.0.0"), ("Upload-Offset" = i64, Header)),
    request_body(content_type = "application/offset+octet-stream"),
    responses((status = 204, description = "Stored; `Upload-Offset` tells how far"), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, description = "Another offset, or the version is there already", body = ProblemBody), (status = 412, body = ProblemBody), (status = 413, body = ProblemBody), (status = 415, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn continue_upload(
    State(state): State<Apps>,
    user: CurrentUser,
    Path(id): Path<UploadId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    speaks(&headers)?;
    if media_type(&headers) != Some(BYTES) {
        let why = format!("the media type must be {BYTES}");
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "BAD_TYPE", why).into());
    }
    let offset = number(&headers, &UPLOAD_OFFSET)?;
    let upload = own(&state, &user, id).await?;
    if offset != upload.offset {
        return Err(Error::OtherOffset {
            offset: upload.offset,
        });
    }
    let upload = take(&state, upload, body).await?;
    Ok(told(StatusCode::NO_CONTENT, &upload, None))
}

/// Gives an upload up; an app that it became stays.
#[utoipa::path(delete, path = "/apps/uploads/{upload_id}", tag = "uploads", params(("upload_id" = UploadId, Path)), responses((status = 204), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn give_up_upload(
    State(state): State<Apps>,
    user: CurrentUser,
    Path(id): Path<UploadId>,
) -> Result<StatusCode> {
    let upload = own(&state, &user, id).await?;
    let deleted = db::delete(&mut *state.platform.db.acquire().await?, &upload.id).await?;
    let keys = deleted.ok_or_else(|| {
        Problem::conflict("CONFLICT", "the upload is whole and its app is being made")
    })?;
    for key in keys {
        discard(&state.objects, &key).await;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Takes what comes, and makes the app where it was the last byte.
async fn take(state: &Apps, upload: Upload, body: Body) -> Result<Upload> {
    let _permit = state.uploads.try_acquire().map_err(|_| Error::Busy)?;
    let upload = receive(state, upload, body).await?;
    let upload = assemble::settle(state, upload).await?;
    match upload.status {
        UploadStatus::Refused => Err(Error::RefusedUpload {
            reason: upload.error.unwrap_or_default(),
        }),
        _ => Ok(upload),
    }
}

async fn own(state: &Apps, user: &CurrentUser, id: UploadId) -> Result<Upload> {
    let now = state.platform.clock.now();
    let found = db::find(&mut *state.platform.db.acquire().await?, &id, now).await?;
    let upload = found.filter(|upload| user.may_see(&upload.user_id));
    Ok(upload.ok_or_else(|| Problem::not_found("upload"))?)
}

fn told(status: StatusCode, upload: &Upload, location: Option<HeaderValue>) -> Response {
    let mut response = status.into_response();
    let headers = response.headers_mut();
    headers.insert(UPLOAD_OFFSET, upload.offset.into());
    headers.insert(UPLOAD_LENGTH, upload.length.into());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let expires = upload.expires_at.utc().format("%a, %d %b %Y %H:%M:%S GMT");
    let texts = [
        (UPLOAD_EXPIRES, Some(expires.to_string())),
        (APP_ID, upload.app_id.as_ref().map(ToString::to_string)),
        (
            UPLOAD_METADATA,
            Some(upload.metadata.clone()).filter(|it| !it.is_empty()),
        ),
    ];
    for (name, text) in texts {
        if let Some(value) = text.and_then(|text| text.parse().ok()) {
            headers.insert(name, value);
        }
    }
    if let Some(location) = location {
        headers.insert(header::LOCATION, location);
    }
    response
}

/// Refuses a client of another version of the protocol.
fn speaks(headers: &HeaderMap) -> Result<()> {
    match headers.get(&TUS_RESUMABLE) {
        Some(version) if *version == VERSION => Ok(()),
        _ => Err(Error::OtherVersion),
    }
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Result<i64> {
    let text = headers.get(name).and_then(|value| value.to_str().ok());
    let number = text.and_then(|text| text.parse().ok());
    number
        .filter(|number| *number >= 0)
        .ok_or_else(|| Problem::invalid_field(name.as_str(), "is no whole number from 0").into())
}

fn media_type(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(text.split(';').next().unwrap_or_default().trim())
}
