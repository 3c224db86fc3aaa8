//! The creation of a device: ports first, then everything else in one transaction.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use contracts::{DeviceId, Event, EventBody, Timestamp, UserId};
use coordination::PortError;
use garde::Validate;
use http::StatusCode;
use platform::events::emit;
use platform::idempotency::{IdempotencyKey, Idempotent, Turn};
use platform::{Caller, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::{info, warn};

use super::db::NewDevice;
use super::{DeviceType, DeviceView, ProviderType, RuntimeKind, Status, db};
use crate::lifecycle::db::{Wanted, take_place};
use crate::node::placement::{self, Demand, Refusal};
use crate::node::{self, Labels, Node};
use crate::operation::{self, Kind};
use crate::port::{self, Leased};
use crate::{Devices, Error, error::Result, metrics, quota};

/// How often one creation tries again when others turn out to hold its ports, or to have taken the last room.
const ATTEMPTS: u32 = 16;
/// The longest metadata, as JSON.
const METADATA_BYTES: usize = 16 * 1024;
/// The longest reply that is read again: the device stands in it twice, with its metadata.
const REPLY_BYTES: usize = 256 * 1024;

/// What a device shall be.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateDevice {
    /// What its owner calls it.
    #[garde(length(chars, min = 1, max = 100))]
    pub name: String,
    /// What its owner says about it.
    #[garde(length(chars, max = 500))]
    pub description: Option<String>,
    /// Default phone.
    #[serde(rename = "type")]
    #[garde(skip)]
    pub kind: Option<DeviceType>,
    /// Default redroid.
    #[garde(skip)]
    pub provider_type: Option<ProviderType>,
    /// Default 2.
    #[garde(range(min = 1, max = 16))]
    pub cpu_cores: Option<i32>,
    /// Default 4096. The name is such that `memoryMB` comes of it on the wire and in refusals.
    #[garde(range(min = 512, max = 32_768))]
    pub memory_m_b: Option<i32>,
    /// Default 10240.
    #[garde(range(min = 1_024, max = 1_048_576))]
    pub storage_m_b: Option<i32>,
    /// Default 1080x1920.
    #[garde(inner(custom(check_resolution)))]
    pub resolution: Option<String>,
    /// Default 320.
    #[garde(range(min = 120, max = 640))]
    pub dpi: Option<i32>,
    /// Default 11.
    #[garde(inner(custom(check_android_version)))]
    pub android_version: Option<String>,
    /// At most 10.
    #[garde(length(max = 10), inner(inner(length(chars, min = 1, max = 50))))]
    pub tags: Option<Vec<String>>,
    /// The group it is in.
    #[garde(length(chars, min = 1, max = 100))]
    pub group_name: Option<String>,
    /// Whatever else, at most 16 KiB.
    #[schema(value_type = Option<Object>)]
    #[garde(inner(custom(check_metadata)))]
    pub metadata: Option<Map<String, Value>>,
    /// Default the caller.
    #[garde(skip)]
    pub user_id: Option<UserId>,
    /// Default true.
    #[garde(skip)]
    pub auto_start: Option<bool>,
}

/// The new device, twice, and the name of its creation.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Created {
    #[serde(flatten)]
    view: DeviceView,
    saga_id: String,
    device: DeviceView,
    message: String,
}

/// Checks `N` or `N.N`.
pub fn check_android_version(text: &str, _: &()) -> garde::Result {
    if super::is_android_version(text) {
        Ok(())
    } else {
        Err(garde::Error::new("must be a version such as 11 or 11.0"))
    }
}

/// Checks `NNNxNNN`.
pub fn check_resolution(text: &str, _: &()) -> garde::Result {
    if super::pixels(text).is_some() {
        Ok(())
    } else {
        Err(garde::Error::new(
            "must be width x height such as 1080x1920",
        ))
    }
}

