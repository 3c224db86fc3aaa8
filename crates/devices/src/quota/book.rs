//! Booking what others run, by services and admins.

use axum::extract::State;
use axum::response::Response;
use contracts::{DeviceId, UserId};
use garde::Validate;
use http::StatusCode;
use platform::http::{Json, Path};
use platform::idempotency::{Idempotent, Turn};
use platform::{Caller, Problem};
use serde::Deserialize;

use super::report::QuotaView;
use super::{Amounts, Quotas, db, room};
use crate::error::Result;

/// How much is booked or given back.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BookAmounts {
    /// Whose quota; the caller's where it is left out.
    #[garde(skip)]
    pub user_id: Option<UserId>,
    /// Devices.
    #[garde(range(min = 0, max = 1_000_000))]
    pub device_count: Option<i64>,
    /// Processor cores.
    #[garde(range(min = 0, max = 1_000_000))]
    pub cpu_cores: Option<i64>,
    /// Memory; `memoryGB` on the wire and in refusals.
    #[garde(range(min = 0.0, max = 1_000_000.0))]
    pub memory_g_b: Option<f64>,
    /// Storage; `storageGB` on the wire and in refusals.
    #[garde(range(min = 0.0, max = 1_000_000.0))]
    pub storage_g_b: Option<f64>,
}

/// Whether a device is counted from now on, or no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Booking {
    /// It is counted.
    Increment,
    /// It is given back.
    Decrement,
}

/// A device that others run.
#[derive(Clone, Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BookDevice {
    /// The device.
    #[garde(skip)]
    pub device_id: DeviceId,
    /// Processor cores.
    #[garde(range(min = 0, max = 1_000_000))]
    pub cpu_cores: Option<i64>,
    /// Memory; `memoryGB` on the wire and in refusals.
    #[garde(range(min = 0.0, max = 1_000_000.0))]
    pub memory_g_b: Option<f64>,
    /// Storage; `storageGB` on the wire and in refusals.
    #[garde(range(min = 0.0, max = 1_000_000.0))]
    pub storage_g_b: Option<f64>,
    /// What to do.
    #[garde(skip)]
    pub operation: Booking,
}

impl BookAmounts {
    fn amounts(&self) -> Amounts {
        Amounts {
            devices: self.device_count.unwrap_or_default(),
            cpu_cores: self.cpu_cores.unwrap_or_default(),
            memory_mb: megabytes(self.memory_g_b),
            storage_mb: megabytes(self.storage_g_b),
            ..Amounts::default()
        }
    }
}

/// Charges a quota with what others run; with an `Idempotency-Key` once, however often it is sent.
#[utoipa::path(post, path = "/quotas/deduct", tag = "quotas", params(("Idempotency-Key" = Option<String>, Header)), request_body = BookAmounts,
    responses((status = 200, body = QuotaView), (status = 403, description = "There is no room, or the caller may not")))]
pub async fn deduct_quota(
    State(quotas): State<Quotas>,
    caller: Caller,
    body: Idempotent<BookAmounts>,
) -> Result<Response> {
    change(&quotas, &caller, body, 1).await
}

/// Gives back what a quota was charged with; with an `Idempotency-Key` once, however often it is sent.
#[utoipa::path(post, path = "/quotas/restore", tag = "quotas", params(("Idempotency-Key" = Option<String>, Header)), request_body = BookAmounts,
    responses((status = 200, body = QuotaView), (status = 403)))]
pub async fn restore_quota(
    State(quotas): State<Quotas>,
    caller: Caller,
    body: Idempotent<BookAmounts>,
) -> Result<Response> {
    change(&quotas, &caller, body, -1).await
}

async fn change(
    quotas: &Quotas,
    caller: &Caller,
    Idempotent { body, key }: Idempotent<BookAmounts>,
    sign: i64,
) -> Result<Response> {
    trusted(caller)?;
    let user = caller.acting_for(body.user_id.clone())?;
    let (now, amounts) = (quotas.platform.clock.now(), body.amounts());
    let mut tx = quotas.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, &caller.key_owner()).await? {
        Turn::First(turn) => turn,
        Turn::Replay(reply) => return Ok(reply),
    };
    let quota = db::lock(&mut tx, quotas, &user, None, now).await?;
    if sign > 0 {
        room(&quota.limits, &quota.used, &amounts)?;
    }
    db::add_extra(&mut tx, &user, (&amounts, sign), now).await?;
    let quota = db::lock(&mut tx, quotas, &user, None, now).await?;
    let reply = turn
        .reply(&mut tx, StatusCode::OK, &quota.view(now))
        .await?;
    tx.commit().await?;
    Ok(reply)
}

/// Charges a quota with a device that others run, or gives it back: each once, however often it is said. The devices of
/// this service are counted by themselves.
#[utoipa::path(post, path = "/quotas/user/{user_id}/usage", tag = "quotas", params(("user_id" = String, Path)), request_body = BookDevice,
    responses((status = 200, body = QuotaView), (status = 403, description = "There is no room, or the caller may not")))]
pub async fn book_device(
    State(quotas): State<Quotas>,
    caller: Caller,
    Path(user): Path<UserId>,
    Json(body): Json<BookDevice>,
) -> Result<Json<QuotaView>> {
    trusted(&caller)?;
    let now = quotas.platform.clock.now();
    let mut tx = quotas.platform.db.begin().await?;
    let quota = db::lock(&mut tx, &quotas, &user, None, now).await?;
    match body.operation {
        Booking::Increment => {
            let wanted = Amounts {
                devices: 1,
                cpu_cores: body.cpu_cores.unwrap_or_default(),
                memory_mb: megabytes(body.memory_g_b),
                storage_mb: megabytes(body.storage_g_b),
                ..Amounts::default()
            };
            if db::book(&mut tx, &user, (&body.device_id, &wanted), now).await? {
                room(&quota.limits, &quota.used, &wanted)?;
            }
        }
        Booking::Decrement => {
            db::unbook(&mut tx, &user, &body.device_id, now).await?;
        }
    }
    let quota = db::lock(&mut tx, &quotas, &user, None, now).await?;
    tx.commit().await?;
    Ok(Json(quota.view(now)))
}

/// Only services and admins book.
fn trusted(caller: &Caller) -> Result<(), Problem> {
    match caller {
        Caller::Service(_) => Ok(()),
        Caller::User(user) if user.is_admin => Ok(()),
        Caller::User(_) => Err(Problem::forbidden("only admins may do this")),
        Caller::Sandbox => Err(Problem::unauthenticated("sign in as an admin")),
    }
}

/// Rounded up to whole megabytes.
fn megabytes(gb: Option<f64>) -> i64 {
    // Its rule keeps it between 0 and 1,000,000.
    (gb.unwrap_or_default() * 1024.0).ceil() as i64
}
