//! The routes of notifications.

use axum::extract::{FromRequestParts, State};
use axum::response::Response;
use chrono::{Datelike, NaiveDate, NaiveTime};
use contracts::{NotificationId, Timestamp, UserId};
use http::StatusCode;
use http::request::Parts;
use platform::auth::Caller;
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::idempotency::{Idempotent, Turn};
use platform::{CurrentUser, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::db::{self, Filter};
use super::store::store;
use super::{Channel, Draft, Kind, MAX_DATA, Notification, Priority, Status};
use crate::{Error, Notifications, Result, metrics};

const TAG: &str = "notifications";

/// A notification to send.
#[derive(Debug, Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SendNotification {
    /// Who is told.
    #[garde(skip)]
    user_id: UserId,
    /// The text.
    #[garde(length(chars, min = 1, max = 1000))]
    message: String,
    /// The heading; `Notification` where there is none.
    #[garde(inner(length(chars, min = 1, max = 200)))]
    title: Option<String>,
    /// What it is about; `system` where it is not said.
    #[garde(skip)]
    #[serde(rename = "type")]
    kind: Option<Kind>,
    /// How much it matters; `normal` where it is not said.
    #[garde(skip)]
    priority: Option<Priority>,
    /// Facts for programs, at most 16 KiB.
    #[garde(skip)]
    #[schema(value_type = Option<Object>)]
    data: Option<Map<String, Value>>,
    /// The ways to the user; where none is named, those that the user chose, or `websocket`.
    #[garde(inner(length(min = 1, max = 4)))]
    channels: Option<Vec<Channel>>,
    /// When it is no longer of interest.
    #[garde(inner(custom(storable)))]
    expires_at: Option<Timestamp>,
}

/// Which notifications a list shows.
#[derive(Debug, Deserialize, garde::Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
#[garde(allow_unvalidated)]
pub struct ListQuery {
    /// Whose; only admins name others.
    user_id: Option<UserId>,
    /// Which page, from 1.
    #[garde(range(min = 1, max = 1_000_000_000))]
    page: Option<i64>,
    /// How many on a page, 1 to 500; default 10.
    #[garde(range(min = 1))]
    page_size: Option<i64>,
    /// The same as `pageSize`.
    #[garde(range(min = 1))]
    limit: Option<i64>,
    /// Only unread or only read ones.
    status: Option<Status>,
    /// Only those about this.
    #[serde(rename = "type")]
    kind: Option<Kind>,
    /// Only unread ones.
    #[param(value_type = Option<bool>)]
    unread_only: Option<Truth>,
    /// Only those made at or after: a time, or the beginning of a day.
    start_date: Option<String>,
    /// Only those made at or before: a time, or the end of a day.
    end_date: Option<String>,
}

/// `true`, `false`, `1` or `0` in a query.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(from = "TruthForm")]
pub struct Truth(bool);

#[derive(Deserialize)]
enum TruthForm {
    #[serde(rename = "true", alias = "1")]
    Yes,
    #[serde(rename = "false", alias = "0")]
    No,
}

impl From<TruthForm> for Truth {
    fn from(form: TruthForm) -> Self {
        Self(matches!(form, TruthForm::Yes))
    }
}

/// A page of notifications, and how many are unread on all pages.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NotificationPage {
    #[serde(flatten)]
    page: Page<Notification>,
    unread_count: i64,
}

/// Whose notifications are meant.
#[derive(Debug, Default, Deserialize, garde::Validate, utoipa::ToSchema, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct OfUser {
    /// The user; only admins name others.
    #[garde(skip)]
    pub user_id: Option<UserId>,
}

/// A number.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Count {
    count: i64,
}

/// What was done, in words.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Done {
    message: &'static str,
}

impl Done {
    /// Says so.
    pub fn new(message: &'static str) -> Self {
        Self { message }
    }
}

/// How many were changed.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Updated {
    updated: u64,
    message: String,
}

/// Which notifications to delete.
#[derive(Debug, Deserialize, garde::Validate, utoipa::ToSchema)]
pub struct DeleteNotifications {
    /// 1 to 100 of the caller's.
    #[garde(length(min = 1, max = 100))]
    #[schema(min_items = 1, max_items = 100)]
    ids: Vec<NotificationId>,
}

/// How many were deleted.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Deleted {
    deleted: i64,
    message: String,
}

/// Whether this call may use what the sandbox opens.
#[derive(Clone, Copy, Debug)]
pub struct InSandbox(bool);

