//! Nodes as administrators see and change them.

use axum::extract::State as Shared;
use contracts::Timestamp;
use garde::Validate;
use http::StatusCode;
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::{Admin, Problem};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::db::{self, NodeChange, Word};
use super::settings::{NodeSettings, check_address, check_endpoint, check_labels};
use super::{Labels, Node, State, Tls};
use crate::device::RuntimeKind;
use crate::moving::{self, Drain};
use crate::{Devices, Error, error::Result};

/// What a node has for devices. What is left out has no limit.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// Processor cores that can be promised: those there are, times `cpuOvercommit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_cores: Option<f64>,
    cpu_overcommit: f64,
    #[serde(rename = "memoryMB", skip_serializing_if = "Option::is_none")]
    memory_mb: Option<i32>,
    /// For snapshots and for what is stored on devices, where images are brought from other nodes.
    #[serde(rename = "diskMB", skip_serializing_if = "Option::is_none")]
    disk_mb: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    devices: Option<i32>,
}

/// What devices have of it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Used {
    cpu_cores: f64,
    #[serde(rename = "memoryMB")]
    memory_mb: i64,
    devices: i32,
}

/// A node as administrators see it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Node)]
pub struct NodeView {
    /// The name.
    id: String,
    name: String,
    runtime: RuntimeKind,
    hosts_simulated: bool,
    /// The engine: `unix:///path`, `tcp://host:port`, `in-cluster://namespace` or `kubeconfig:///path?…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    /// What that engine calls itself: one that calls itself otherwise is not the node's.
    #[serde(skip_serializing_if = "Option::is_none")]
    engine_id: Option<String>,
    /// With which files replicas authenticate themselves to it: paths, never what is in them.
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<Tls>,
    /// Where clients reach the ports of its devices.
    address: String,
    /// The address on the node that these are bound to.
    bind: String,
    /// ready, cordoned, draining or down.
    status: String,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Since when.
    since: Timestamp,
    /// When its engine last answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    seen_at: Option<Timestamp>,
    #[schema(value_type = Object)]
    labels: Labels,
    capacity: Capacity,
    used: Used,
    /// How many devices it has.
    devices: i32,
    /// How far its draining is; where it is being drained, and shown alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    drain: Option<Drain>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl Node {
    /// How administrators see it.
    pub fn view(self) -> NodeView {
        let cores = |millis: i64| millis as f64 / 1000.0;
        NodeView {
            capacity: Capacity {
                cpu_cores: self.promised_cpu_millis().map(cores),
                cpu_overcommit: self.cpu_overcommit,
                memory_mb: self.memory_mb,
                disk_mb: self.disk_mb,
                devices: self.most_devices,
            },
            used: Used {
                cpu_cores: cores(self.used_cpu_millis),
                memory_mb: self.used_memory_mb,
                devices: self.used_devices,
            },
            status: match self.down_since {
                Some(_) => "down".into(),
                None => self.state.to_string(),
            },
            id: self.name.clone(),
            name: self.name,
            runtime: self.runtime,
            hosts_simulated: self.hosts_simulated,
            endpoint: self.endpoint,
            engine_id: self.engine_id,
            tls: self.tls.map(|tls| tls.0),
            address: self.address,
            bind: self.bind,
            reason: self.down_reason.or(self.reason),
            since: self.down_since.unwrap_or(self.since),
            seen_at: self.seen_at,
            labels: self.labels.0,
            devices: self.used_devices,
            drain: None,
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}

/// What shall be different about a node. What is left out stays.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PatchNode {
    /// The engine, where the node has one. Which one is found there first is the node's from then on, also where the endpoint
    /// is the same as before; its containers must be those that the devices of the node are in.
    #[garde(skip)]
    endpoint: Option<String>,
    /// With which files replicas authenticate themselves to it.
    #[garde(skip)]
    tls: Option<Tls>,
    /// Where clients reach the ports of its devices.
    #[garde(inner(custom(check_address)))]
    address: Option<String>,
    /// Marks for placement, all of them.
    #[garde(custom(check_labels))]
    labels: Option<Labels>,
    /// Processor cores there are.
    #[garde(range(min = 0.1, max = 4096.0))]
    cpu_cores: Option<f64>,
    /// How many times as many are promised to devices.
    #[garde(range(min = 0.1, max = 100.0))]
    cpu_overcommit: Option<f64>,
    /// Memory for devices; `memoryMB` on the wire and in refusals.
    #[garde(range(min = 1, max = 1_073_741_824))]
    memory_m_b: Option<i32>,
    /// Disk for snapshots and for what is stored on devices, as far as images are brought from other nodes; `diskMB` on the
    /// wire and in refusals.
    #[garde(range(min = 1, max = 1_073_741_824))]
    disk_m_b: Option<i32>,
    /// How many devices it may have.
    #[garde(range(min = 0, max = 100_000))]
    devices: Option<i32>,
}

/// Why a node is closed.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
pub struct Because {
    /// For the others.
    #[garde(length(chars, max = 500))]
    reason: Option<String>,
}

/// A node was removed.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Removed {
    message: String,
}

