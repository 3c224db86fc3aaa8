//! Starting, stopping and restarting devices, and asking how it goes.

use std::time::Duration;

use axum::extract::State;
use contracts::{DeviceId, Event, EventBody, Timestamp};
use platform::CurrentUser;
use platform::events::emit;
use platform::http::{Json, Path};
use serde::Serialize;
use sqlx::PgConnection;
use tokio::time::{Instant, sleep};

use super::{Decision, Kind, Wish, db, decide};
use crate::device::api::lock_visible;
use crate::device::{self, Device, DeviceReply, DeviceView, Status};
use crate::{Devices, Error, error::Result, installation, quota};

/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(6);
/// How long it waits on for an operation that a worker has claimed and not begun.
const CLAIMED_PATIENCE: Duration = Duration::from_secs(1);
/// How many operations may be open for one device.
pub const MOST_OPEN: i64 = 8;

/// How an operation goes.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SagaView {
    saga_id: String,
    /// pending, completed or failed.
    status: &'static str,
    current_step: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<DeviceView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Starts a device.
#[utoipa::path(post, path = "/devices/{id}/start", tag = "devices", params(("id" = String, Path)),
    responses((status = 200, body = DeviceReply), (status = 403, description = "The quota does not allow it to run"), (status = 404), (status = 409, description = "The device is busy, or in error")))]
pub async fn start_device(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
) -> Result<Json<DeviceReply>> {
    wish(&state, &user, id, Wish::Start).await
}

/// Stops a device.
#[utoipa::path(post, path = "/devices/{id}/stop", tag = "devices", params(("id" = String, Path)),
    responses((status = 200, body = DeviceReply), (status = 404), (status = 409, description = "The device is busy, or in error")))]
pub async fn stop_device(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
) -> Result<Json<DeviceReply>> {
    wish(&state, &user, id, Wish::Stop).await
}

/// Restarts a device.
#[utoipa::path(post, path = "/devices/{id}/restart", tag = "devices", params(("id" = String, Path)),
    responses((status = 200, body = DeviceReply), (status = 403, description = "The quota does not allow it to run"), (status = 404), (status = 409, description = "The device is busy, or in error")))]
pub async fn restart_device(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
) -> Result<Json<DeviceReply>> {
    wish(&state, &user, id, Wish::Restart).await
}

/// Restarts a device.
#[utoipa::path(post, path = "/devices/{id}/reboot", tag = "devices", params(("id" = String, Path)),
    responses((status = 200, body = DeviceReply), (status = 403, description = "The quota does not allow it to run"), (status = 404), (status = 409, description = "The device is busy, or in error")))]
pub async fn reboot_device(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
) -> Result<Json<DeviceReply>> {
    wish(&state, &user, id, Wish::Restart).await
}

/// Shows how an operation goes.
#[utoipa::path(get, path = "/devices/saga/{saga_id}", tag = "devices", params(("saga_id" = String, Path)), responses((status = 200, body = SagaView), (status = 404)))]
pub async fn find_saga(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(saga_id): Path<String>,
) -> Result<Json<SagaView>> {
    let mut conn = state.platform.db.acquire().await?;
    let saga = match contracts::id::is_valid(&saga_id) {
        true => match db::saga(&mut conn, &saga_id).await? {
            Some(saga) => Some(saga),
            None => installation::db::saga(&mut conn, &saga_id).await?,
        },
        false => None,
    };
    let saga = saga
        .filter(|saga| user.may_see(&saga.user_id))
        .ok_or(Error::NoSuchSaga)?;
    let device = device::db::find(&mut conn, &saga.device_id).await?;
    let status = match saga.state.as_str() {
        "done" => "completed",
        "failed" | "cancelled" => "failed",
        _ => "pending",
    };
    Ok(Json(SagaView {
        saga_id: saga.saga_id,
        status,
        current_step: saga.step,
        device: device.map(Device::view),
        error: saga.error.filter(|_| status == "failed"),
    }))
}

/// Writes a new status and tells of it.
pub async fn change_status(
    tx: &mut PgConnection,
    device: &Device,
    status: Status,
    error: Option<&str>,
    now: Timestamp,
) -> sqlx::Result<()> {
    if device.status == status {
        return Ok(());
    }
    device::db::set_status(tx, &device.id, status, error, now).await?;
    tell(tx, device, status, error, now).await
}

/// Tells that a device is to be looked at again, in the transaction that changes it: its status is another one, or its
/// ports are.
pub async fn tell(
    tx: &mut PgConnection,
    device: &Device,
    status: Status,
    error: Option<&str>,
    now: Timestamp,
) -> sqlx::Result<()> {
    let body = EventBody::DeviceStatusChanged {
        device_id: device.id.clone(),
        name: device.name.clone(),
        status: status.to_string(),
        previous_status: device.status.to_string(),
        error: error.map(str::to_owned),
    };
    emit(tx, &Event::new(device.user_id.clone(), now, body)).await
}