/// Checks the size of metadata, and what it says to the placement.
pub fn check_metadata(object: &Map<String, Value>, _: &()) -> garde::Result {
    let length = serde_json::to_vec(object).map_or(usize::MAX, |bytes| bytes.len());
    if length > METADATA_BYTES {
        return Err(garde::Error::new("must not be longer than 16 KiB"));
    }
    let selector = object.get("nodeSelector");
    if selector.is_some_and(|selector| Labels::deserialize(selector).is_err()) {
        return Err(garde::Error::new(
            "nodeSelector must be an object of texts, the labels of a node",
        ));
    }
    Ok(())
}

impl CreateDevice {
    fn into_new(self, user_id: UserId) -> NewDevice {
        NewDevice {
            id: DeviceId::new(),
            user_id,
            name: self.name,
            description: self.description,
            kind: self.kind.unwrap_or(DeviceType::Phone),
            provider_type: self.provider_type.unwrap_or(ProviderType::Redroid),
            wanted: if self.auto_start.unwrap_or(true) {
                Status::Running
            } else {
                Status::Stopped
            },
            cpu_cores: self.cpu_cores.unwrap_or(2),
            memory_mb: self.memory_m_b.unwrap_or(4_096),
            storage_mb: self.storage_m_b.unwrap_or(10_240),
            resolution: self.resolution.unwrap_or_else(|| "1080x1920".into()),
            dpi: self.dpi.unwrap_or(320),
            android_version: self.android_version.unwrap_or_else(|| "11".into()),
            group_name: self.group_name,
            tags: self.tags.unwrap_or_default(),
            metadata: self.metadata.unwrap_or_default(),
        }
    }
}

/// Creates a device: answers at once with its ports, the rest follows by itself. Until the device first runs, its ports
/// become others where another program takes one of them: then `device-status-changed` comes with the status it has already,
/// and `GET /devices/{id}` names them. A repeated request gets the first answer, with the first ports.
#[utoipa::path(post, path = "/devices", tag = "devices", request_body = CreateDevice,
    params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = Created, description = "The device is being created; its ports are final once it runs"), (status = 400), (status = 403, description = "The quota does not allow it"), (status = 409), (status = 422), (status = 503, description = "No node has room, no port is free, or none can be leased")))]
pub async fn create_device(
    State(state): State<Devices>,
    caller: Caller,
    Idempotent { body, key }: Idempotent<CreateDevice>,
) -> Result<Response> {
    let owner = caller.acting_for(body.user_id.clone())?;
    let scope = caller
        .user()
        .map_or_else(|| format!("sandbox:{owner}"), |user| user.id.to_string());
    // A request that comes again shall not use up ports.
    if let Some(reply) = before(&state, &key, &scope).await? {
        return Ok(reply);
    }
    let made = reply(&state, owner, body, key, &scope).await;
    let is_admin = caller.user().is_some_and(|user| user.is_admin);
    let (reply, _) = made.map_err(|error| match is_admin {
        true => error.with_nodes(),
        false => error,
    })?;
    Ok(reply)
}

/// Creates a device; the reply, and whether it is one of now and not of an earlier request with the key.
///
/// # Errors
/// As for [`create_device`].
pub async fn reply(
    state: &Devices,
    owner: UserId,
    body: CreateDevice,
    key: IdempotencyKey,
    scope: &str,
) -> Result<(Response, bool)> {
    let device = body.into_new(owner);
    let (reply, saga_id) = make(state, &device, key, scope, None).await?;
    Ok((reply, !saga_id.is_empty()))
}

/// One device of several.
#[derive(Clone, Debug)]
pub struct Made {
    /// Which.
    pub device: DeviceId,
    /// The name of its creation.
    pub saga_id: String,
    /// Whether this request has made it, and not an earlier one with the same key.
    pub is_new: bool,
}

/// Creates one device of several, or finds the one that an earlier request with the key created.
///
/// # Errors
/// As for [`create_device`].
pub async fn one(
    state: &Devices,
    owner: UserId,
    body: CreateDevice,
    key: IdempotencyKey,
    scope: &str,
) -> Result<Made> {
    let device = body.into_new(owner);
    if let Some(reply) = before(state, &key, scope).await? {
        return made_before(reply).await;
    }
    let (reply, saga_id) = make(state, &device, key, scope, None).await?;
    match saga_id.is_empty() {
        true => made_before(reply).await,
        false => Ok(Made {
            device: device.id,
            saga_id,
            is_new: true,
        }),
    }
}

