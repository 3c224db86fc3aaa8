//! Asking for an address, and sending the file there.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use contracts::Timestamp;
use futures::{StreamExt, TryStreamExt};
use garde::Validate;
use http::{StatusCode, header};
use platform::CurrentUser;
use platform::http::{Json, Path};
use platform::problem::ProblemBody;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tracing::warn;

use super::db::Upload;
use super::{ContentType, MAX_SIZE, MOST_TRIES, VALID, db, fingerprint, key, object_key, ticket};
use crate::{Error, Media, Result};

/// A client that sends nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(20);
/// The time for a whole file; 10 MiB take it at 700 kbit/s.
const WHOLE: Duration = Duration::from_secs(120);

/// A file to send.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateUpload {
    /// What people call it.
    #[garde(length(chars, min = 1, max = 255))]
    file_name: String,
    /// What kind of file it is.
    #[garde(skip)]
    content_type: ContentType,
    /// Bytes, at most 10 MiB.
    #[garde(range(min = 1, max = MAX_SIZE as i64))]
    size: i64,
}

/// Where a file is sent.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UploadAddress {
    /// The address, below this service. It needs no token, and takes one file.
    upload_url: String,
    /// How it is sent.
    method: &'static str,
    /// What is sent with it.
    headers: BTreeMap<&'static str, &'static str>,
    /// What tasks call the file.
    key: String,
    /// When the address ends.
    expires_at: Timestamp,
}

/// A file that is stored.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoredUpload {
    /// What tasks call it.
    key: String,
    /// What kind of file it is.
    content_type: ContentType,
    /// Bytes.
    size: i64,
}

/// Gives an address for one file.
#[utoipa::path(post, path = "/media/uploads", tag = "media", request_body = CreateUpload, responses((status = 201, body = UploadAddress), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 429, description = "too many uploads are kept for the user", body = ProblemBody)))]
pub async fn create_upload(
    State(state): State<Media>,
    user: CurrentUser,
    Json(body): Json<CreateUpload>,
) -> Result<(StatusCode, Json<UploadAddress>)> {
    let now = state.platform.clock.now();
    let (secret, stored) = ticket();
    let upload = Upload {
        key: key(&user.id, &body.file_name),
        user_id: user.id,
        content_type: body.content_type,
        size: body.size,
        tries: 0,
        expires_at: now + VALID,
        stored_at: None,
    };
    let most = state.config.user_uploads;
    let mut tx = state.platform.db.begin().await?;
    if db::count(&mut tx, &upload.user_id).await? >= most {
        return Err(Error::TooManyUploads { most });
    }
    db::insert(&mut tx, &upload, &stored, now).await?;
    tx.commit().await?;
    let address = UploadAddress {
        upload_url: format!("/media/uploads/{secret}"),
        method: "PUT",
        headers: BTreeMap::from([("Content-Type", upload.content_type.name())]),
        key: upload.key,
        expires_at: upload.expires_at,
    };
    Ok((StatusCode::CREATED, Json(address)))
}

/// Takes the file. The secret in the address is the permission; it is good for one file.
#[utoipa::path(put, path = "/media/uploads/{ticket}", tag = "media", security(()), params(("ticket" = String, Path)), request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses((status = 200, body = StoredUpload), (status = 400, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, description = "it was used", body = ProblemBody), (status = 413, body = ProblemBody), (status = 415, body = ProblemBody), (status = 429, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn store_upload(
    State(state): State<Media>,
    Path(secret): Path<String>,
    body: Body,
) -> Result<Json<StoredUpload>> {
    let _permit = state.incoming.try_acquire().map_err(|_| Error::Busy)?;
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    let upload = db::find(&mut conn, &fingerprint(&secret)).await?;
    drop(conn);
    let upload = upload
        .filter(|one| one.expires_at > now || one.stored_at.is_some())
        .ok_or(Error::NoUpload)?;
    if upload.stored_at.is_some() {
        return Err(Error::UploadUsed);
    }
    if upload.tries >= MOST_TRIES {
        return Err(Error::TooManyTries);
    }
    let file = timeout(WHOLE, receive(body, &upload)).await;
    let file = file.unwrap_or_else(|_| Err(broken("it took longer than 120 s")))?;

    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.now();
    let attempt = db::begin_try(&mut conn, &upload.key, now)
        .await?
        .ok_or(Error::UploadUsed)?;
    drop(conn);
    let object = object_key(&upload.key, attempt);
    state.objects.put(&object, file.into()).await?;
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.now();
    if !db::store(&mut conn, &upload.key, &object, now).await? {
        if let Err(error) = state.objects.delete(&object).await {
            warn!("the object {object} waits for the cleanup: {error}");
        }
        return Err(Error::UploadUsed);
    }
    let Upload {
        key,
        content_type,
        size,
        ..
    } = upload;
    Ok(Json(StoredUpload {
        key,
        content_type,
        size,
    }))
}

/// Gives a provider an input of a step. The secret in the address, which is good for two hours, is the permission.
#[utoipa::path(get, path = "/media/uploads/{ticket}", tag = "media", security(()), params(("ticket" = String, Path)), responses((status = 200, description = "the file", content_type = "application/octet-stream"), (status = 404, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn fetch_linked(
    State(state): State<Media>,
    Path(secret): Path<String>,
) -> Result<Response> {
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    let key = db::linked(&mut conn, &fingerprint(&secret), now).await?;
    drop(conn);
    let object = match state.objects.read(&key.ok_or(Error::NoUpload)?, None).await {
        Err(error) if error.is_absent() => return Err(Error::NoUpload),
        object => object?,
    };
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, object.meta.size.to_string()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    let body = Body::from_stream(object.into_stream().map_err(std::io::Error::other));
    Ok((headers, body).into_response())
}

/// Reads a file that is what was announced.
async fn receive(body: Body, upload: &Upload) -> Result<Vec<u8>> {
    let announced = usize::try_from(upload.size)
        .unwrap_or(MAX_SIZE)
        .min(MAX_SIZE);
    let mut file = Vec::new();
    let mut chunks = body.into_data_stream();
    let silent = |_| broken("nothing came for 20 s");
    while let Some(chunk) = timeout(SILENCE, chunks.next()).await.map_err(silent)? {
        let chunk = chunk.map_err(|error| broken(&error.to_string()))?;
        if file.len() + chunk.len() > announced {
            return Err(Error::TooLarge { announced });
        }
        file.extend_from_slice(&chunk);
    }
    if ContentType::of(&file) != Some(upload.content_type) {
        let announced = upload.content_type.name();
        return Err(Error::WrongKind { announced });
    }
    if file.len() < announced {
        let came = file.len();
        return Err(Error::TooSmall { came, announced });
    }
    Ok(file)
}

fn broken(reason: &str) -> Error {
    let reason = reason.to_owned();
    Error::BrokenUpload { reason }
}
