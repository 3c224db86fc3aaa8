//! Taking, listing, restoring and deleting snapshots.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use contracts::{DeviceId, SnapshotId, UserId};
use garde::Validate;
use http::StatusCode;
use platform::CurrentUser;
use platform::http::{Dual, Json, PageQuery, Path, Query, SliceQuery};
use platform::idempotency::{Idempotent, Turn};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use tokio::time::Instant;

use super::{Snapshot, SnapshotView, Status, after_restore, db, decide, room};
use crate::device::api::lock_visible;
use crate::device::{self, Status as DeviceStatus};
use crate::operation::api::{MOST_OPEN, change_status, wait_for_turn};
use crate::operation::{self, Decision, Kind};
use crate::{Devices, Error, batch, error::Result, quota};

/// What a snapshot shall be called.
#[derive(Clone, Debug, Deserialize, Validate, utoipa::ToSchema)]
pub struct CreateSnapshot {
    /// What its maker calls it.
    #[garde(length(chars, min = 1, max = 100))]
    pub name: String,
    /// What its maker says about it.
    #[garde(length(chars, max = 500))]
    pub description: Option<String>,
    /// At most 10.
    #[garde(length(max = 10), inner(inner(length(chars, min = 1, max = 50))))]
    pub tags: Option<Vec<String>>,
}

/// Which snapshots are wanted.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct SnapshotFilter {
    /// Of this device.
    #[garde(skip)]
    pub device_id: Option<DeviceId>,
    /// In this status.
    #[garde(skip)]
    #[param(inline)]
    pub status: Option<Status>,
}

/// Which snapshot is to be restored.
#[derive(Clone, Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreSnapshot {
    /// The snapshot, one of the device.
    #[garde(skip)]
    pub snapshot_id: SnapshotId,
}

/// Which snapshots are to be deleted.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeleteSnapshots {
    /// 1 to 100 snapshots.
    #[garde(length(max = 100))]
    pub ids: Option<Vec<SnapshotId>>,
    /// The same as `ids`.
    #[garde(length(max = 100))]
    pub snapshot_ids: Option<Vec<SnapshotId>>,
}

/// The restore was accepted.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Restoring {
    /// restoring, or completed where it is over already.
    status: &'static str,
    snapshot_id: SnapshotId,
    device_id: DeviceId,
    message: String,
}

/// The deletion was accepted.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct SnapshotDeleted {
    message: String,
}

/// What became of each of several snapshots.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct SnapshotsDeleted {
    total: usize,
    succeeded: usize,
    failed: usize,
    results: Vec<SnapshotOutcome>,
    message: String,
}

/// What became of one of several snapshots.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotOutcome {
    snapshot_id: SnapshotId,
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// How many snapshots there are, and what they take.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotSummary {
    total_snapshots: i64,
    /// Bytes.
    total_size: i64,
    by_status: SnapshotCounts,
}

/// Snapshots by status.
#[derive(Clone, Copy, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct SnapshotCounts {
    creating: i64,
    ready: i64,
    restoring: i64,
    error: i64,
}

/// Takes a snapshot: what is on the device when its turn comes. A restore that is asked for at once waits for it.
#[utoipa::path(post, path = "/devices/{id}/snapshots", tag = "snapshots", params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header)),
    request_body = CreateSnapshot,
    responses((status = 201, body = SnapshotView), (status = 403, description = "No more snapshots are allowed"), (status = 404), (status = 409, description = "The device is busy, or in error")))]
pub async fn create_snapshot(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
    body: Idempotent<CreateSnapshot>,
) -> Result<Response> {
    take(&state, &user, id, body).await
}

/// Takes a snapshot of a device.
#[utoipa::path(post, path = "/snapshots/device/{id}", tag = "snapshots", params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header)),
    request_body = CreateSnapshot,
    responses((status = 201, body = SnapshotView), (status = 403, description = "No more snapshots are allowed"), (status = 404), (status = 409, description = "The device is busy, or in error")))]
pub async fn create_snapshot_of_device(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
    body: Idempotent<CreateSnapshot>,
) -> Result<Response> {
    take(&state, &user, id, body).await
}

/// Lists the snapshots of a device, newest first.
#[utoipa::path(get, path = "/devices/{id}/snapshots", tag = "snapshots", params(("id" = String, Path), SliceQuery), responses((status = 200, body = Vec<SnapshotView>), (status = 404)))]
pub async fn list_device_snapshots(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
    Query(query): Query<SliceQuery>,
) -> Result<Json<Vec<SnapshotView>>> {
    of_device(&state, &user, id, query).await
}

