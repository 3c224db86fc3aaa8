//! What clients may know about ports.

use axum::extract::State;
use contracts::DeviceId;
use coordination::PortKind;
use platform::http::{Json, Path};
use platform::{Admin, CurrentUser};
use serde::Serialize;

use super::db;
use crate::{Devices, Error, device, error::Result};

/// Where a device is reached.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DevicePorts {
    device_id: DeviceId,
    adb_host: String,
    adb_port: i32,
    webrtc_port: i32,
    scrcpy_port: i32,
}

/// How the ports of one kind are used, over the whole cluster.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct KindStats {
    /// How many there are.
    total: i64,
    /// How many devices hold.
    used: i64,
    /// How many could be leased now.
    available: i64,
    /// The first and the last number on each node.
    range: String,
}

/// How ports are used, over the whole cluster.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct PortStats {
    adb: KindStats,
    webrtc: KindStats,
    scrcpy: KindStats,
}

/// Shows where a device is reached.
#[utoipa::path(get, path = "/devices/{id}/ports", tag = "ports", params(("id" = String, Path)), responses((status = 200, body = DevicePorts), (status = 404)))]
pub async fn find_device_ports(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
) -> Result<Json<DevicePorts>> {
    let mut conn = state.platform.db.acquire().await?;
    let device = device::db::find(&mut conn, &id).await?;
    let device = device.filter(|device| user.may_see(&device.user_id));
    let device = device.ok_or(Error::NoSuchDevice { device: id })?;
    Ok(Json(DevicePorts {
        device_id: device.id,
        adb_host: device.address,
        adb_port: device.adb_port,
        webrtc_port: device.webrtc_port,
        scrcpy_port: device.scrcpy_port,
    }))
}

/// Counts the ports of the cluster.
#[utoipa::path(get, path = "/ports/stats", tag = "ports", responses((status = 200, body = PortStats), (status = 403)))]
pub async fn port_stats(State(state): State<Devices>, _: Admin) -> Result<Json<PortStats>> {
    let rest = chrono::TimeDelta::from_std(state.config.port_quarantine).unwrap_or_default();
    let since = state.platform.clock.now() - rest;
    let mut conn = state.platform.db.acquire().await?;
    let count = db::count(&mut conn, since).await?;
    let stats = |kind: PortKind| {
        let range = state.config.ports.of(kind);
        let total = i64::from(state.config.ports.total(kind)) * count.nodes;
        KindStats {
            total,
            used: count.held,
            available: (total - count.held - count.resting).max(0),
            range: format!("{}-{}", range.start(), range.end()),
        }
    };
    Ok(Json(PortStats {
        adb: stats(PortKind::Adb),
        webrtc: stats(PortKind::Webrtc),
        scrcpy: stats(PortKind::Scrcpy),
    }))
}