/// Lists the nodes, by name.
#[utoipa::path(get, path = "/nodes", tag = "nodes", params(PageQuery), responses((status = 200, body = Page<NodeView>), (status = 403)))]
pub async fn list_nodes(
    Shared(state): Shared<Devices>,
    _: Admin,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<NodeView>>> {
    let mut conn = state.platform.db.acquire().await?;
    let total = db::count(&mut conn).await?;
    let nodes = db::list(&mut conn, page.slice()).await?;
    let nodes = nodes.into_iter().map(Node::view).collect();
    Ok(Json(Page::new(nodes, total, page)))
}

/// Shows a node.
#[utoipa::path(get, path = "/nodes/{id}", tag = "nodes", params(("id" = String, Path, description = "The name of the node")), responses((status = 200, body = NodeView), (status = 403), (status = 404)))]
pub async fn find_node(
    Shared(state): Shared<Devices>,
    _: Admin,
    Path(name): Path<String>,
) -> Result<Json<NodeView>> {
    Ok(Json(found(&state, name).await?))
}

/// Makes a node known. Devices come to it as soon as a replica has reached its engine.
#[utoipa::path(post, path = "/nodes", tag = "nodes", request_body = NodeSettings, responses((status = 201, body = NodeView), (status = 400), (status = 403), (status = 409, description = "There is a node of that name")))]
pub async fn create_node(
    Shared(state): Shared<Devices>,
    _: Admin,
    Json(body): Json<NodeSettings>,
) -> Result<(StatusCode, Json<NodeView>)> {
    {
        let mut conn = state.platform.db.acquire().await?;
        let now = state.platform.clock.now();
        if !db::announce(&mut conn, &body, Word::New, now).await? {
            return Err(Error::NodeExists { node: body.name });
        }
    }
    info!("node {} was made known, {}", body.name, body.runtime);
    // The other replicas learn it with their next look at the nodes.
    super::health::tend(&state).await?;
    let node = found(&state, body.name).await?;
    Ok((StatusCode::CREATED, Json(node)))
}

/// Changes a node. A capacity below what is in use takes nothing away; it only lets no further device in.
#[utoipa::path(patch, path = "/nodes/{id}", tag = "nodes", params(("id" = String, Path, description = "The name of the node")), request_body = PatchNode, responses((status = 200, body = NodeView), (status = 400), (status = 403), (status = 404)))]
pub async fn patch_node(
    Shared(state): Shared<Devices>,
    _: Admin,
    Path(name): Path<String>,
    Json(body): Json<PatchNode>,
) -> Result<Json<NodeView>> {
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    if body.endpoint.is_some() {
        let node = db::find(&mut conn, &name).await?;
        let node = node.ok_or_else(|| Error::NoSuchNode { node: name.clone() })?;
        // What runs devices on a node with devices stays the same.
        if let Err(fault) = check_endpoint(node.runtime)(&body.endpoint, &()) {
            return Err(Problem::invalid_field("endpoint", fault.to_string()).into());
        }
    }
    let change = NodeChange {
        endpoint: body.endpoint,
        tls: body.tls,
        address: body.address,
        labels: body.labels,
        cpu_millis: body.cpu_cores.map(db::millis),
        cpu_overcommit: body.cpu_overcommit,
        memory_mb: body.memory_m_b,
        disk_mb: body.disk_m_b,
        most_devices: body.devices,
    };
    if !db::patch(&mut conn, &name, &change, now).await? {
        return Err(Error::NoSuchNode { node: name });
    }
    drop(conn);
    Ok(Json(found(&state, name).await?))
}

/// Lets no further devices onto a node; those it has stay, and can be started and stopped.
#[utoipa::path(post, path = "/nodes/{id}/cordon", tag = "nodes", params(("id" = String, Path, description = "The name of the node")), request_body = Because, responses((status = 200, body = NodeView), (status = 403), (status = 404)))]
pub async fn cordon_node(
    shared: Shared<Devices>,
    _: Admin,
    path: Path<String>,
    Json(body): Json<Because>,
) -> Result<Json<NodeView>> {
    change_state(shared, path, State::Cordoned, body.reason).await
}

/// Lets devices onto a node again.
#[utoipa::path(post, path = "/nodes/{id}/uncordon", tag = "nodes", params(("id" = String, Path, description = "The name of the node")), responses((status = 200, body = NodeView), (status = 403), (status = 404)))]
pub async fn uncordon_node(
    shared: Shared<Devices>,
    _: Admin,
    path: Path<String>,
) -> Result<Json<NodeView>> {
    change_state(shared, path, State::Ready, None).await
}

/// Lets no further devices onto a node, and has those it has leave it, a few at a time, with all that is on them and their
/// snapshots: `drain` tells how far that is, and which could not go. `uncordon` and another drain try those again.
#[utoipa::path(post, path = "/nodes/{id}/drain", tag = "nodes", params(("id" = String, Path, description = "The name of the node")), request_body = Because, responses((status = 200, body = NodeView), (status = 403), (status = 404)))]
pub async fn drain_node(
    shared: Shared<Devices>,
    _: Admin,
    path: Path<String>,
    Json(body): Json<Because>,
) -> Result<Json<NodeView>> {
    change_state(shared, path, State::Draining, body.reason).await
}

/// How a node is removed.
#[derive(Clone, Copy, Debug, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Removal {
    /// Whether a node that is down is removed though it alone keeps snapshots, or what is on devices, which are given up with it.
    #[serde(default)]
    #[garde(skip)]
    force: bool,
}