/// Creates a device that a lifecycle rule wants, and counts it in the same transaction.
///
/// # Errors
/// As for [`create_device`], and [`Error::NotWanted`].
pub async fn for_rule(
    state: &Devices,
    owner: UserId,
    body: CreateDevice,
    wanted: Wanted<'_>,
) -> Result<()> {
    let device = body.into_new(owner);
    let (key, scope) = (IdempotencyKey::none(), device.user_id.as_str());
    make(state, &device, key, scope, Some(wanted)).await?;
    Ok(())
}

/// The reply to an earlier request with the key.
async fn before(state: &Devices, key: &IdempotencyKey, scope: &str) -> Result<Option<Response>> {
    if key.is_none() {
        return Ok(None);
    }
    let mut tx = state.platform.db.begin().await?;
    match key.clone().claim(&mut tx, scope).await? {
        Turn::Replay(reply) => Ok(Some(reply)),
        Turn::First(_) => {
            tx.rollback().await?;
            Ok(None)
        }
    }
}

/// The device and the name of its creation, as an earlier reply tells them.
async fn made_before(reply: Response) -> Result<Made> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Told {
        id: DeviceId,
        saga_id: String,
    }
    let body = axum::body::to_bytes(reply.into_body(), REPLY_BYTES).await;
    let told = body
        .ok()
        .and_then(|body| serde_json::from_slice::<Told>(&body).ok());
    let told = told.ok_or_else(Problem::internal)?;
    Ok(Made {
        device: told.id,
        saga_id: told.saga_id,
        is_new: false,
    })
}

/// Makes a device with its ports; the reply, and the name of the creation, which is empty where the reply is an earlier one.
async fn make(
    state: &Devices,
    device: &NewDevice,
    key: IdempotencyKey,
    scope: &str,
    wanted: Option<Wanted<'_>>,
) -> Result<(Response, String)> {
    let demand = device.demand();
    let (mut tried, mut full) = (Vec::new(), None);
    let mut attempts = 0;
    while attempts < ATTEMPTS {
        let Some(place) = find_place(state, &demand, &mut tried).await? else {
            continue;
        };
        let ports = state.ports_of(&place.node);
        let mut leased = match ports.lease(&device.id).await {
            Ok(leased) => leased,
            // Another node may have some.
            Err(Error::Ports(error @ PortError::Exhausted { .. })) => {
                tried.push(place.refuses(error));
                continue;
            }
            Err(error @ Error::PortsContended { .. }) => {
                tried.push(place.refuses(error));
                continue;
            }
            Err(error) => return Err(error),
        };
        attempts += 1;
        match store(
            state,
            device,
            &place,
            &mut leased,
            (key.clone(), scope),
            wanted,
        )
        .await
        {
            Ok(Stored::New(reply, saga_id)) => {
                info!(
                    "Allocated ports: ADB={}, WebRTC={}",
                    leased.ports.adb, leased.ports.webrtc
                );
                state.operations_due.notify_one();
                return Ok((reply, saga_id));
            }
            Ok(Stored::Before(reply)) => return Ok((reply, String::new())),
            Ok(Stored::NotWanted) => {
                ports.hand_back(leased).await?;
                return Err(Error::NotWanted);
            }
            // Before the next turn, which leases to the same owner: the ports of that one would be given back.
            Ok(Stored::NoRoom) => {
                ports.hand_back(leased).await?;
                full = Some(place.refuses("others took its last room each time"));
            }
            Err(Error::Database(error)) if port::is_conflict(&error) => {
                // Redis had forgotten who holds them; the database had not.
                warn!(device.id = %device.id, "ports {:?} of node {} were leased although another device holds one: rebuilding the index", leased.ports, place.node.name);
                metrics::ports_contended("held");
                ports.give_up(leased).await;
                ports.reconcile().await?;
            }
            // Nobody has used the ports: they go back by themselves, and do not rest.
            Err(error) => return Err(error),
        }
    }
    tried.extend(full);
    Err(Error::NoRoom { refusals: tried })
}

