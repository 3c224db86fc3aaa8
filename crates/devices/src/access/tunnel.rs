//! Opening a tunnel: a ticket is used, the device is connected to, and the request goes on as a WebSocket.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::response::Response;
use contracts::DeviceId;
use coordination::PortKind;
use garde::Validate;
use platform::http::{Path, Query};
use platform::lifecycle::return_after;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::{debug, info};

use super::db::Standing;
use super::relay::{MAX_FRAME, Pace, carry};
use super::tunnels::{OPEN, Tunnel};
use super::{Ending, Fault, db, reach, ticket};
use crate::error::Result;
use crate::{Devices, metrics};

/// How long noting that a tunnel was closed may take; it is forgotten by itself as well.
const NOTE: Duration = Duration::from_secs(3);

/// By what a tunnel is opened.
#[derive(Clone, Debug, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TicketQuery {
    /// The secret of the ticket.
    #[garde(inner(length(max = 128)))]
    ticket: Option<String>,
}

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// Opens a tunnel to the ADB port: a WebSocket whose binary frames are the bytes of the connection. It is closed with a
/// code and a reason: 4401 the session has ended, 4403 the lease has or ADB is disabled, 4404 the device was deleted, 4409 it
/// stopped, 1012 the instance restarts, 1000 the device closed the connection.
#[utoipa::path(get, path = "/devices/{id}/adb", tag = "access", security(()), params(("id" = String, Path), TicketQuery),
    responses((status = 101, description = "The tunnel is open"), (status = 400, description = "No WebSocket was asked for"),
        (status = 401, description = "There is no such ticket, or it was used, or has expired"), (status = 409, description = "The device stopped since"),
        (status = 429), (status = 502, description = "The device does not take the connection"), (status = 503)))]
pub async fn open_adb_tunnel(
    State(state): State<Devices>,
    Path(id): Path<DeviceId>,
    Query(query): Query<TicketQuery>,
    upgrade: Upgrade,
) -> Result<Response> {
    open(state, id, query, &[PortKind::Adb], upgrade).await
}

/// Opens a tunnel to the WebRTC or the scrcpy port, as the ticket says; else as the one to the ADB port.
#[utoipa::path(get, path = "/devices/{id}/stream", tag = "access", security(()), params(("id" = String, Path), TicketQuery),
    responses((status = 101, description = "The tunnel is open"), (status = 400, description = "No WebSocket was asked for"),
        (status = 401, description = "There is no such ticket, or it was used, or has expired"), (status = 409, description = "The device stopped since"),
        (status = 429), (status = 502, description = "The device does not take the connection"), (status = 503)))]
pub async fn open_stream_tunnel(
    State(state): State<Devices>,
    Path(id): Path<DeviceId>,
    Query(query): Query<TicketQuery>,
    upgrade: Upgrade,
) -> Result<Response> {
    let kinds = [PortKind::Webrtc, PortKind::Scrcpy];
    open(state, id, query, &kinds, upgrade).await
}

