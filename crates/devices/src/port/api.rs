//! What clients may know about ports.

use axum::extract::State;
use contracts::{DeviceId, Timestamp, UserId};
use coordination::PortKind;
use garde::Validate;
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::{Admin, CurrentUser};
use serde::{Deserialize, Serialize};

use super::{Ports, db};
use crate::{Devices, Error, device, error::Result, node};

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
    /// How many rest after their last lease, or because another program listens on them.
    resting: i64,
    /// What neither a device holds nor rests, as the database has it; some may be leased for devices that are just being
    /// created.
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
    let mut conn = state.platform.db.acquire().await?;
    let count = db::count(&mut conn, state.config.port_quarantine).await?;
    let stats = |kind: PortKind, resting: i64| {
        let range = state.config.ports.of(kind);
        let total = i64::from(state.config.ports.total(kind)) * count.nodes;
        KindStats {
            total,
            used: count.held,
            resting,
            available: (total - count.held - resting).max(0),
            range: format!("{}-{}", range.start(), range.end()),
        }
    };
    Ok(Json(PortStats {
        adb: stats(PortKind::Adb, count.resting_adb),
        webrtc: stats(PortKind::Webrtc, count.resting_webrtc),
        scrcpy: stats(PortKind::Scrcpy, count.resting_scrcpy),
    }))
}

/// Which node is looked at.
#[derive(Clone, Debug, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct NodeQuery {
    /// Its name; default the first one in the settings of the instance that answers.
    #[garde(inner(length(min = 1, max = 64)))]
    node: Option<String>,
}

/// A set of ports that somebody holds, as Redis has it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortLease {
    node: String,
    /// The device; for a moment it may be one that does not exist yet.
    device_id: String,
    /// Whose device it is; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<UserId>,
    /// How it is; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    adb_port: u16,
    webrtc_port: u16,
    scrcpy_port: u16,
    since: Timestamp,
    /// When the lease ends unless it is renewed.
    until: Timestamp,
}

/// A port that nobody gets for the time being.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resting {
    node: String,
    #[schema(value_type = String)]
    kind: PortKind,
    port: u16,
    /// `returned`, `expired`, `foreign-process`, `not-permitted` or `leased`.
    reason: &'static str,
    since: Timestamp,
    /// When it can be leased again.
    until: Timestamp,
}

/// Lists who holds which ports of a node, since when and until when, lowest first.
#[utoipa::path(get, path = "/ports/leases", tag = "ports", params(PageQuery, NodeQuery), responses((status = 200, body = Page<PortLease>), (status = 403), (status = 404, description = "There is no such node")))]
pub async fn port_leases(
    State(state): State<Devices>,
    _: Admin,
    Query(page): Query<PageQuery>,
    Query(query): Query<NodeQuery>,
) -> Result<Json<Page<PortLease>>> {
    let (node, ports) = ports_of(&state, query).await?;
    let (sets, total) = cut(ports.leases().await?, page);
    let owners: Vec<String> = sets.iter().map(|set| set.owner.clone()).collect();
    let mut conn = state.platform.db.acquire().await?;
    let holders = db::holders(&mut conn, &owners).await?;
    let leases = sets.into_iter().map(|set| {
        let holder = holders.iter().find(|(id, ..)| *id == set.owner);
        PortLease {
            node: node.clone(),
            user_id: holder.map(|(_, user, _)| user.clone()),
            status: holder.map(|(.., status)| status.clone()),
            device_id: set.owner,
            adb_port: set.ports.adb,
            webrtc_port: set.ports.webrtc,
            scrcpy_port: set.ports.scrcpy,
            since: set.since.into(),
            until: set.until.into(),
        }
    });
    Ok(Json(Page::new(leases.collect(), total, page)))
}

/// Lists which ports of a node rest, why, and until when.
#[utoipa::path(get, path = "/ports/resting", tag = "ports", params(PageQuery, NodeQuery), responses((status = 200, body = Page<Resting>), (status = 403), (status = 404, description = "There is no such node")))]
pub async fn resting_ports(
    State(state): State<Devices>,
    _: Admin,
    Query(page): Query<PageQuery>,
    Query(query): Query<NodeQuery>,
) -> Result<Json<Page<Resting>>> {
    let (node, ports) = ports_of(&state, query).await?;
    let (resting, total) = cut(ports.resting().await?, page);
    let resting = resting.into_iter().map(|resting| Resting {
        node: node.clone(),
        kind: resting.kind,
        port: resting.port,
        reason: resting.reason.as_str(),
        since: resting.since.into(),
        until: resting.until.into(),
    });
    Ok(Json(Page::new(resting.collect(), total, page)))
}

async fn ports_of(state: &Devices, query: NodeQuery) -> Result<(String, Ports)> {
    let name = query
        .node
        .unwrap_or_else(|| state.config.first_node().to_owned());
    let mut conn = state.platform.db.acquire().await?;
    if !node::db::exists(&mut conn, &name).await? {
        return Err(Error::NoSuchNode { node: name });
    }
    let ports = state.ports.of_name(&name);
    Ok((name, ports))
}

/// The entries of a page, and how many there are on all.
fn cut<T>(entries: Vec<T>, page: PageQuery) -> (Vec<T>, i64) {
    let slice = page.slice();
    let total = i64::try_from(entries.len()).unwrap_or(i64::MAX);
    let (offset, limit) = (
        usize::try_from(slice.offset).unwrap_or(usize::MAX),
        usize::try_from(slice.limit).unwrap_or_default(),
    );
    (
        entries.into_iter().skip(offset).take(limit).collect(),
        total,
    )
}
