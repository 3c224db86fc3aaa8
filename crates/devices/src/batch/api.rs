//! The same for many devices at once.

use std::collections::BTreeMap;

use axum::extract::State;
use contracts::DeviceId;
use garde::Validate;
use platform::http::Json;
use platform::{CurrentUser, Problem};
use serde::{Deserialize, Serialize};

use super::{Done, Item, MOST, Report, each};
use crate::device::api::delete;
use crate::device::db;
use crate::device::list::DeviceFilter;
use crate::operation::Wish;
use crate::operation::api::accept;
use crate::{Devices, error::Result};

/// Which devices.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BatchBody {
    /// 1 to 500 devices.
    #[garde(length(max = MOST))]
    pub ids: Option<Vec<DeviceId>>,
    /// The same as `ids`.
    #[garde(length(max = MOST))]
    pub device_ids: Option<Vec<DeviceId>>,
    /// The caller's devices in this group, in the place of ids.
    #[garde(length(chars, min = 1, max = 100))]
    pub group_name: Option<String>,
    /// How many at a time, 1 to 50; default 10. A replica does at most 8.
    #[garde(range(min = 1, max = 50))]
    pub max_concurrency: Option<usize>,
}

/// Which devices, and what to do with them.
#[derive(Clone, Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OperateBody {
    /// What to do.
    #[garde(skip)]
    pub operation: BatchOperation,
    /// 1 to 500 devices.
    #[garde(length(max = MOST))]
    pub ids: Option<Vec<DeviceId>>,
    /// The same as `ids`.
    #[garde(length(max = MOST))]
    pub device_ids: Option<Vec<DeviceId>>,
    /// The caller's devices in this group, in the place of ids.
    #[garde(length(chars, min = 1, max = 100))]
    pub group_name: Option<String>,
    /// How many at a time, 1 to 50; default 10. A replica does at most 8.
    #[garde(range(min = 1, max = 50))]
    pub max_concurrency: Option<usize>,
}

/// What can be done with many devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BatchOperation {
    /// Have them run.
    Start,
    /// Have them stop.
    Stop,
    /// Have them run afresh.
    Restart,
    /// The same.
    Reboot,
    /// Remove them.
    Delete,
}

/// Which devices, and the group they shall be in.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupDevices {
    /// 1 to 500 devices.
    #[garde(length(max = MOST))]
    pub ids: Option<Vec<DeviceId>>,
    /// The same as `ids`.
    #[garde(length(max = MOST))]
    pub device_ids: Option<Vec<DeviceId>>,
    /// The group.
    #[garde(length(chars, min = 1, max = 100))]
    pub group_name: String,
}

/// How many devices changed their group.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Grouped {
    updated: u64,
    message: String,
}

/// Starts devices.
#[utoipa::path(post, path = "/devices/batch/start", tag = "batch", request_body = BatchBody, responses((status = 200, body = Report), (status = 400)))]
pub async fn start_devices(
    State(state): State<Devices>,
    user: CurrentUser,
    Json(body): Json<BatchBody>,
) -> Result<Json<Report>> {
    operate(&state, &user, BatchOperation::Start, body).await
}

/// Stops devices.
#[utoipa::path(post, path = "/devices/batch/stop", tag = "batch", request_body = BatchBody, responses((status = 200, body = Report), (status = 400)))]
pub async fn stop_devices(
    State(state): State<Devices>,
    user: CurrentUser,
    Json(body): Json<BatchBody>,
) -> Result<Json<Report>> {
    operate(&state, &user, BatchOperation::Stop, body).await
}

/// Restarts devices.
#[utoipa::path(post, path = "/devices/batch/restart", tag = "batch", request_body = BatchBody, responses((status = 200, body = Report), (status = 400)))]
pub async fn restart_devices(
    State(state): State<Devices>,
    user: CurrentUser,
    Json(body): Json<BatchBody>,
) -> Result<Json<Report>> {
    operate(&state, &user, BatchOperation::Restart, body).await
}

/// Restarts devices.
#[utoipa::path(post, path = "/devices/batch/reboot", tag = "batch", request_body = BatchBody, responses((status = 200, body = Report), (status = 400)))]
pub async fn reboot_devices(
    State(state): State<Devices>,
    user: CurrentUser,
    Json(body): Json<BatchBody>,
) -> Result<Json<Report>> {
    operate(&state, &user, BatchOperation::Reboot, body).await
}

/// Deletes devices.
#[utoipa::path(post, path = "/devices/batch/delete", tag = "batch", request_body = BatchBody, responses((status = 200, body = Report), (status = 400)))]
pub async fn delete_devices(
    State(state): State<Devices>,
    user: CurrentUser,
    Json(body): Json<BatchBody>,
) -> Result<Json<Report>> {
    operate(&state, &user, BatchOperation::Delete, body).await
}

