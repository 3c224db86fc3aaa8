//! What devices use now, and what they used.

use std::collections::BTreeMap;

use axum::extract::State;
use chrono::TimeDelta;
use contracts::{DeviceId, Timestamp};
use garde::Validate;
use platform::CurrentUser;
use platform::Problem;
use platform::http::{Json, Path, Query};
use serde::{Deserialize, Serialize};

use super::db::{self, Point, Reading};
use super::percent;
use crate::batch::api::{BatchBody, named};
use crate::device::{self, Device, ProviderType, RuntimeKind, Status};
use crate::{Devices, Error, error::Result};

/// How many points a history has at most.
const MOST_POINTS: i64 = 500;
/// How many devices one request may ask for.
const MOST_DEVICES: usize = 200;

/// What a device uses; zeros where it does not run or was not measured yet.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceMetrics {
    device_id: DeviceId,
    #[schema(inline)]
    status: Status,
    #[schema(inline)]
    provider_type: ProviderType,
    /// Whether a stand-in within our own process runs it: then these are figures of a stand-in, too.
    simulated: bool,
    timestamp: Timestamp,
    /// Percent of its cores.
    cpu_usage: f64,
    /// Percent.
    memory_usage: f64,
    /// Percent.
    storage_usage: f64,
    /// Megabytes.
    memory_used: f64,
    /// Megabytes.
    storage_used: f64,
    /// Bytes that it received since it was made.
    network_rx: i64,
    /// Bytes that it sent since it was made.
    network_tx: i64,
    /// The same as `cpuUsage`.
    cpu: f64,
    /// The same as `memoryUsage`.
    memory: f64,
    /// The same as `storageUsage`.
    storage: f64,
}

/// A point of the history.
#[derive(Clone, Copy, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryPoint {
    time: Timestamp,
    /// The same as `time`.
    timestamp: Timestamp,
    cpu_usage: f64,
    memory_usage: f64,
    storage_usage: f64,
    /// Bytes received in the span of the point.
    network_in: i64,
    /// Bytes sent in the span of the point.
    network_out: i64,
}

/// How far a history goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
pub enum Period {
    /// Five minutes.
    #[serde(rename = "5m")]
    FiveMinutes,
    /// A quarter of an hour.
    #[serde(rename = "15m")]
    QuarterHour,
    /// An hour.
    #[default]
    #[serde(rename = "1h")]
    Hour,
    /// Six hours.
    #[serde(rename = "6h")]
    SixHours,
    /// A day.
    #[serde(rename = "24h")]
    Day,
    /// A week.
    #[serde(rename = "7d")]
    Week,
}

impl Period {
    /// How far back it goes, by which step, and in points of how many seconds.
    fn reading(self) -> (TimeDelta, i16, i64) {
        match self {
            Self::FiveMinutes => (TimeDelta::minutes(5), 0, 5),
            Self::QuarterHour => (TimeDelta::minutes(15), 0, 5),
            Self::Hour => (TimeDelta::hours(1), 0, 15),
            Self::SixHours => (TimeDelta::hours(6), 60, 60),
            Self::Day => (TimeDelta::hours(24), 60, 300),
            Self::Week => (TimeDelta::days(7), 900, 1_800),
        }
    }
}

/// Which history is wanted.
#[derive(Clone, Copy, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    /// Default 1h.
    #[garde(skip)]
    #[param(inline)]
    pub period: Option<Period>,
}

/// What devices use.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct BatchMetrics {
    stats: BTreeMap<String, DeviceMetrics>,
    message: String,
}

/// Shows what a device uses.
#[utoipa::path(get, path = "/devices/{id}/metrics", tag = "metrics", params(("id" = String, Path)), responses((status = 200, body = DeviceMetrics), (status = 404)))]
pub async fn device_metrics(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
) -> Result<Json<DeviceMetrics>> {
    now(&state, &user, id).await
}

/// Shows what a device uses.
#[utoipa::path(get, path = "/devices/{id}/stats", tag = "metrics", params(("id" = String, Path)), responses((status = 200, body = DeviceMetrics), (status = 404)))]
pub async fn device_usage(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
) -> Result<Json<DeviceMetrics>> {
    now(&state, &user, id).await
}

