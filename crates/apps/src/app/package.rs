//! Packages for the services that put them on devices.

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use contracts::{AppId, UserId};
use futures::TryStreamExt;
use garde::Validate;
use http::header;
use platform::Problem;
use platform::auth::Caller;
use platform::http::{Path, Query};
use serde::Deserialize;

use super::db;
use crate::{Apps, Error, Result};

/// Names the Android package of what is given.
pub const PACKAGE_NAME: &str = "x-cloudphone-package";

/// For whom a package is wanted.
#[derive(Debug, Deserialize, Validate)]
#[serde(rename_all = "camelCase")]
pub struct GivePackage {
    /// Who must be allowed to see the app; left out for an administrator.
    #[garde(skip)]
    user_id: Option<UserId>,
}

/// Gives a package whole to another service, which says for whom it wants it. Whoever calls must be a service: the word of
/// anybody else for a user counts nothing.
///
/// # Errors
/// 401 for who is no service, 404 where the user may not see the app.
pub async fn give_package(
    State(state): State<Apps>,
    caller: Caller,
    Path(id): Path<AppId>,
    Query(wanted): Query<GivePackage>,
) -> Result<Response> {
    if !matches!(caller, Caller::Service(_)) {
        return Err(Problem::unauthenticated("the credential of a service is required").into());
    }
    let found = db::find(&mut *state.platform.db.acquire().await?, &id).await?;
    let may_see = |owner: &UserId| wanted.user_id.as_ref().is_none_or(|user| user == owner);
    let app = found
        .filter(|app| app.is_public() || may_see(&app.uploader_id))
        .ok_or(Error::NotFound(id))?;
    let object = match state.objects.read(&app.object_key, None).await {
        // Deleted between the row and its object.
        Err(error) if error.is_absent() => return Err(Error::NotFound(app.id)),
        object => object?,
    };
    let size = object.range.end - object.range.start;
    let headers = [
        (header::CONTENT_LENGTH.as_str(), size.to_string()),
        (PACKAGE_NAME, app.package_name),
    ];
    let body = Body::from_stream(object.into_stream().map_err(std::io::Error::other));
    Ok((headers, body).into_response())
}
