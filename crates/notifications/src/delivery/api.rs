//! The routes of deliveries.

use axum::extract::State;
use contracts::{NotificationId, UserId};
use garde::Validate;
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::problem::ProblemBody;
use platform::{Admin, CurrentUser};
use serde::Deserialize;

use super::db::{self, Delivery, Filter, State as DeliveryState};
use crate::notification::{self, Channel};
use crate::{Error, Notifications, Result};

const TAG: &str = "notification-deliveries";

/// Which deliveries a list shows.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
#[garde(allow_unvalidated)]
pub struct DeliveryQuery {
    /// Only those to this user.
    user_id: Option<UserId>,
    /// Only those by this way.
    channel: Option<Channel>,
    /// Only those that stand here.
    #[param(inline)]
    state: Option<DeliveryState>,
}

/// Lists what leaves the platform, newest first.
#[utoipa::path(get, path = "/notifications/deliveries", tag = TAG, params(PageQuery, DeliveryQuery),
    responses((status = 200, body = Page<Delivery>), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_deliveries(
    State(state): State<Notifications>,
    _: Admin,
    Query(page): Query<PageQuery>,
    Query(query): Query<DeliveryQuery>,
) -> Result<Json<Page<Delivery>>> {
    let filter = Filter {
        user_id: query.user_id,
        channel: query.channel,
        state: query.state,
    };
    let mut conn = state.platform.db.acquire().await?;
    let deliveries = db::list(&mut conn, &filter, page.slice()).await?;
    let total = db::count(&mut conn, &filter).await?;
    Ok(Json(Page::new(deliveries, total, page)))
}

/// Shows how far a notification has come on each way that leads out of the platform.
#[utoipa::path(get, path = "/notifications/{id}/deliveries", tag = TAG, params(("id" = String, Path)),
    responses((status = 200, body = Vec<Delivery>), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn list_deliveries_of_notification(
    State(state): State<Notifications>,
    user: CurrentUser,
    Path(id): Path<NotificationId>,
) -> Result<Json<Vec<Delivery>>> {
    let mut conn = state.platform.db.acquire().await?;
    let found = notification::db::find(&mut conn, &id).await?;
    if !found.is_some_and(|stored| user.may_see(&stored.user_id)) {
        return Err(Error::NotFound(id));
    }
    Ok(Json(db::of_notification(&mut conn, &id).await?))
}

/// Tries one that failed again.
#[utoipa::path(post, path = "/notifications/deliveries/{id}/retry", tag = TAG, params(("id" = String, Path)),
    responses((status = 200, body = Delivery), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn retry_delivery(
    State(state): State<Notifications>,
    _: Admin,
    Path(id): Path<NotificationId>,
) -> Result<Json<Delivery>> {
    let mut tx = state.platform.db.begin().await?;
    let found = db::find(&mut tx, id.as_str()).await?;
    let found = found.ok_or(Error::DeliveryNotFound)?;
    notification::db::lock_inbox(&mut tx, &found.user_id).await?;
    let delivery = db::retry(&mut tx, id.as_str()).await?;
    let delivery = delivery.ok_or(Error::DeliveryNotFailed)?;
    tx.commit().await?;
    state.deliveries_due.send_replace(());
    Ok(Json(delivery))
}