/// Shows what a device used, oldest first.
#[utoipa::path(get, path = "/devices/{id}/metrics/history", tag = "metrics", params(("id" = String, Path), HistoryQuery), responses((status = 200, body = Vec<HistoryPoint>), (status = 400), (status = 404)))]
pub async fn device_metrics_history(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
    Query(query): Query<HistoryQuery>,
) -> Result<Json<Vec<HistoryPoint>>> {
    let (back, step, bucket) = query.period.unwrap_or_default().reading();
    let mut conn = state.platform.db.acquire().await?;
    let found = device::db::find(&mut conn, &id).await?;
    if found.is_none_or(|device| !user.may_see(&device.user_id)) {
        return Err(Error::NoSuchDevice { device: id });
    }
    let since = Timestamp::from(state.platform.clock.now().utc() - back);
    let points = db::history(&mut conn, &id, step, (since, bucket, MOST_POINTS)).await?;
    Ok(Json(points.into_iter().map(HistoryPoint::from).collect()))
}

/// Shows what devices use; those that are not the caller's are left out.
#[utoipa::path(post, path = "/devices/batch/stats", tag = "batch", request_body = BatchBody, responses((status = 200, body = BatchMetrics), (status = 400)))]
pub async fn devices_metrics(
    State(state): State<Devices>,
    user: CurrentUser,
    Json(body): Json<BatchBody>,
) -> Result<Json<BatchMetrics>> {
    let ids = named(&state, &user, body).await?;
    if ids.len() > MOST_DEVICES {
        return Err(Problem::invalid_field("ids", "must name at most 200 devices").into());
    }
    let ids: Vec<&str> = ids.iter().map(DeviceId::as_str).collect();
    let owner = (!user.is_admin).then_some(&user.id);
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    let devices = device::db::list_by_id(&mut conn, &ids, owner).await?;
    let readings: BTreeMap<DeviceId, Reading> =
        db::last_of(&mut conn, &ids).await?.into_iter().collect();
    let stats: BTreeMap<String, DeviceMetrics> = devices
        .into_iter()
        .map(|device| {
            let reading = readings.get(&device.id).copied();
            (
                device.id.to_string(),
                DeviceMetrics::of(device, reading, now),
            )
        })
        .collect();
    let message = format!("{} devices", stats.len());
    Ok(Json(BatchMetrics { stats, message }))
}

async fn now(state: &Devices, user: &CurrentUser, id: DeviceId) -> Result<Json<DeviceMetrics>> {
    let mut conn = state.platform.db.acquire().await?;
    let device = device::db::find(&mut conn, &id).await?;
    let device = device.filter(|device| user.may_see(&device.user_id));
    let device = device.ok_or(Error::NoSuchDevice { device: id })?;
    let reading = db::last(&mut conn, &device.id).await?;
    let now = state.platform.clock.now();
    Ok(Json(DeviceMetrics::of(device, reading, now)))
}

impl DeviceMetrics {
    fn of(device: Device, reading: Option<Reading>, now: Timestamp) -> Self {
        let reading = reading.filter(|_| device.status == Status::Running);
        let value = |of: fn(&Reading) -> f32| {
            let value = reading
                .as_ref()
                .map_or(0.0, |reading| f64::from(of(reading)));
            rounded(value)
        };
        let (memory_used, storage_used) = (
            value(|reading| reading.memory_mb),
            value(|reading| reading.storage_mb),
        );
        let cpu = value(|reading| reading.cpu_usage);
        let memory = rounded(percent(memory_used, device.memory_mb));
        let storage = rounded(percent(storage_used, device.storage_mb));
        Self {
            device_id: device.id,
            status: device.status,
            provider_type: device.provider_type,
            simulated: device.runtime == RuntimeKind::Simulated,
            timestamp: reading.and_then(|reading| reading.taken_at).unwrap_or(now),
            cpu_usage: cpu,
            memory_usage: memory,
            storage_usage: storage,
            memory_used,
            storage_used,
            network_rx: reading.map_or(0, |reading| reading.network_rx),
            network_tx: reading.map_or(0, |reading| reading.network_tx),
            cpu,
            memory,
            storage,
        }
    }
}

impl From<Point> for HistoryPoint {
    fn from(point: Point) -> Self {
        Self {
            time: point.at,
            timestamp: point.at,
            cpu_usage: rounded(point.cpu_usage),
            memory_usage: rounded(point.memory_usage),
            storage_usage: rounded(point.storage_usage),
            network_in: point.network_in,
            network_out: point.network_out,
        }
    }
}

/// To two decimals.
fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
