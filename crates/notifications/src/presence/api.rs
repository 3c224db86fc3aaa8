//! The routes of presence.

use axum::extract::State;
use contracts::UserId;
use platform::CurrentUser;
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::problem::ProblemBody;

use super::{Presence, together};
use crate::{Error, Notifications, Result};

const TAG: &str = "presence";

/// Lists who is online: everybody for admins, the caller alone for others.
#[utoipa::path(get, path = "/notifications/presence", tag = TAG, params(PageQuery),
    responses((status = 200, body = Page<Presence>), (status = 401, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn list_presence(
    State(state): State<Notifications>,
    user: CurrentUser,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Presence>>> {
    let all = match user.is_admin {
        true => together(state.board.all().await.map_err(Error::Presence)?),
        false => {
            let own = state.board.of(user.id).await.map_err(Error::Presence)?;
            vec![own].into_iter().filter(|own| own.online).collect()
        }
    };
    let slice = page.slice();
    let total = all.len() as i64;
    let shown = all
        .into_iter()
        .skip(usize::try_from(slice.offset).unwrap_or(usize::MAX))
        .take(usize::try_from(slice.limit).unwrap_or(0));
    Ok(Json(Page::new(shown.collect(), total, page)))
}

/// Tells whether a user is online.
#[utoipa::path(get, path = "/notifications/presence/{userId}", tag = TAG, params(("userId" = String, Path)),
    responses((status = 200, body = Presence), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn find_presence(
    State(state): State<Notifications>,
    user: CurrentUser,
    Path(wanted): Path<UserId>,
) -> Result<Json<Presence>> {
    let wanted = user.acting_for(Some(wanted))?;
    Ok(Json(state.board.of(wanted).await.map_err(Error::Presence)?))
}