/// Lists the snapshots of a device, newest first.
#[utoipa::path(get, path = "/snapshots/device/{id}", tag = "snapshots", params(("id" = String, Path), SliceQuery), responses((status = 200, body = Vec<SnapshotView>), (status = 404)))]
pub async fn list_snapshots_of_device(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
    Query(query): Query<SliceQuery>,
) -> Result<Json<Vec<SnapshotView>>> {
    of_device(&state, &user, id, query).await
}

/// Lists the caller's snapshots, newest first; admins see all.
#[utoipa::path(get, path = "/snapshots", tag = "snapshots", params(PageQuery, SnapshotFilter),
    responses((status = 200, body = Vec<SnapshotView>, description = "An array, or a page where `page` or `pageSize` is given")))]
pub async fn list_snapshots(
    State(state): State<Devices>,
    user: CurrentUser,
    Query(page): Query<PageQuery>,
    Query(filter): Query<SnapshotFilter>,
) -> Result<Dual<SnapshotView>> {
    let owner = (!user.is_admin).then_some(&user.id);
    let mut conn = state.platform.db.acquire().await?;
    let snapshots = db::list(&mut conn, &filter, owner, page.dual_slice()).await?;
    let total = match page.wants_page() {
        true => db::count(&mut conn, &filter, owner).await?,
        false => 0,
    };
    let snapshots = snapshots.into_iter().map(Snapshot::view).collect();
    Ok(Dual::new(snapshots, total, page))
}

/// Shows a snapshot.
#[utoipa::path(get, path = "/snapshots/{snapshot_id}", tag = "snapshots", params(("snapshot_id" = String, Path)), responses((status = 200, body = SnapshotView), (status = 404)))]
pub async fn find_snapshot(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<SnapshotId>,
) -> Result<Json<SnapshotView>> {
    let mut conn = state.platform.db.acquire().await?;
    Ok(Json(visible(&mut conn, &user, &id, None).await?.view()))
}

/// Counts the caller's snapshots and the bytes that they take; admins count all.
#[utoipa::path(get, path = "/snapshots/stats/summary", tag = "snapshots", responses((status = 200, body = SnapshotSummary)))]
pub async fn summarize_snapshots(
    State(state): State<Devices>,
    user: CurrentUser,
) -> Result<Json<SnapshotSummary>> {
    let owner = (!user.is_admin).then_some(&user.id);
    let mut conn = state.platform.db.acquire().await?;
    let mut summary = SnapshotSummary::default();
    for (status, count, size) in db::count_by_status(&mut conn, owner).await? {
        summary.total_snapshots += count;
        summary.total_size += size;
        let counts = &mut summary.by_status;
        match status.parse() {
            Ok(Status::Creating) => counts.creating = count,
            Ok(Status::Ready) => counts.ready = count,
            Ok(Status::Restoring) => counts.restoring = count,
            Ok(Status::Error) => counts.error = count,
            Ok(Status::Deleting) | Err(_) => {}
        }
    }
    Ok(Json(summary))
}

/// Restores a snapshot: its device reboots into what it was then, and is running or stopped as before.
#[utoipa::path(post, path = "/devices/{id}/snapshots/{snapshot_id}/restore", tag = "snapshots", params(("id" = String, Path), ("snapshot_id" = String, Path)),
    responses((status = 200, body = Restoring), (status = 404), (status = 409, description = "The device is busy, or the snapshot in error")))]
pub async fn restore_device_snapshot(
    State(state): State<Devices>,
    user: CurrentUser,
    Path((device, id)): Path<(DeviceId, SnapshotId)>,
) -> Result<Json<Restoring>> {
    restore(&state, &user, Some(&device), id).await
}

/// Restores a snapshot.
#[utoipa::path(post, path = "/snapshots/{snapshot_id}/restore", tag = "snapshots", params(("snapshot_id" = String, Path)),
    responses((status = 200, body = Restoring), (status = 404), (status = 409, description = "The device is busy, or the snapshot in error")))]
pub async fn restore_snapshot(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<SnapshotId>,
) -> Result<Json<Restoring>> {
    restore(&state, &user, None, id).await
}

/// Restores the snapshot that the body names.
#[utoipa::path(post, path = "/devices/{id}/snapshots/restore", tag = "snapshots", params(("id" = String, Path)), request_body = RestoreSnapshot,
    responses((status = 200, body = Restoring), (status = 404), (status = 409, description = "The device is busy, or the snapshot in error")))]
pub async fn restore_named_snapshot(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(device): Path<DeviceId>,
    Json(body): Json<RestoreSnapshot>,
) -> Result<Json<Restoring>> {
    restore(&state, &user, Some(&device), body.snapshot_id).await
}

