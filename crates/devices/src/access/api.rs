//! Giving tickets, telling where a device is reached, and switching ADB on and off.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use contracts::{DeviceId, Timestamp};
use coordination::PortKind;
use http::uri::Authority;
use http::{HeaderMap, StatusCode, header};
use platform::CurrentUser;
use platform::http::{Json, Path};
use serde::Serialize;
use std::time::Duration;
use tracing::info;

use super::remote::Done;
use super::ticket::NewTicket;
use super::{Ending, Fault, db, ticket};
use crate::device::{self, Device, Status, api::lock_visible, pixels};
use crate::error::Result;
use crate::{Devices, Error, metrics};

/// How long the token for a browser's page opens a tunnel: the page may stand open for a while first.
const PAGE_TOKEN: Duration = Duration::from_secs(3600);
/// How many tickets of a user wait for the same port of the same device; a further one takes the place of the oldest.
const WAITING: i64 = 16;

/// A ticket for the ADB port.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdbTicket {
    device_id: DeviceId,
    /// The secret, shown only here.
    ticket: String,
    /// The WebSocket that it opens, once.
    url: String,
    /// Until when.
    expires_at: Timestamp,
}

/// A ticket for the WebRTC port.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebrtcToken {
    device_id: DeviceId,
    device_name: String,
    /// The secret, shown only here.
    token: String,
    /// Until when it opens a tunnel.
    expires_at: Timestamp,
    signaling: Signaling,
    /// Servers that help to find a way; none are needed through the tunnel.
    #[schema(value_type = Vec<Object>)]
    ice_servers: [(); 0],
}

/// The tunnel to the WebRTC port.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Signaling {
    /// The WebSocket that the token opens, once.
    url: String,
    protocol: &'static str,
}

/// A ticket for the scrcpy port.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScrcpySession {
    /// The secret, shown only here.
    session_id: String,
    device_id: DeviceId,
    scrcpy_port: i32,
    /// The WebSocket that it opens, once.
    url: String,
    /// Until when.
    expires_at: Timestamp,
}

/// Where a device is reached by ADB.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    device_id: DeviceId,
    device_name: String,
    host: String,
    adb_port: i32,
    status: Status,
    adb_command: String,
    is_online: bool,
}

/// What a stream of the screen is made from.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StreamInfo {
    device_id: DeviceId,
    container_name: String,
    adb_port: i32,
    screen_resolution: Resolution,
}

/// Pixels.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Resolution {
    width: u32,
    height: u32,
}

/// Whether a device may be reached by ADB, and where.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdbInfo {
    adb_servlet_address: String,
    adb_enabled: bool,
}

/// What was given.
struct Given {
    secret: String,
    expires_at: Timestamp,
    device: Device,
    url: String,
}

/// Gives a ticket for one tunnel to the ADB port. It is for who calls, and for the device as it is now: it no longer counts
/// when the device stops, or the session or key of the call ends.
#[utoipa::path(post, path = "/devices/{id}/adb/ticket", tag = "access", params(("id" = String, Path)),
    responses((status = 201, body = AdbTicket), (status = 404), (status = 409, description = "The device does not run, or ADB is disabled on it"), (status = 429, description = "Too many tickets of the caller wait to be used")))]
pub async fn create_adb_ticket(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<AdbTicket>)> {
    let given = give(&state, &user, id, PortKind::Adb, &headers).await?;
    let reply = AdbTicket {
        device_id: given.device.id,
        ticket: given.secret,
        url: given.url,
        expires_at: given.expires_at,
    };
    Ok((StatusCode::CREATED, Json(reply)))
}

/// Gives a ticket for one tunnel to the WebRTC port.
#[utoipa::path(post, path = "/devices/{id}/webrtc/token", tag = "access", params(("id" = String, Path)),
    responses((status = 200, body = WebrtcToken), (status = 404), (status = 409, description = "The device does not run"), (status = 429, description = "Too many tickets of the caller wait to be used")))]
pub async fn create_webrtc_token(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
    headers: HeaderMap,
) -> Result<Json<WebrtcToken>> {
    let given = give(&state, &user, id, PortKind::Webrtc, &headers).await?;
    Ok(Json(WebrtcToken {
        device_id: given.device.id,
        device_name: given.device.name,
        token: given.secret,
        expires_at: given.expires_at,
        signaling: Signaling {
            url: given.url,
            protocol: "websocket",
        },
        ice_servers: [],
    }))
}

