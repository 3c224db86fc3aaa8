//! Use of a device that a service says begins and ends, for devices that do not tell it themselves.

use axum::extract::State;
use contracts::{DeviceId, Money, Timestamp, TransactionId, UserId};
use garde::Validate;
use platform::http::Json;
use platform::problem::ProblemBody;
use platform::{Caller, Problem};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::ResourceType;
use super::db;
use super::debt::{self, Charge};
use super::price::Quantity;
use super::record::{self, NewUsage};
use crate::{Billing, Error, Result};

/// A device whose use begins.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StartUsage {
    /// By whom; the caller where it is left out.
    #[garde(skip)]
    pub user_id: Option<UserId>,
    #[garde(skip)]
    pub device_id: DeviceId,
}

/// A record that ends.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StopUsage {
    #[garde(skip)]
    pub record_id: TransactionId,
}

/// The use of a device.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageSession {
    pub id: TransactionId,
    /// The same as `id`.
    pub record_id: TransactionId,
    pub user_id: UserId,
    pub device_id: DeviceId,
    #[sqlx(rename = "started_at")]
    pub start_time: Timestamp,
    /// Absent while it lasts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[sqlx(rename = "stopped_at")]
    pub end_time: Option<Timestamp>,
    /// What it cost, once it has ended: 0 where the device's own hours had billed all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_cost: Option<Money>,
}

macro_rules! sessions {
    () => {
        "select s.id, s.id as record_id, s.user_id, s.device_id, s.started_at, s.stopped_at,
            case when s.stopped_at is not null then coalesce(r.total_cost, 0) end as total_cost
        from billing.usage_sessions s left join billing.usage_records r on r.id = s.usage_id "
    };
}

fn check(caller: &Caller) -> Result<()> {
    match caller {
        Caller::Service(_) => Ok(()),
        Caller::User(user) if user.is_admin => Ok(()),
        Caller::User(_) => Err(Problem::forbidden("usage is told by admins and services").into()),
        Caller::Sandbox => {
            Err(Problem::unauthenticated("sign in: a bearer token is required").into())
        }
    }
}

/// Begins the use of a device; where it is in use by the same user, shows that.
#[utoipa::path(post, path = "/billing/usage/start", tag = "usage", request_body = StartUsage,
    responses((status = 200, body = UsageSession), (status = 403, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn start_usage(
    State(state): State<Billing>,
    caller: Caller,
    Json(body): Json<StartUsage>,
) -> Result<Json<UsageSession>> {
    check(&caller)?;
    let user = caller.acting_for(body.user_id)?;
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    sqlx::query(
        "-- usage::start
        insert into billing.usage_sessions (id, user_id, device_id, started_at) values ($1, $2, $3, $4)
        on conflict (device_id) where stopped_at is null do nothing",
    )
    .bind(TransactionId::new())
    .bind(&user)
    .bind(&body.device_id)
    .bind(now)
    .execute(&mut *conn)
    .await?;
    let session: Option<UsageSession> = sqlx::query_as(concat!(
        sessions!(),
        "where s.device_id = $1 and s.stopped_at is null"
    ))
    .bind(&body.device_id)
    .fetch_optional(&mut *conn)
    .await?;
    session
        .filter(|session| session.user_id == user)
        .map(Json)
        .ok_or(Error::DeviceInUse)
}

/// Ends a use and bills it by the minute begun, save minutes that hours told by the device have billed; asked again, shows it.
#[utoipa::path(post, path = "/billing/usage/stop", tag = "usage", request_body = StopUsage,
    responses((status = 200, body = UsageSession), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn stop_usage(
    State(state): State<Billing>,
    caller: Caller,
    Json(body): Json<StopUsage>,
) -> Result<Json<UsageSession>> {
    check(&caller)?;
    let mut tx = state.platform.db.begin().await?;
    let lock = "select id from billing.usage_sessions where id = $1 for update";
    sqlx::query(lock)
        .bind(&body.record_id)
        .execute(&mut *tx)
        .await?;
    let session = find(&mut tx, &body.record_id).await?;
    if session.end_time.is_none() {
        let now = state.platform.clock.shared(&mut tx).await?;
        stop(&mut tx, &session, &state, now).await?;
    }
    let session = find(&mut tx, &body.record_id).await?;
    tx.commit().await?;
    Ok(Json(session))
}

async fn find(conn: &mut PgConnection, id: &TransactionId) -> Result<UsageSession> {
    let found = sqlx::query_as(concat!(sessions!(), "where s.id = $1"));
    let found: Option<UsageSession> = found.bind(id).fetch_optional(conn).await?;
    found.ok_or(Error::UsageNotFound)
}

/// Minutes of a span that sessions of a device have billed.
pub async fn minutes_within(
    conn: &mut PgConnection,
    device: &DeviceId,
    (from, to): (Timestamp, Timestamp),
) -> sqlx::Result<i32> {
    sqlx::query_scalar(
        "-- session::minutes_within
        select coalesce(sum(ceil(
            extract(epoch from least(stopped_at, $3) - greatest(started_at, $2)) / 60)), 0)::integer
        from billing.usage_sessions where device_id = $1 and stopped_at > $2 and started_at < $3",
    )
    .bind(device)
    .bind(from)
    .bind(to)
    .fetch_one(conn)
    .await
}

/// Ends a locked session, and bills what the hours of its device have not billed.
async fn stop(
    conn: &mut PgConnection,
    session: &UsageSession,
    state: &Billing,
    now: Timestamp,
) -> Result<()> {
    let began_at = session.start_time;
    let ended_at = now.max(began_at);
    db::lock_device(conn, &session.device_id).await?;
    let told = db::minutes_within(conn, &session.device_id, (began_at, ended_at)).await?;
    let lasted = (ended_at.utc() - began_at.utc()).num_milliseconds();
    let begun = (lasted + 59_999) / 60_000;
    let minutes = begun.max(1) - told;
    let usage = match minutes > 0 {
        true => Some(bill(conn, session, minutes, ended_at, state).await?),
        false => None,
    };
    sqlx::query(
        "-- usage::stop
        update billing.usage_sessions set stopped_at = $2, usage_id = $3 where id = $1 and stopped_at is null",
    )
    .bind(&session.id)
    .bind(ended_at)
    .bind(usage)
    .execute(conn)
    .await?;
    Ok(())
}

async fn bill(
    conn: &mut PgConnection,
    session: &UsageSession,
    minutes: i64,
    ended_at: Timestamp,
    state: &Billing,
) -> Result<TransactionId> {
    let (user, device, began_at) = (&session.user_id, &session.device_id, session.start_time);
    let quantity = Quantity::whole(minutes);
    let price = record::due(
        conn,
        user,
        ResourceType::DeviceTime,
        (began_at, ended_at),
        state,
    )
    .await?;
    let cost = price.cost(quantity);
    let charge = Charge {
        user,
        device,
        began_at,
        amount: cost,
    };
    let transaction = match cost > Money::ZERO {
        true => debt::charge(conn, charge, ended_at).await?,
        false => None,
    };
    let id = TransactionId::new();
    let usage = NewUsage {
        id: &id,
        user,
        device,
        resource: ResourceType::DeviceTime,
        quantity,
        price,
        cost,
        transaction: transaction.as_ref(),
        description: None,
        span: (began_at, ended_at),
    };
    record::insert(conn, &usage, ended_at).await?;
    Ok(id)
}