async fn wish(
    state: &Devices,
    user: &CurrentUser,
    id: DeviceId,
    wish: Wish,
) -> Result<Json<DeviceReply>> {
    if let Some((saga_id, is_ours)) = accept(state, user, &id, wish, true).await? {
        wait_for_turn(state, &id, &saga_id, is_ours).await?;
    }
    let mut conn = state.platform.db.acquire().await?;
    let device = device::db::find(&mut conn, &id).await?;
    let device = device.ok_or_else(|| Error::NoSuchDevice { device: id.clone() })?;
    if device.status == Status::Error {
        return Err(Error::InError { device: id });
    }
    let message = match wish {
        Wish::Start => "the device is starting or running",
        Wish::Stop => "the device is stopping or stopped",
        Wish::Restart => "the device is rebooting or running",
    };
    Ok(Json(DeviceReply {
        device: device.view(),
        message: message.into(),
    }))
}

/// Accepts a wish. Where it comes after what is under way: the name of its operation, and whether this call has queued it.
/// One that nobody `waits` for is not taken back.
///
/// # Errors
/// Where the device is not the caller's, is in error or too busy, or where the quota does not allow that it runs.
pub async fn accept(
    state: &Devices,
    user: &CurrentUser,
    id: &DeviceId,
    wish: Wish,
    waits: bool,
) -> Result<Option<(String, bool)>> {
    let mut tx = state.platform.db.begin().await?;
    let device = lock_visible(&mut tx, user, id).await?;
    let (waiting, open) = db::waiting(&mut tx, id).await?;
    let decision = decide(wish, device.status, waiting.as_ref().map(|(_, kind)| *kind));
    if device.node_down && !matches!(decision, Decision::Refuse | Decision::Nothing) {
        return Err(Error::NodeDown { node: device.node });
    }
    let now = state.platform.clock.shared(&mut tx).await?;
    let starts = match decision {
        Decision::CreateRunning => true,
        Decision::Begin(kind, _) | Decision::Queue(kind) => {
            matches!(kind, Kind::Start | Kind::Restart)
        }
        Decision::Nothing | Decision::Join | Decision::Refuse => false,
    };
    if starts && quota::makes_one_more_run(device.status, device.wanted) {
        quota::charge_start(&mut tx, &state.quotas, (&device.user_id, id), now).await?;
    }
    let mut wait_for = None;
    match decision {
        Decision::Refuse => return Err(Error::InError { device: id.clone() }),
        Decision::Nothing => {}
        Decision::CreateRunning => {
            change_status(&mut tx, &device, Status::Starting, None, now).await?;
        }
        Decision::Begin(kind, status) => {
            db::insert(&mut tx, id, kind, true, now).await?;
            change_status(&mut tx, &device, status, None, now).await?;
        }
        Decision::Queue(_) if open >= MOST_OPEN => {
            return Err(Error::Busy { device: id.clone() });
        }
        Decision::Queue(kind) => {
            wait_for = Some((db::insert(&mut tx, id, kind, !waits, now).await?, true));
        }
        Decision::Join => wait_for = waiting.map(|(saga_id, _)| (saga_id, false)),
    }
    tx.commit().await?;
    state.operations_due.notify_one();
    Ok(wait_for)
}

/// Waits until an operation begins. One that was put into the queue by this request and whose turn does not come is
/// taken back, so that a client that was told "busy" is not surprised later.
pub async fn wait_for_turn(
    state: &Devices,
    id: &DeviceId,
    saga_id: &str,
    is_ours: bool,
) -> Result<()> {
    let busy = || Error::Busy { device: id.clone() };
    let until = Instant::now() + PATIENCE;
    loop {
        {
            let mut conn = state.platform.db.acquire().await?;
            let progress = db::progress(&mut conn, saga_id).await?.ok_or_else(busy)?;
            match progress.state.as_str() {
                "cancelled" => return Err(busy()),
                "done" | "failed" => return Ok(()),
                _ if progress.begun => return Ok(()),
                _ => {}
            }
            if Instant::now() >= until {
                let now = state.platform.clock.now();
                if !is_ours
                    || db::withdraw(&mut conn, saga_id, now).await?
                    || Instant::now() >= until + CLAIMED_PATIENCE
                {
                    return Err(busy());
                }
                // A worker has it: it begins in this very moment, and is answered as begun.
            }
        }
        let pause = Duration::from_millis(if is_ours { 50 } else { 100 });
        sleep(pause).await;
    }
}