/// Gives a ticket for one tunnel to the scrcpy port.
#[utoipa::path(post, path = "/devices/{id}/scrcpy/session", tag = "access", params(("id" = String, Path)),
    responses((status = 201, body = ScrcpySession), (status = 404), (status = 409, description = "The device does not run"), (status = 429, description = "Too many tickets of the caller wait to be used")))]
pub async fn create_scrcpy_session(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
    headers: HeaderMap,
) -> Result<Response> {
    let given = give(&state, &user, id, PortKind::Scrcpy, &headers).await?;
    let reply = ScrcpySession {
        session_id: given.secret,
        device_id: given.device.id,
        scrcpy_port: given.device.scrcpy_port,
        url: given.url,
        expires_at: given.expires_at,
    };
    Ok((StatusCode::CREATED, Json(reply)).into_response())
}

/// Shows where a device is reached by ADB.
#[utoipa::path(get, path = "/devices/{id}/connection", tag = "access", params(("id" = String, Path)), responses((status = 200, body = Connection), (status = 404)))]
pub async fn find_connection(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
) -> Result<Json<Connection>> {
    let device = find_visible(&state, &user, id).await?;
    Ok(Json(Connection {
        adb_command: device.adb_command(),
        is_online: device.status == Status::Running,
        device_id: device.id,
        device_name: device.name,
        host: device.address,
        adb_port: device.adb_port,
        status: device.status,
    }))
}

/// Shows what a stream of the screen is made from.
#[utoipa::path(get, path = "/devices/{id}/stream-info", tag = "access", params(("id" = String, Path)), responses((status = 200, body = StreamInfo), (status = 404), (status = 409, description = "The device does not run")))]
pub async fn find_stream_info(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
) -> Result<Json<StreamInfo>> {
    let device = find_visible(&state, &user, id).await?;
    if device.status != Status::Running {
        return Err(Fault::NotRunning { device: device.id }.into());
    }
    let (width, height) = pixels(&device.resolution).unwrap_or((1080, 1920));
    Ok(Json(StreamInfo {
        container_name: crate::runtime::docker::name(&device.id),
        device_id: device.id,
        adb_port: device.adb_port,
        screen_resolution: Resolution { width, height },
    }))
}

/// Allows ADB on a device.
#[utoipa::path(post, path = "/devices/{id}/adb/enable", tag = "access", params(("id" = String, Path)), responses((status = 200, body = Done), (status = 404)))]
pub async fn enable_adb(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
) -> Result<Json<Done>> {
    switch_adb(&state, &user, &id, true).await?;
    Ok(Json(Done {
        message: "the device may be reached by ADB".to_owned(),
    }))
}

/// Forbids ADB on a device: no ticket is given for it, those that were given are void, and open tunnels are closed within
/// seconds.
#[utoipa::path(post, path = "/devices/{id}/adb/disable", tag = "access", params(("id" = String, Path)), responses((status = 200, body = Done), (status = 404)))]
pub async fn disable_adb(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
) -> Result<Json<Done>> {
    switch_adb(&state, &user, &id, false).await?;
    Ok(Json(Done {
        message: "the device can no longer be reached by ADB".to_owned(),
    }))
}

/// Shows whether a device may be reached by ADB, and where.
#[utoipa::path(get, path = "/devices/{id}/adb/info", tag = "access", params(("id" = String, Path)), responses((status = 200, body = AdbInfo), (status = 404)))]
pub async fn find_adb_info(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<DeviceId>,
) -> Result<Json<AdbInfo>> {
    let mut conn = state.platform.db.acquire().await?;
    let target = db::target(&mut conn, &id).await?;
    let target = target.filter(|target| user.may_see(&target.user_id));
    let target = target.ok_or(Error::NoSuchDevice { device: id })?;
    Ok(Json(AdbInfo {
        adb_servlet_address: format!("{}:{}", target.address, target.adb_port),
        adb_enabled: target.adb_enabled,
    }))
}