impl FromRequestParts<Notifications> for InSandbox {
    type Rejection = Problem;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Notifications,
    ) -> std::result::Result<Self, Problem> {
        Ok(Self(state.platform.auth.opens_sandbox(parts)))
    }
}

/// Sends a notification: stores it, then delivers it to every socket of the user on every instance.
#[utoipa::path(post, path = "/notifications/send", tag = TAG, operation_id = "send_notification",
    request_body = SendNotification, params(("Idempotency-Key" = Option<String>, Header)), responses((status = 201, body = Notification), (status = 400), (status = 401), (status = 403), (status = 409)))]
pub async fn send_notification(
    state: State<Notifications>,
    sandbox: InSandbox,
    caller: Caller,
    body: Idempotent<SendNotification>,
) -> Result<Response> {
    send(state.0, sandbox, caller, body).await
}

/// The same under the path of the collection.
#[utoipa::path(post, path = "/notifications", tag = TAG, operation_id = "create_notification",
    request_body = SendNotification, params(("Idempotency-Key" = Option<String>, Header)), responses((status = 201, body = Notification), (status = 400), (status = 401), (status = 403), (status = 409)))]
pub async fn create_notification(
    state: State<Notifications>,
    sandbox: InSandbox,
    caller: Caller,
    body: Idempotent<SendNotification>,
) -> Result<Response> {
    send(state.0, sandbox, caller, body).await
}

async fn send(
    state: Notifications,
    InSandbox(sandbox): InSandbox,
    caller: Caller,
    Idempotent { body, key }: Idempotent<SendNotification>,
) -> Result<Response> {
    let mut draft = draft(body)?;
    if !sandbox {
        caller.acting_for(Some(draft.user_id.clone()))?;
    }
    draft.by_user = matches!(&caller, Caller::User(user) if !user.is_admin);
    let sender = match &caller {
        Caller::User(user) => user.id.to_string(),
        Caller::Service(service) => format!("service {service}"),
        Caller::Sandbox => "sandbox".to_owned(),
    };
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, &sender).await? {
        Turn::First(turn) => turn,
        Turn::Replay(reply) => return Ok(reply),
    };
    let stored = store(&mut tx, draft, state.platform.clock.now()).await?;
    let notification: Notification = stored.ok_or(Error::NotWanted)?.into();
    let reply = turn
        .reply(&mut tx, StatusCode::CREATED, &notification)
        .await?;
    tx.commit().await?;

    metrics::notification_sent();
    state.hub.announce(&notification.user_id);
    state.deliveries_due.send_replace(());
    Ok(reply)
}

fn draft(body: SendNotification) -> Result<Draft> {
    check_data(body.data.as_ref())?;
    Ok(Draft {
        user_id: body.user_id,
        kind: body.kind.unwrap_or_default(),
        event: None,
        title: body.title.unwrap_or_else(|| "Notification".to_owned()),
        message: body.message,
        priority: body.priority.unwrap_or_default(),
        channels_named: body.channels.is_some(),
        by_user: false,
        channels: body.channels.unwrap_or_else(|| vec![Channel::Websocket]),
        data: body.data,
        pushes: Vec::new(),
        event_id: None,
        broadcast_id: None,
        expires_at: body.expires_at,
    })
}

/// Whether data is as small as sockets carry it.
///
/// # Errors
/// 400 where it is not.
pub fn check_data(data: Option<&Map<String, Value>>) -> Result<()> {
    let too_large = |data: &Map<String, Value>| {
        serde_json::to_vec(data).is_ok_and(|json| json.len() > MAX_DATA)
    };
    match data.is_some_and(too_large) {
        true => Err(Error::DataTooLarge { limit: MAX_DATA }),
        false => Ok(()),
    }
}

/// Lists the caller's notifications, newest first. With an `Upgrade` header it is the plain WebSocket instead.
#[utoipa::path(get, path = "/notifications", tag = TAG, params(ListQuery),
    responses((status = 200, body = NotificationPage), (status = 400), (status = 401), (status = 403)))]
pub async fn list_notifications(
    State(state): State<Notifications>,
    user: CurrentUser,
    Query(query): Query<ListQuery>,
) -> Result<Json<NotificationPage>> {
    let owner = user.acting_for(query.user_id.clone())?;
    list(&state, owner, query).await
}

/// Lists a user's notifications, newest first.
#[utoipa::path(get, path = "/notifications/user/{userId}", tag = TAG, params(("userId" = String, Path,), ListQuery),
    responses((status = 200, body = NotificationPage), (status = 400), (status = 401), (status = 403)))]