/// Deletes a snapshot: from now on it is in no list. A restore that was asked for before still happens.
#[utoipa::path(delete, path = "/devices/{id}/snapshots/{snapshot_id}", tag = "snapshots", params(("id" = String, Path), ("snapshot_id" = String, Path)),
    responses((status = 200, body = SnapshotDeleted), (status = 404)))]
pub async fn delete_device_snapshot(
    State(state): State<Devices>,
    user: CurrentUser,
    Path((device, id)): Path<(DeviceId, SnapshotId)>,
) -> Result<Json<SnapshotDeleted>> {
    delete(&state, &user, Some(&device), &id).await?;
    Ok(deleted())
}

/// Deletes a snapshot.
#[utoipa::path(delete, path = "/snapshots/{snapshot_id}", tag = "snapshots", params(("snapshot_id" = String, Path)), responses((status = 200, body = SnapshotDeleted), (status = 404)))]
pub async fn delete_snapshot(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<SnapshotId>,
) -> Result<Json<SnapshotDeleted>> {
    delete(&state, &user, None, &id).await?;
    Ok(deleted())
}

/// Deletes several snapshots, each by itself: the reply tells what became of each.
#[utoipa::path(post, path = "/snapshots/batch-delete", tag = "snapshots", request_body = DeleteSnapshots, responses((status = 200, body = SnapshotsDeleted), (status = 400)))]
pub async fn delete_snapshots(
    State(state): State<Devices>,
    user: CurrentUser,
    Json(body): Json<DeleteSnapshots>,
) -> Result<Json<SnapshotsDeleted>> {
    let mut ids = body.ids.or(body.snapshot_ids).unwrap_or_default();
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() {
        return Err(platform::Problem::invalid_field("ids", "must name 1 to 100 snapshots").into());
    }
    let mut results = Vec::with_capacity(ids.len());
    let until = Instant::now() + batch::PATIENCE;
    for id in ids {
        let error = match Instant::now() < until {
            true => delete(&state, &user, None, &id).await.err(),
            false => {
                results.push(SnapshotOutcome {
                    snapshot_id: id,
                    success: false,
                    error: Some(batch::NOT_REACHED.into()),
                });
                continue;
            }
        };
        // What was deleted before one that failed stays deleted, and is told.
        let error = error.map(|error| match error {
            Error::NoSuchSnapshot { .. } => "snapshot not found".to_owned(),
            error => batch::told(&error).message().to_owned(),
        });
        results.push(SnapshotOutcome {
            snapshot_id: id,
            success: error.is_none(),
            error,
        });
    }
    let succeeded = results.iter().filter(|result| result.success).count();
    Ok(Json(SnapshotsDeleted {
        total: results.len(),
        succeeded,
        failed: results.len() - succeeded,
        message: format!("{succeeded} of {} snapshots were deleted", results.len()),
        results,
    }))
}

async fn take(
    state: &Devices,
    user: &CurrentUser,
    device: DeviceId,
    Idempotent { body, key }: Idempotent<CreateSnapshot>,
) -> Result<Response> {
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, user.id.as_str()).await? {
        Turn::First(turn) => turn,
        Turn::Replay(reply) => return Ok(reply),
    };
    let device = lock_visible(&mut tx, user, &device).await?;
    if device.status == DeviceStatus::Error {
        return Err(Error::InError { device: device.id });
    }
    if !device.runtime.keeps_snapshots() {
        return Err(Error::NoSnapshots {
            device: device.id,
            runtime: device.runtime,
        });
    }
    let (_, open) = operation::db::waiting(&mut tx, &device.id).await?;
    if open >= MOST_OPEN {
        return Err(Error::Busy { device: device.id });
    }
    let config = &state.config;
    let used = db::count_locked(&mut tx, &device).await?;
    room(
        used,
        (config.snapshots_per_device, config.snapshots_per_user),
    )?;
    let id = SnapshotId::new();
    db::insert(&mut tx, &id, &device, (&body, &user.id), now).await?;
    let about = (&device.id, Some(&id));
    operation::db::insert_about(&mut tx, about, Kind::Snapshot, true, now).await?;
    let snapshot = visible(&mut tx, user, &id, None).await?;
    let reply = turn
        .reply(&mut tx, StatusCode::CREATED, &snapshot.view())
        .await?;
    tx.commit().await?;
    state.operations_due.notify_one();
    Ok(reply.into_response())
}