async fn switch_adb(
    state: &Devices,
    user: &CurrentUser,
    id: &DeviceId,
    enabled: bool,
) -> Result<()> {
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    lock_visible(&mut tx, user, id).await?;
    db::set_adb_enabled(&mut tx, id, enabled, now).await?;
    tx.commit().await?;
    let word = if enabled { "enabled" } else { "disabled" };
    info!(device.id = %id, user.id = %user.id, "user {} {word} ADB on device {id}", user.id);
    Ok(())
}

async fn find_visible(state: &Devices, user: &CurrentUser, id: DeviceId) -> Result<Device> {
    let mut conn = state.platform.db.acquire().await?;
    let device = device::db::find(&mut conn, &id).await?;
    let device = device.filter(|device| user.may_see(&device.user_id));
    device.ok_or(Error::NoSuchDevice { device: id })
}

async fn give(
    state: &Devices,
    user: &CurrentUser,
    id: DeviceId,
    kind: PortKind,
    headers: &HeaderMap,
) -> Result<Given> {
    let (secret, config) = (ticket::secret(), &state.access.config);
    let mut tx = state.platform.db.begin().await?;
    // Locked, so that whose it is and how it stands is the same for all that follows.
    let device = lock_visible(&mut tx, user, &id).await?;
    if device.status != Status::Running {
        return Err(Fault::NotRunning { device: id }.into());
    }
    // By the clock of the database, as for all that goes on without a ticket.
    if (db::target(&mut tx, &id).await?).is_some_and(|target| target.is_over) {
        return Err(Fault::EndedTicket(Ending::LeaseEnded).into());
    }
    let new = NewTicket::of(user, id.clone(), kind);
    let most = config.tickets_per_user;
    let waiting = db::count_waiting(&mut tx, &user.id).await?;
    let replaced = db::replace(&mut tx, &new, WAITING - 1).await?;
    if waiting - i64::try_from(replaced).unwrap_or_default() >= most {
        return Err(Fault::TooManyTickets { most }.into());
    }
    let valid = match kind {
        PortKind::Webrtc => PAGE_TOKEN,
        PortKind::Adb | PortKind::Scrcpy => config.ticket,
    };
    let given = db::insert(&mut tx, &new, &ticket::fingerprint(&secret), valid).await?;
    let expires_at = given.ok_or(Fault::Disabled { device: id })?;
    tx.commit().await?;
    metrics::ticket(kind);
    let path = match kind {
        PortKind::Adb => "adb",
        PortKind::Webrtc | PortKind::Scrcpy => "stream",
    };
    let url = format!(
        "{}/devices/{}/{path}?ticket={secret}",
        base(headers),
        device.id
    );
    Ok(Given {
        secret,
        expires_at,
        device,
        url,
    })
}

/// Where the client has reached us, for a WebSocket: through a gateway, or directly; nothing where it does not say.
fn base(headers: &HeaderMap) -> String {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let forwarded = text("x-forwarded-host");
    let host = forwarded.or_else(|| text(header::HOST.as_str()));
    let host = host.and_then(|host| host.parse::<Authority>().ok());
    let secure = text("x-forwarded-proto").is_some_and(|proto| proto.eq_ignore_ascii_case("https"));
    match host {
        Some(host) => {
            let scheme = if secure { "wss" } else { "ws" };
            let prefix = if forwarded.is_some() { "/api" } else { "" };
            format!("{scheme}://{host}{prefix}")
        }
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            let name = http::HeaderName::from_static(name);
            (name, HeaderValue::from_static(value))
        });
        pairs.collect()
    }

    #[test]
    fn a_client_is_told_the_address_that_it_used() {
        for (told, expected) in [
            (&[][..], ""),
            (&[("host", "127.0.0.1:30002")], "ws://127.0.0.1:30002"),
            (
                &[
                    ("host", "a:1"),
                    ("x-forwarded-host", "phones.example.com"),
                    ("x-forwarded-proto", "https"),
                ],
                "wss://phones.example.com/api",
            ),
            (
                &[
                    ("x-forwarded-host", "[::1]:30000"),
                    ("x-forwarded-proto", "http"),
                ],
                "ws://[::1]:30000/api",
            ),
            (&[("host", "a b")], ""),
        ] {
            assert_eq!(base(&headers(told)), expected, "{told:?}");
        }
    }
}