async fn open(
    state: Devices,
    id: DeviceId,
    query: TicketQuery,
    kinds: &[PortKind],
    upgrade: Upgrade,
) -> Result<Response> {
    let secret = query.ticket.filter(|ticket| !ticket.is_empty());
    let secret = secret.ok_or(Fault::NoTicket)?;
    let upgrade = upgrade.map_err(|_| Fault::NoUpgrade)?;
    let place = state.access.tunnels.place()?;
    let admitted = admit(&state, &id, &secret, kinds).await;
    let (found, kind, standing) = admitted.inspect_err(|_| metrics::tunnel(kinds[0], "refused"))?;
    // From here on the ticket is used, and counts as a tunnel until it is noted that there is none.
    let device = match connect(&state, &id, found.id, kind, &standing).await {
        Ok(device) => device,
        Err(error) => {
            metrics::tunnel(kind, "unreachable");
            close(&state, found.id).await;
            return Err(error);
        }
    };
    let tunnels = state.access.tunnels.clone();
    let tunnel = tunnels.add(found.id, found.user_id, id, kind);
    let (failed, tasks) = (tunnel.clone(), tunnels.tasks().clone());
    let (noting, unopened) = (tasks.clone(), state.clone());
    let opened = upgrade
        .max_message_size(MAX_FRAME)
        .max_frame_size(MAX_FRAME)
        .on_failed_upgrade(move |error| {
            debug!("a client left while its tunnel was opened: {error}");
            tunnels.remove(&failed);
            // One statement, with a deadline, that leaving waits for.
            noting.spawn(async move { close(&unopened, failed.ticket).await });
        });
    Ok(opened.on_upgrade(move |socket| {
        tasks.track_future(async move {
            let _place = place;
            metrics::tunnel(kind, "opened");
            let _open = metrics::OpenTunnel::new(kind);
            let idle = state.access.config.tunnel_idle;
            let spread = state.platform.settings.reconnect_spread;
            let words = |ending| match ending {
                Ending::Leaving => format!(r#"{{"retryAfterMs":{}}}"#, return_after(spread).as_millis()),
                ending => ending.message().to_owned(),
            };
            let pace = Pace::begin(kind);
            info!(device.id = %tunnel.device, user.id = %tunnel.user, tunnel.kind = %kind, "user {} opened a tunnel to the {kind} port of device {}", tunnel.user, tunnel.device);
            let ending = carry(socket, device, &pace, idle, tunnel.ended(), words).await;
            tell(&tunnel, &pace, ending);
            state.access.tunnels.remove(&tunnel);
            close(&state, tunnel.ticket).await;
        })
    }))
}

/// Uses the ticket, if it is one for a port of the device and counts.
async fn admit(
    state: &Devices,
    id: &DeviceId,
    secret: &str,
    kinds: &[PortKind],
) -> Result<(db::Found, PortKind, Standing)> {
    let most = state.access.config.tunnels_per_device;
    let mut tx = state.platform.db.begin().await?;
    let found = db::find(&mut tx, &ticket::fingerprint(secret)).await?;
    let known = found.and_then(|found| Some((PortKind::parse(&found.kind)?, found)));
    let (kind, found) = known
        .filter(|(kind, found)| found.device_id == *id && kinds.contains(kind))
        .ok_or(Fault::UnknownTicket)?;
    if found.is_used {
        return Err(Fault::UsedTicket.into());
    }
    if found.is_expired {
        return Err(Fault::ExpiredTicket.into());
    }
    if db::count_tunnels(&mut tx, id).await? >= most {
        let device = id.clone();
        return Err(Fault::TooManyTunnels { device, most }.into());
    }
    let is_ours = db::use_up(&mut tx, found.id, OPEN).await?;
    let standing = db::standing(&mut tx, found.id).await?;
    let standing = standing.ok_or(Fault::UnknownTicket)?;
    match (is_ours, standing.ended) {
        (_, Some(ending)) => return Err(Fault::EndedTicket(ending).into()),
        (false, None) => return Err(Fault::UsedTicket.into()),
        (true, None) => tx.commit().await?,
    }
    Ok((found, kind, standing))
}

/// Connects to the device, and looks afterwards whether its port was still its own.
async fn connect(
    state: &Devices,
    id: &DeviceId,
    ticket: i64,
    kind: PortKind,
    standing: &Standing,
) -> Result<TcpStream> {
    let stream = reach::dial(id, &standing.address, standing.ports.of(kind)).await?;
    let mut conn = state.platform.db.acquire().await?;
    let now = db::standing(&mut conn, ticket).await?;
    match now {
        Some(now) if now == *standing => Ok(stream),
        Some(Standing {
            ended: Some(ending),
            ..
        }) => Err(Fault::EndedTicket(ending).into()),
        _ => Err(Fault::EndedTicket(Ending::Stopped).into()),
    }
}

/// Notes that there is no tunnel by a ticket.
async fn close(state: &Devices, ticket: i64) {
    let noting = async {
        let mut conn = state.platform.db.acquire().await?;
        db::close(&mut conn, ticket).await
    };
    if !matches!(timeout(NOTE, noting).await, Ok(Ok(()))) {
        debug!("a closed tunnel counts as open for up to {OPEN:?}");
    }
}

fn tell(tunnel: &Arc<Tunnel>, pace: &Pace, ending: Ending) {
    let Tunnel {
        device, user, kind, ..
    } = tunnel.as_ref();
    let (up, down) = (
        pace.up.load(Ordering::Relaxed),
        pace.down.load(Ordering::Relaxed),
    );
    metrics::tunnel_ended(*kind, ending.as_str());
    info!(device.id = %device, user.id = %user, tunnel.kind = %kind, tunnel.end = ending.as_str(), tunnel.bytes_up = up, tunnel.bytes_down = down,
        "the tunnel of user {user} to the {kind} port of device {device} ended after {:.1?}: {}", pace.lasted(), ending.message());
}