pub async fn list_notifications_of_user(
    State(state): State<Notifications>,
    user: CurrentUser,
    Path(owner): Path<UserId>,
    Query(query): Query<ListQuery>,
) -> Result<Json<NotificationPage>> {
    let owner = user.acting_for(Some(owner))?;
    list(&state, owner, query).await
}

async fn list(
    state: &Notifications,
    owner: UserId,
    query: ListQuery,
) -> Result<Json<NotificationPage>> {
    let unread_only = query.unread_only.is_some_and(|truth| truth.0);
    let filter = Filter {
        user_id: owner,
        status: if unread_only {
            Some(Status::Unread)
        } else {
            query.status
        },
        kind: query.kind,
        from: query
            .start_date
            .map(|text| moment("startDate", &text, NaiveTime::MIN))
            .transpose()?,
        until: query
            .end_date
            .map(|text| moment("endDate", &text, END_OF_DAY))
            .transpose()?,
    };
    let page = PageQuery {
        page: query.page,
        page_size: query.page_size,
        limit: query.limit,
        offset: None,
    };
    let mut conn = state.platform.db.acquire().await?;
    let entries = db::list(&mut conn, &filter, page.slice())
        .await?
        .into_iter()
        .map(Notification::from)
        .collect();
    let total = db::count(&mut conn, &filter).await?;
    let unread_count = db::count_unread(&mut conn, &filter.user_id).await?;
    Ok(Json(NotificationPage {
        page: Page::new(entries, total, page),
        unread_count,
    }))
}

const END_OF_DAY: NaiveTime = match NaiveTime::from_hms_milli_opt(23, 59, 59, 999) {
    Some(time) => time,
    None => NaiveTime::MIN,
};

/// A time, or a day with the time that is meant then.
fn moment(field: &str, text: &str, of_day: NaiveTime) -> std::result::Result<Timestamp, Problem> {
    let read = match text.parse::<NaiveDate>() {
        Ok(day) => Some(day.and_time(of_day).and_utc()),
        // The plus of an offset reads as a blank in a query.
        Err(_) => chrono::DateTime::parse_from_rfc3339(&text.replace(' ', "+"))
            .ok()
            .map(|time| time.to_utc()),
    };
    let time = read.map(Timestamp::from);
    time.filter(|time| storable(time, &()).is_ok())
        .ok_or_else(|| {
            Problem::invalid_field(
                field,
                "is a time such as 2025-10-22T08:00:00Z or a day such as 2025-10-22",
            )
        })
}

/// Years of four digits: chrono knows others, which the store does not take.
fn storable(time: &Timestamp, (): &()) -> garde::Result {
    if (1..=9999).contains(&time.utc().year()) {
        Ok(())
    } else {
        Err(garde::Error::new("must be in the years 1 to 9999"))
    }
}

/// Says how many notifications are unread.
#[utoipa::path(get, path = "/notifications/unread/count", tag = TAG, params(OfUser),
    responses((status = 200, body = Count), (status = 401), (status = 403)))]
pub async fn count_unread(
    State(state): State<Notifications>,
    user: CurrentUser,
    Query(query): Query<OfUser>,
) -> Result<Json<Count>> {
    let owner = user.acting_for(query.user_id)?;
    let mut conn = state.platform.db.acquire().await?;
    Ok(Json(Count {
        count: db::count_unread(&mut conn, &owner).await?,
    }))
}

/// Shows one.
#[utoipa::path(get, path = "/notifications/{id}", tag = TAG, params(("id" = String, Path,)),
    responses((status = 200, body = Notification), (status = 401), (status = 404)))]
pub async fn find_notification(
    State(state): State<Notifications>,
    user: CurrentUser,
    Path(id): Path<NotificationId>,
) -> Result<Json<Notification>> {
    let mut conn = state.platform.db.acquire().await?;
    let stored = db::find(&mut conn, &id)
        .await?
        .filter(|stored| user.may_see(&stored.user_id));
    Ok(Json(stored.ok_or(Error::NotFound(id))?.into()))
}

/// Deletes one.
#[utoipa::path(delete, path = "/notifications/{id}", tag = TAG, params(("id" = String, Path,)),
    responses((status = 200, body = Done), (status = 401), (status = 404)))]
pub async fn delete_notification(
    State(state): State<Notifications>,
    user: CurrentUser,
    Path(id): Path<NotificationId>,
) -> Result<Json<Done>> {
    let mut tx = state.platform.db.begin().await?;
    let owner = owner(&mut tx, &user, &id).await?;
    db::lock_inbox(&mut tx, &owner).await?;
    if !db::delete(&mut tx, &id, state.platform.clock.now()).await? {
        return Err(Error::NotFound(id));
    }
    tx.commit().await?;
    state.hub.announce(&owner);
    Ok(Json(Done::new("Notification deleted")))
}

