//! Changing and deleting a device.

use axum::extract::State;
use contracts::{DeviceId, Timestamp};
use garde::Validate;
use platform::CurrentUser;
use platform::http::{Json, Path};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::PgConnection;

use super::{Device, DeviceReply, Status, create, db};
use crate::node::placement;
use crate::operation::{self, Kind};
use crate::{Devices, Error, error::Result, installation, quota, snapshot};

/// What shall be different. What is left out stays; a status is not among it.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PatchDevice {
    /// What its owner calls it.
    #[garde(length(chars, min = 1, max = 100))]
    pub name: Option<String>,
    /// What its owner says about it.
    #[garde(length(chars, max = 500))]
    pub description: Option<String>,
    /// At most 10.
    #[garde(length(max = 10), inner(inner(length(chars, min = 1, max = 50))))]
    pub tags: Option<Vec<String>>,
    /// The group it is in.
    #[garde(length(chars, min = 1, max = 100))]
    pub group_name: Option<String>,
    /// Whatever else, at most 16 KiB.
    #[schema(value_type = Option<Object>)]
    #[garde(inner(custom(create::check_metadata)))]
    pub metadata: Option<Map<String, Value>>,
    /// Processor cores.
    #[garde(range(min = 1, max = 16))]
    pub cpu_cores: Option<i32>,
    /// Memory; `memoryMB` on the wire and in refusals.
    #[garde(range(min = 512, max = 32_768))]
    pub memory_m_b: Option<i32>,
    /// Storage; `storageMB` on the wire and in refusals.
    #[garde(range(min = 1_024, max = 1_048_576))]
    pub storage_m_b: Option<i32>,
}

/// The deletion was accepted.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Deleted {
    message: String,
    saga_id: String,
}

/// The device, locked, if the caller may see it.
pub async fn lock_visible(
    tx: &mut PgConnection,
    user: &CurrentUser,
    id: &DeviceId,
) -> Result<Device> {
    let device = db::lock(tx, id).await?;
    device
        .filter(|device| {
            user.may_see(&device.user_id)
                && !matches!(device.status, Status::Deleting | Status::Deleted)
        })
        .ok_or_else(|| Error::NoSuchDevice { device: id.clone() })
}

/// Changes a device.
#[utoipa::path(patch, path = "/devices/{id}", tag = "devices", params(("id" = String, Path)), request_body = PatchDevice,
    responses((status = 200, body = DeviceReply), (status = 400), (status = 403, description = "The quota does not allow the growth"), (status = 404), (status = 409, description = "It is in a container, which does not shrink"), (status = 503, description = "Its node has no room for it to grow")))]
pub async fn patch_device(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
    Json(body): Json<PatchDevice>,
) -> Result<Json<DeviceReply>> {
    let mut tx = state.platform.db.begin().await?;
    let before = lock_visible(&mut tx, &user, &id).await?;
    let now = state.platform.clock.now();
    let (from, mut to) = (before.sizes(), before.sizes());
    to.cpu_cores = body.cpu_cores.unwrap_or(to.cpu_cores);
    to.memory_mb = body.memory_m_b.unwrap_or(to.memory_mb);
    to.storage_mb = body.storage_m_b.unwrap_or(to.storage_mb);
    let shrinks = to.cpu_cores < from.cpu_cores
        || to.memory_mb < from.memory_mb
        || to.storage_mb < from.storage_mb;
    if shrinks && before.runtime.has_engine() {
        return Err(Error::CannotShrink { device: id });
    }
    quota::charge_growth(&mut tx, &state.quotas, &before.user_id, (from, to), now).await?;
    db::patch(&mut tx, &id, &body, now).await?;
    let device = db::find(&mut tx, &id).await?;
    let after = device.as_ref().map_or(before.size(), Device::size);
    if after != before.size()
        && !placement::reserve_growth(&mut tx, &before.node, before.size(), after).await?
    {
        return Err(Error::NoRoomToGrow { node: before.node });
    }
    tx.commit().await?;
    let device = device.ok_or(Error::NoSuchDevice { device: id })?;
    Ok(Json(DeviceReply {
        device: device.view(),
        message: "the device was changed".into(),
    }))
}

/// Deletes a device: from now on it is not found. What was queued for it is cancelled, what is under way ends first.
#[utoipa::path(delete, path = "/devices/{id}", tag = "devices", params(("id" = String, Path)), responses((status = 200, body = Deleted), (status = 404)))]
pub async fn delete_device(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
) -> Result<Json<Deleted>> {
    Ok(Json(Deleted {
        saga_id: delete(&state, &user, &id).await?,
        message: "the device is being deleted".into(),
    }))
}

/// Deletes a device; the name of its deletion.
///
/// # Errors
/// [`Error::NoSuchDevice`] where it is not the caller's or deleted already.
pub async fn delete(state: &Devices, user: &CurrentUser, id: &DeviceId) -> Result<String> {
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    lock_visible(&mut tx, user, id).await?;
    let saga_id = delete_locked(&mut tx, id, now).await?;
    tx.commit().await?;
    state.operations_due.notify_one();
    Ok(saga_id)
}

/// The same in the transaction of a caller who holds the lock of the device, and sees to it that a worker looks.
///
/// # Errors
/// Where the database fails.
pub async fn delete_locked(
    tx: &mut PgConnection,
    id: &DeviceId,
    now: Timestamp,
) -> sqlx::Result<String> {
    operation::db::cancel_queued(tx, id, "the device was deleted", now).await?;
    let saga_id = operation::db::insert(tx, id, Kind::Delete, true, now).await?;
    db::set_status(tx, id, Status::Deleting, None, now).await?;
    snapshot::db::give_up_all(tx, id, now).await?;
    installation::db::cancel_all(tx, id, now).await?;
    installation::installed::forget_all(tx, id).await?;
    Ok(saga_id)
}
