//! Links by which a package is fetched without signing in, for a while.

use axum::extract::{FromRequestParts, State};
use contracts::AppId;
use garde::Validate;
use http::request::Parts;
use platform::http::{Json, Path, Query};
use platform::problem::ProblemBody;
use platform::{CurrentUser, Problem};
use serde::{Deserialize, Serialize};

use super::api::visible;
use crate::{Apps, Result};

/// Seconds for which a link is good unless its maker says otherwise.
const USUAL: i64 = 900;

/// For how long a link is wanted.
#[derive(Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MakeLink {
    /// Seconds, 60 to 86400; default 900.
    #[garde(range(min = 60, max = 86_400))]
    expires_in: Option<i64>,
}

/// A link to a package.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// Where the package is fetched, below this service or a gateway. Whoever has it may.
    url: String,
    /// Until when.
    expires_at: contracts::Timestamp,
}

#[derive(Debug, Deserialize, Validate)]
struct Signed {
    #[garde(skip)]
    expires: i64,
    #[garde(length(max = 128))]
    signature: String,
}

/// By what right a package is fetched.
pub enum Right {
    /// A user's, who must be allowed to see the app.
    User(CurrentUser),
    /// A link's, whose maker was.
    Link,
}

impl FromRequestParts<Apps> for Right {
    type Rejection = Problem;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Apps,
    ) -> std::result::Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        if !query.split('&').any(|pair| pair.starts_with("signature=")) {
            let user = CurrentUser::from_request_parts(parts, state).await?;
            return Ok(Self::User(user));
        }
        let Query(signed) = Query::<Signed>::from_request_parts(parts, state).await?;
        let (auth, now) = (&state.platform.auth, state.platform.clock.now());
        let path = parts.uri.path();
        match auth.verify_link(path, signed.expires, &signed.signature, now) {
            true => Ok(Self::Link),
            false => Err(Problem::unauthenticated(
                "the link has expired or was changed: have another one made",
            )),
        }
    }
}

/// Makes a link by which anybody fetches the package until it expires, whole or in ranges.
#[utoipa::path(post, path = "/apps/{app_id}/link", tag = "apps", params(("app_id" = AppId, Path)), request_body = MakeLink, responses((status = 200, body = Link), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn make_link(
    State(state): State<Apps>,
    user: CurrentUser,
    Path(id): Path<AppId>,
    Json(wanted): Json<MakeLink>,
) -> Result<Json<Link>> {
    let app = visible(&state, &user, id).await?;
    let seconds = wanted.expires_in.unwrap_or(USUAL);
    let expires_at = state.platform.clock.now() + chrono::TimeDelta::seconds(seconds);
    let expires = expires_at.utc().timestamp();
    let path = format!("/apps/{}/download", app.id);
    let signature = state.platform.auth.sign_link(&path, expires);
    Ok(Json(Link {
        url: format!("{path}?expires={expires}&signature={signature}"),
        expires_at,
    }))
}