/// Deletes those of the caller's that are named; what is gone already, or is another's, does not count.
#[utoipa::path(post, path = "/notifications/batch/delete", tag = TAG, request_body = DeleteNotifications,
    responses((status = 200, body = Deleted), (status = 400), (status = 401)))]
pub async fn delete_notifications(
    State(state): State<Notifications>,
    user: CurrentUser,
    Json(body): Json<DeleteNotifications>,
) -> Result<Json<Deleted>> {
    let mut tx = state.platform.db.begin().await?;
    db::lock_inbox(&mut tx, &user.id).await?;
    let now = state.platform.clock.now();
    let deleted = db::delete_all(&mut tx, &user.id, &body.ids, now).await?;
    tx.commit().await?;
    state.hub.announce(&user.id);
    Ok(Json(Deleted {
        deleted,
        message: format!("{deleted} notifications deleted"),
    }))
}

/// Marks one as read.
#[utoipa::path(patch, path = "/notifications/{id}/read", tag = TAG, operation_id = "read_notification", params(("id" = String, Path,)),
    responses((status = 200, body = Notification), (status = 401), (status = 404)))]
pub async fn read_notification(
    State(state): State<Notifications>,
    user: CurrentUser,
    Path(id): Path<NotificationId>,
) -> Result<Json<Notification>> {
    read(&state, &user, id).await
}

/// The same for clients that post.
#[utoipa::path(post, path = "/notifications/{id}/read", tag = TAG, operation_id = "read_notification_by_post", params(("id" = String, Path,)),
    responses((status = 200, body = Notification), (status = 401), (status = 404)))]
pub async fn read_notification_by_post(
    State(state): State<Notifications>,
    user: CurrentUser,
    Path(id): Path<NotificationId>,
) -> Result<Json<Notification>> {
    read(&state, &user, id).await
}

async fn read(
    state: &Notifications,
    user: &CurrentUser,
    id: NotificationId,
) -> Result<Json<Notification>> {
    let mut tx = state.platform.db.begin().await?;
    let owner = owner(&mut tx, user, &id).await?;
    db::lock_inbox(&mut tx, &owner).await?;
    let stored = db::mark_read(&mut tx, &id, state.platform.clock.now()).await?;
    let stored = stored.ok_or(Error::NotFound(id))?;
    tx.commit().await?;
    state.hub.announce(&owner);
    Ok(Json(stored.into()))
}

/// Marks all of a user's as read.
#[utoipa::path(post, path = "/notifications/read-all", tag = TAG, request_body = OfUser,
    responses((status = 200, body = Updated), (status = 401), (status = 403)))]
pub async fn read_all_notifications(
    State(state): State<Notifications>,
    user: CurrentUser,
    Json(body): Json<OfUser>,
) -> Result<Json<Updated>> {
    let owner = user.acting_for(body.user_id)?;
    let mut tx = state.platform.db.begin().await?;
    db::lock_inbox(&mut tx, &owner).await?;
    let updated = db::mark_all_read(&mut tx, &owner, state.platform.clock.now()).await?;
    tx.commit().await?;
    state.hub.announce(&owner);
    Ok(Json(Updated {
        updated,
        message: format!("{updated} notifications marked as read"),
    }))
}

/// Whose a notification is, if the caller may see it.
async fn owner(
    conn: &mut sqlx::PgConnection,
    user: &CurrentUser,
    id: &NotificationId,
) -> Result<UserId> {
    let stored = db::find(conn, id)
        .await?
        .filter(|stored| user.may_see(&stored.user_id));
    stored
        .map(|stored| stored.user_id)
        .ok_or_else(|| Error::NotFound(id.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_means_its_beginning_or_its_end_and_a_time_itself() {
        let from = moment("startDate", "2025-10-22", NaiveTime::MIN).unwrap();
        let until = moment("endDate", "2025-10-22", END_OF_DAY).unwrap();
        let time = moment("endDate", "2025-10-22T10:00:00 02:00", END_OF_DAY).unwrap();

        assert_eq!(from.to_string(), "2025-10-22T00:00:00.000Z");
        assert_eq!(until.to_string(), "2025-10-22T23:59:59.999Z");
        assert_eq!(time.to_string(), "2025-10-22T08:00:00.000Z");
        for text in ["yesterday", "+262142-12-31", "-4800-01-01"] {
            assert!(moment("endDate", text, END_OF_DAY).is_err(), "{text}");
        }
    }
}