/// Does with devices what the body says.
#[utoipa::path(post, path = "/devices/batch/operate", tag = "batch", request_body = OperateBody, responses((status = 200, body = Report), (status = 400)))]
pub async fn operate_devices(
    State(state): State<Devices>,
    user: CurrentUser,
    Json(body): Json<OperateBody>,
) -> Result<Json<Report>> {
    let batch = BatchBody {
        ids: body.ids,
        device_ids: body.device_ids,
        group_name: body.group_name,
        max_concurrency: body.max_concurrency,
    };
    operate(&state, &user, body.operation, batch).await
}

/// Tells the status of devices; those that are not the caller's are left out.
#[utoipa::path(post, path = "/devices/batch/status", tag = "batch", request_body = BatchBody,
    responses((status = 200, body = BTreeMap<String, String>), (status = 400)))]
pub async fn device_statuses(
    State(state): State<Devices>,
    user: CurrentUser,
    Json(body): Json<BatchBody>,
) -> Result<Json<BTreeMap<DeviceId, String>>> {
    let ids = named(&state, &user, body).await?;
    let ids: Vec<&str> = ids.iter().map(DeviceId::as_str).collect();
    let owner = (!user.is_admin).then_some(&user.id);
    let mut conn = state.platform.db.acquire().await?;
    let found = db::statuses(&mut conn, &ids, owner).await?;
    Ok(Json(found.into_iter().collect()))
}

/// Puts devices into a group; those that are not the caller's stay where they are.
#[utoipa::path(patch, path = "/devices/batch/groups/update", tag = "batch", request_body = GroupDevices, responses((status = 200, body = Grouped), (status = 400)))]
pub async fn group_devices(
    State(state): State<Devices>,
    user: CurrentUser,
    Json(body): Json<GroupDevices>,
) -> Result<Json<Grouped>> {
    let ids = body.ids.or(body.device_ids).unwrap_or_default();
    let ids: Vec<&str> = some(&ids)?.iter().map(DeviceId::as_str).collect();
    let owner = (!user.is_admin).then_some(&user.id);
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    let updated = db::set_group(&mut conn, (&ids, owner), &body.group_name, now).await?;
    Ok(Json(Grouped {
        updated,
        message: format!("{updated} devices are in group {}", body.group_name),
    }))
}

async fn operate(
    state: &Devices,
    user: &CurrentUser,
    operation: BatchOperation,
    body: BatchBody,
) -> Result<Json<Report>> {
    let at_once = body.max_concurrency.unwrap_or(10);
    let ids = named(state, user, body).await?;
    let items = ids.into_iter().map(Item::Device).collect();
    let (name, wish) = match operation {
        BatchOperation::Start => ("start", Some(Wish::Start)),
        BatchOperation::Stop => ("stop", Some(Wish::Stop)),
        BatchOperation::Restart => ("restart", Some(Wish::Restart)),
        BatchOperation::Reboot => ("reboot", Some(Wish::Restart)),
        BatchOperation::Delete => ("delete", None),
    };
    let work = |item| async move {
        let id = match item {
            Item::Device(id) => id,
            Item::New(_) => return Err(Problem::internal().into()),
        };
        let saga = match wish {
            Some(wish) => accept(state, user, &id, wish, false)
                .await?
                .map(|(saga, _)| saga),
            None => Some(delete(state, user, &id).await?),
        };
        Ok(Done::accepted(id, saga))
    };
    Ok(Json(
        each(
            state,
            (&user.id, name),
            items,
            (&state.batch_items, at_once),
            work,
        )
        .await,
    ))
}

/// The devices that a body names, each once; those of a group are the caller's own.
pub async fn named(state: &Devices, user: &CurrentUser, body: BatchBody) -> Result<Vec<DeviceId>> {
    if let Some(ids) = body.ids.or(body.device_ids) {
        let mut seen = std::collections::HashSet::new();
        let ids: Vec<DeviceId> = ids
            .into_iter()
            .filter(|id| seen.insert(id.clone()))
            .collect();
        some(&ids)?;
        return Ok(ids);
    }
    let Some(group) = body.group_name else {
        return Err(Problem::invalid_field("ids", "must name 1 to 500 devices").into());
    };
    let filter = DeviceFilter {
        user_id: Some(user.id.clone()),
        group_name: Some(group),
        ..DeviceFilter::default()
    };
    let mut conn = state.platform.db.acquire().await?;
    let found = db::list_quick(&mut conn, &filter, MOST as i64 + 1).await?;
    if found.len() > MOST {
        let text = "has more than 500 devices: name them by ids";
        return Err(Problem::invalid_field("groupName", text).into());
    }
    Ok(found.into_iter().map(|device| device.id).collect())
}

fn some(ids: &[DeviceId]) -> Result<&[DeviceId]> {
    match ids.is_empty() {
        true => Err(Problem::invalid_field("ids", "must name 1 to 500 devices").into()),
        false => Ok(ids),
    }
}