async fn of_device(
    state: &Devices,
    user: &CurrentUser,
    device: DeviceId,
    query: SliceQuery,
) -> Result<Json<Vec<SnapshotView>>> {
    let mut conn = state.platform.db.acquire().await?;
    let found = device::db::find(&mut conn, &device).await?;
    if found.is_none_or(|device| !user.may_see(&device.user_id)) {
        return Err(Error::NoSuchDevice { device });
    }
    let filter = SnapshotFilter {
        device_id: Some(device),
        status: None,
    };
    let snapshots = db::list(&mut conn, &filter, None, query.slice()).await?;
    Ok(Json(snapshots.into_iter().map(Snapshot::view).collect()))
}

async fn restore(
    state: &Devices,
    user: &CurrentUser,
    device: Option<&DeviceId>,
    id: SnapshotId,
) -> Result<Json<Restoring>> {
    let mut tx = state.platform.db.begin().await?;
    let of = visible(&mut tx, user, &id, device).await?.device_id;
    let device = lock_visible(&mut tx, user, &of).await?;
    let snapshot = visible(&mut tx, user, &id, Some(&of)).await?;
    if snapshot.status == Status::Error {
        return Err(Error::SnapshotInError { snapshot: id });
    }
    if !device.runtime.keeps_snapshots() {
        return Err(Error::NoSnapshots {
            device: device.id,
            runtime: device.runtime,
        });
    }
    let (waiting, open) = operation::db::waiting(&mut tx, &of).await?;
    if open >= MOST_OPEN {
        return Err(Error::Busy { device: of });
    }
    let now = state.platform.clock.shared(&mut tx).await?;
    let about = (&of, Some(&id));
    let mut wait_for = None;
    match decide(device.status, waiting.is_some()) {
        Decision::Begin(kind, status) => {
            operation::db::insert_about(&mut tx, about, kind, true, now).await?;
            db::restoring(&mut tx, &id, now).await?;
            change_status(&mut tx, &device, status, None, now).await?;
            let wanted = after_restore(device.status, device.wanted);
            if wanted == DeviceStatus::Running && device.status == DeviceStatus::Error {
                quota::charge_start(&mut tx, &state.quotas, (&device.user_id, &of), now).await?;
            }
            device::db::set_wanted(&mut tx, &of, wanted).await?;
        }
        Decision::Queue(kind) => {
            let saga = operation::db::insert_about(&mut tx, about, kind, false, now).await?;
            wait_for = Some(saga);
        }
        Decision::Refuse | Decision::Nothing | Decision::Join | Decision::CreateRunning => {
            return Err(Error::NoSuchDevice { device: of });
        }
    }
    tx.commit().await?;
    state.operations_due.notify_one();
    if let Some(saga_id) = wait_for {
        wait_for_turn(state, &of, &saga_id, true).await?;
    }
    Ok(Json(Restoring {
        status: "restoring",
        snapshot_id: id,
        device_id: of,
        message: "the device is being made of the snapshot".into(),
    }))
}

async fn delete(
    state: &Devices,
    user: &CurrentUser,
    device: Option<&DeviceId>,
    id: &SnapshotId,
) -> Result<()> {
    let gone = || Error::NoSuchSnapshot {
        snapshot: id.clone(),
    };
    let mut tx = state.platform.db.begin().await?;
    let of = visible(&mut tx, user, id, device).await?.device_id;
    lock_visible(&mut tx, user, &of)
        .await
        .map_err(|error| match error {
            Error::NoSuchDevice { .. } => gone(),
            error => error,
        })?;
    if !retire(&mut tx, &of, id, state.platform.clock.now()).await? {
        return Err(gone());
    }
    tx.commit().await?;
    state.operations_due.notify_one();
    Ok(())
}

/// Hides a snapshot and has its space freed; `false` where that was done already. The caller holds the lock of the device.
pub async fn retire(
    tx: &mut PgConnection,
    device: &DeviceId,
    id: &SnapshotId,
    now: contracts::Timestamp,
) -> sqlx::Result<bool> {
    if !db::give_up(tx, id, now).await? {
        return Ok(false);
    }
    operation::db::insert_about(tx, (device, Some(id)), Kind::Forget, true, now).await?;
    Ok(true)
}

/// A snapshot that the caller may see, of this device where one is named.
async fn visible(
    conn: &mut PgConnection,
    user: &CurrentUser,
    id: &SnapshotId,
    device: Option<&DeviceId>,
) -> Result<Snapshot> {
    let snapshot = db::find(conn, id).await?;
    let owner = |owner: &UserId| user.may_see(owner);
    snapshot
        .filter(|found| owner(&found.user_id) && device.is_none_or(|of| *of == found.device_id))
        .ok_or_else(|| Error::NoSuchSnapshot {
            snapshot: id.clone(),
        })
}

fn deleted() -> Json<SnapshotDeleted> {
    Json(SnapshotDeleted {
        message: "the snapshot was deleted".into(),
    })
}