/// Where a device is to come, and what runs it there.
struct Place {
    node: Node,
    runtime: RuntimeKind,
}

impl Place {
    fn refuses(&self, reason: impl ToString) -> Refusal {
        Refusal {
            node: self.node.name.clone(),
            reason: reason.to_string(),
        }
    }
}

/// The best node for a device whose engine answers; `None` where it did not, which is noted.
async fn find_place(
    state: &Devices,
    demand: &Demand,
    tried: &mut Vec<Refusal>,
) -> Result<Option<Place>> {
    let nodes = {
        let mut conn = state.platform.db.acquire().await?;
        node::db::all(&mut conn).await?
    };
    let chosen = placement::choose(&nodes, demand, state.config.placement, tried);
    let (node, runtime) = chosen.map_err(|refusals| Error::NoRoom { refusals })?;
    let place = Place {
        node: node.clone(),
        runtime,
    };
    if runtime.has_engine() {
        state.runtimes.engines.know(node);
        let there = match state.runtimes.engines.of(&node.name) {
            // Where it never answered here, other replicas may reach it, and work on the device then.
            Ok(engine) => engine.is_there().await.or_else(|error| {
                let within = state.config.node_down_after.as_secs_f64();
                let others_do = node.unseen_seconds.is_some_and(|seconds| seconds < within);
                match others_do && !engine.presence().ever_answered() {
                    true => Ok(()),
                    false => Err(error),
                }
            }),
            Err(error) => Err(error),
        };
        if let Err(error) = there {
            tried.push(place.refuses(error));
            return Ok(None);
        }
    }
    Ok(Some(place))
}

enum Stored {
    New(Response, String),
    Before(Response),
    NoRoom,
    NotWanted,
}

/// Writes the device, the operation that brings it into being, and the reply.
async fn store(
    state: &Devices,
    device: &NewDevice,
    place: &Place,
    leased: &mut Leased,
    (key, scope): (IdempotencyKey, &str),
    wanted: Option<Wanted<'_>>,
) -> Result<Stored> {
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    let turn = match key.claim(&mut tx, scope).await? {
        Turn::First(turn) => turn,
        Turn::Replay(reply) => return Ok(Stored::Before(reply)),
    };
    if let Some(wanted) = wanted
        && !take_place(&mut tx, wanted).await?
    {
        return Ok(Stored::NotWanted);
    }
    let (node, runtime) = (&place.node.name, place.runtime);
    db::insert(&mut tx, device, (node, runtime), leased.ports, now).await?;
    let saga_id = operation::db::insert(&mut tx, &device.id, Kind::Create, true, now).await?;
    emit(&mut tx, &created(device, now)).await?;
    let view = db::find(&mut tx, &device.id).await?;
    let view = view.ok_or(sqlx::Error::RowNotFound)?.view();
    let reply = Created {
        device: view.clone(),
        view,
        saga_id: saga_id.clone(),
        message: "the device is being created".into(),
    };
    let reply = turn.reply(&mut tx, StatusCode::CREATED, &reply).await?;
    // Last, since whoever comes next to this quota and to this node waits for the end of the transaction.
    let charged = (device.sizes(), device.wanted == Status::Running);
    quota::charge_creation(&mut tx, &state.quotas, &device.user_id, charged, now).await?;
    if !placement::reserve(&mut tx, (node, runtime), &device.demand()).await? {
        return Ok(Stored::NoRoom);
    }
    // Whether the commit takes effect may stay unknown.
    leased.keep();
    tx.commit().await?;
    Ok(Stored::New(reply.into_response(), saga_id))
}

fn created(device: &NewDevice, now: Timestamp) -> Event {
    Event::new(
        device.user_id.clone(),
        now,
        EventBody::DeviceCreated {
            device_id: device.id.clone(),
            name: device.name.clone(),
        },
    )
}
