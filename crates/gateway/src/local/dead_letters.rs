//! Events that a service could not handle, for an administrator: what they are, and the hand on them.

use axum::extract::State;
use contracts::EventId;
use garde::Validate;
use platform::events::dead_letter::{self, DeadLetter};
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::problem::ProblemBody;
use platform::{Admin, Problem};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::Local;

/// Whose dead letters are shown.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DeadLetterQuery {
    /// Only those of this consumer, as in `notifications`.
    #[garde(inner(length(min = 1, max = 100)))]
    consumer: Option<String>,
}

/// What was done with a dead letter.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct LetterDone {
    message: &'static str,
}

/// Events that a consumer failed to handle again and again, of all services; the latest first.
#[utoipa::path(get, path = "/gateway/dead-letters", tag = "gateway", params(PageQuery, DeadLetterQuery), responses(
    (status = 200, body = Page<DeadLetter>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn list_dead_letters(
    State(local): State<Local>,
    _: Admin,
    Query(page): Query<PageQuery>,
    Query(query): Query<DeadLetterQuery>,
) -> Result<Json<Page<DeadLetter>>, Problem> {
    let consumer = query.consumer.as_deref();
    let mut conn = local.platform.db.acquire().await?;
    let letters = dead_letter::list(&mut conn, consumer, page.slice()).await?;
    let total = dead_letter::count(&mut conn, consumer).await?;
    Ok(Json(Page::new(letters, total, page)))
}

/// Lets the consumer try it again; other consumers of the event have nothing to do with it.
#[utoipa::path(post, path = "/gateway/dead-letters/{consumer}/{eventId}/replay", tag = "gateway", params(("consumer" = String, Path), ("eventId" = String, Path)), responses(
    (status = 200, body = LetterDone), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
    (status = 404, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn replay_dead_letter(
    State(local): State<Local>,
    Admin(admin): Admin,
    Path((consumer, event)): Path<(String, EventId)>,
) -> Result<Json<LetterDone>, Problem> {
    let mut tx = local.platform.db.begin().await?;
    let now = local.platform.clock.now();
    if !dead_letter::replay(&mut tx, &consumer, &event, now).await? {
        return Err(Problem::not_found("dead letter"));
    }
    tx.commit().await?;
    info!(event.id = %event, user.id = %admin.id, "{consumer} tries the event {event} again, by user {}", admin.id);
    Ok(Json(LetterDone {
        message: "The event is handled again",
    }))
}

/// Forgets it: the consumer will never handle the event.
#[utoipa::path(delete, path = "/gateway/dead-letters/{consumer}/{eventId}", tag = "gateway", params(("consumer" = String, Path), ("eventId" = String, Path)), responses(
    (status = 200, body = LetterDone), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
    (status = 404, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn discard_dead_letter(
    State(local): State<Local>,
    Admin(admin): Admin,
    Path((consumer, event)): Path<(String, EventId)>,
) -> Result<Json<LetterDone>, Problem> {
    let mut tx = local.platform.db.begin().await?;
    let now = local.platform.clock.now();
    if !dead_letter::discard(&mut tx, &consumer, &event, now).await? {
        return Err(Problem::not_found("dead letter"));
    }
    tx.commit().await?;
    info!(event.id = %event, user.id = %admin.id, "{consumer} never handles the event {event}, by user {}", admin.id);
    Ok(Json(LetterDone {
        message: "The event is forgotten",
    }))
}
