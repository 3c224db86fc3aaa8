//! Booking what others run, by services and admins.

use axum::extract::State;
use contracts::{DeviceId, UserId};
use garde::Validate;
use platform::Caller;
use platform::Problem;
use platform::http::{Json, Path};
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
    #[schema(inline)]
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

/// Charges a quota with what others run.
#[utoipa::path(post, path = "/quotas/deduct", tag = "quotas", request_body = BookAmounts,
    responses((status = 200, body = QuotaView), (status = 403, description = "There is no room, or the caller may not")))]
pub async fn deduct_quota(
    State(quotas): State<Quotas>,
    caller: Caller,
    Json(body): Json<BookAmounts>,
) -> Result<Json<QuotaView>> {
    trusted(&caller)?;
    let user = caller.acting_for(body.user_id.clone())?;
    let (now, wanted) = (quotas.platform.clock.now(), body.amounts());
    let mut tx = quotas.platform.db.begin().await?;
    let quota = db::lock(&mut tx, &quotas, &user, None, now).await?;
    room(&quota.limits, &quota.used, &wanted)?;
    db::add_extra(&mut tx, &user, (&wanted, 1), now).await?;
    let quota = db::lock(&mut tx, &quotas, &user, None, now).await?;
    tx.commit().await?;
    Ok(Json(quota.view(now)))
}

/// Gives back what a quota was charged with.
#[utoipa::path(post, path = "/quotas/restore", tag = "quotas", request_body = BookAmounts,
    responses((status = 200, body = QuotaView), (status = 403)))]
pub async fn restore_quota(
    State(quotas): State<Quotas>,
    caller: Caller,
    Json(body): Json<BookAmounts>,
) -> Result<Json<QuotaView>> {
    trusted(&caller)?;
    let user = caller.acting_for(body.user_id.clone())?;
    let now = quotas.platform.clock.now();
    let mut tx = quotas.platform.db.begin().await?;
    db::lock(&mut tx, &quotas, &user, None, now).await?;
    db::add_extra(&mut tx, &user, (&body.amounts(), -1), now).await?;
    let quota = db::lock(&mut tx, &quotas, &user, None, now).await?;
    tx.commit().await?;
    Ok(Json(quota.view(now)))
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
                db::add_extra(&mut tx, &user, (&wanted, 1), now).await?;
            }
        }
        Booking::Decrement => {
            if let Some(booked) = db::unbook(&mut tx, &user, &body.device_id, now).await? {
                db::add_extra(&mut tx, &user, (&booked, -1), now).await?;
            }
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