/// Removes a node that no device is on.
#[utoipa::path(delete, path = "/nodes/{id}", tag = "nodes", params(("id" = String, Path, description = "The name of the node"), Removal), responses((status = 200, body = Removed), (status = 403), (status = 404), (status = 409, description = "Devices are on it, or it alone keeps snapshots")))]
pub async fn delete_node(
    Shared(state): Shared<Devices>,
    _: Admin,
    Path(name): Path<String>,
    Query(removal): Query<Removal>,
) -> Result<Json<Removed>> {
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.now();
    if !db::remove(&mut conn, &name, removal.force, now).await? {
        return Err(match db::exists(&mut conn, &name).await? {
            true => match db::count_kept_alone(&mut conn, &name).await? {
                (0, 0) => Error::NodeOccupied { node: name },
                (snapshots, devices) => Error::NodeKeepsCopies {
                    node: name,
                    snapshots,
                    devices,
                },
            },
            false => Error::NoSuchNode { node: name },
        });
    }
    info!("node {name} was removed");
    Ok(Json(Removed {
        message: "the node was removed".into(),
    }))
}

async fn change_state(
    Shared(state): Shared<Devices>,
    Path(name): Path<String>,
    wanted: State,
    reason: Option<String>,
) -> Result<Json<NodeView>> {
    let now = state.platform.clock.now();
    let mut conn = state.platform.db.acquire().await?;
    if !db::set_state(&mut conn, &name, wanted, reason.as_deref(), now).await? {
        return Err(Error::NoSuchNode { node: name });
    }
    drop(conn);
    info!("node {name} is {wanted} from now on");
    Ok(Json(found(&state, name).await?))
}

async fn found(state: &Devices, name: String) -> Result<NodeView> {
    let mut conn = state.platform.db.acquire().await?;
    let node = db::find(&mut conn, &name).await?;
    let node = node.ok_or(Error::NoSuchNode { node: name })?;
    let drain = match node.state {
        State::Draining => Some(moving::db::progress(&mut conn, &node.name).await?),
        State::Ready | State::Cordoned => None,
    };
    Ok(NodeView {
        drain,
        ..node.view()
    })
}
