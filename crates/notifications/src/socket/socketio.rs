//! Socket.IO: the namespaces `/` and `/notifications`, fed by the hub; rooms reach over all instances by the Redis
//! adapter.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use fred::clients::SubscriberClient;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use http_body_util::Limited;
use platform::{Platform, Problem};
use serde::Deserialize;
use serde_json::Value;
use socketioxide::SocketIo;
use socketioxide::adapter::Emitter;
use socketioxide::extract::{AckSender, Extension, State, TryData};
use socketioxide::handler::ConnectHandler;
use socketioxide::service::SocketIoService;
use socketioxide_redis::{FredAdapter, RedisAdapterConfig, RedisAdapterCtr};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, SetOnce};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::transport::{Cut, Stream, Transports};
use super::{Hello, MAX_INCOMING, Sockets, Subscribe, answer, farewell, malformed};
use crate::hub::{Frame, Goodbye, Identity, Link, Live, MAX_WAITING, NotSent};

/// The namespaces; both serve the same.
pub const NAMESPACES: [&str; 2] = ["/", "/notifications"];
/// The answer to one poll. All that may wait fits in: what does not, the library forgets when the client changes from
/// polling to WebSocket.
const MAX_POLL: u64 = 32 * 1024 * 1024;
/// Rooms that one socket may be in.
const MAX_ROOMS: usize = 100;
const MAX_ROOM_NAME: usize = 128;
/// Messages of one client that may wait for their answers; each is a task of its own.
const MAX_ASKS: usize = 256;
const PING_INTERVAL: Duration = Duration::from_secs(25);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
const CLOSE_DEADLINE: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How long a client whose queue is full may take to make room for the reason why it is cut.
const FAREWELL: Duration = Duration::from_secs(2);

type Adapter = FredAdapter<Emitter>;
/// A Socket.IO client in one namespace.
pub type SocketRef = socketioxide::extract::SocketRef<Adapter>;
type Ack = AckSender<Adapter>;

/// The Socket.IO server of this instance.
#[derive(Clone)]
pub struct Server {
    io: SocketIo<Adapter>,
    service: SocketIoService<Router, Adapter>,
    transports: Transports,
    subscriber: SubscriberClient,
}

/// A room to be in, or not.
#[derive(Deserialize)]
pub struct Room {
    room: String,
}

impl Server {
    /// Opens both namespaces.
    ///
    /// # Errors
    /// Where Redis does not answer.
    pub async fn open(platform: &Platform, sockets: Sockets) -> anyhow::Result<Self> {
        let subscriber =
            platform::redis::builder(&platform.redis_url)?.build_subscriber_client()?;
        let config = RedisAdapterConfig::new().with_prefix(platform.keys.key("socketio"));
        let adapter = RedisAdapterCtr::new_with_fred_config(subscriber.clone(), config)
            .await
            .context("connecting the Socket.IO adapter to Redis")?;
        subscriber
            .ping::<()>(None)
            .await
            .context("connecting the Socket.IO adapter to Redis")?;
        platform.redis_switches.follow(subscriber.clone());
        let transports = Transports::default();
        let (service, io) = SocketIo::builder()
            .with_adapter::<Adapter>(adapter)
            .with_state(sockets)
            .with_state(transports.clone())
            .ping_interval(PING_INTERVAL)
            .ping_timeout(PING_TIMEOUT)
            .max_buffer_size(MAX_WAITING)
            .max_payload(MAX_POLL)
            .ws_max_message_size(MAX_INCOMING)
            .ws_max_frame_size(MAX_INCOMING)
            .build_with_inner_svc(Router::new());
        for namespace in NAMESPACES {
            let opened = io.ns(namespace, connected.with(admit)).await;
            opened
                .map_err(|error| anyhow::anyhow!("opening the namespace {namespace}: {error}"))?;
        }
        Ok(Self {
            io,
            service,
            transports,
            subscriber,
        })
    }

    /// Serves a request of the Engine.IO protocol, which stands under Socket.IO.
    pub async fn serve(&self, request: Request, upgrades: bool) -> Response {
        let mut service = self.service.clone();
        if upgrades {
            return self.transports.open(request, move |stream, request| {
                // A handshake that makes no sense ends with its connection.
                drop(
                    tower::Service::<(Box<dyn Stream>, http::Request<()>)>::call(
                        &mut service,
                        (stream, request),
                    ),
                );
            });
        }
        // The library's own bound is that of its answers.
        let request = request.map(|body| Body::new(Limited::new(body, MAX_INCOMING)));
        match tower::Service::<Request>::call(&mut service, request).await {
            Ok(response) => response.map(Body::new),
            Err(never) => match never {},
        }
    }

    /// Subscribes the adapter's channels anew after each reconnection, until the stop; the client does not.
    pub async fn resubscribe(self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut connected = self.subscriber.reconnect_rx();
        loop {
            let back = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                back = connected.recv() => back,
            };
            if matches!(back, Err(RecvError::Closed)) {
                anyhow::bail!("the Redis client of the Socket.IO adapter ended");
            }
            for channel in self.subscriber.tracked_shard_channels() {
                // The first command keeps a fresh, idle connection from being taken for a frozen one.
                while self.subscriber.ping::<()>(None).await.is_err()
                    || self
                        .subscriber
                        .ssubscribe(channel.to_string())
                        .await
                        .is_err()
                {
                    tokio::select! { () = stop.cancelled() => return Ok(()), () = tokio::time::sleep(RETRY_PAUSE) => {} }
                }
            }
        }
    }

    /// Sends a `message` to everybody in a room, on every instance; without Redis, to those here.
    pub async fn send_to_room(&self, room: &str, data: &Value) {
        for namespace in NAMESPACES {
            let Some(everywhere) = self.io.of(namespace) else {
                continue;
            };
            if let Err(error) = everywhere.to(room.to_owned()).emit("message", data).await {
                debug!("a message to room {room} stays on this instance: {error}");
                if let Some(here) = self.io.of(namespace) {
                    // A single socket that takes no more is cut by the hub.
                    let _ = here.to(room.to_owned()).local().emit("message", data).await;
                }
            }
        }
    }

    /// Closes every connection, so that clients reconnect elsewhere.
    pub async fn close(&self) {
        if tokio::time::timeout(CLOSE_DEADLINE, self.io.close())
            .await
            .is_err()
        {
            warn!("gave up closing Socket.IO connections");
        }
    }
}

/// Who may connect; the text of an error is what `connect_error` says.
async fn admit(
    socket: SocketRef,
    State(sockets): State<Sockets>,
    TryData(auth): TryData<Value>,
) -> Result<(), &'static str> {
    let parts = socket.req_parts();
    let admitted = async {
        // Without a payload there is nothing to read.
        let said = match auth {
            Ok(Value::Null) | Err(_) => Hello::default(),
            Ok(auth) => serde_json::from_value(auth)
                .map_err(|_| Problem::invalid_field("auth", "cannot be read"))?,
        };
        let hello = said.or(Hello::of(&parts.uri, &parts.headers)?);
        let identity = sockets
            .admit(&hello, &parts.headers, &parts.extensions)
            .await?;
        Ok::<_, Problem>((hello, identity))
    };
    match admitted.await {
        Ok((hello, identity)) => {
            socket.extensions.insert(identity);
            socket.extensions.insert(LastSeq(hello.last_seq));
            socket.extensions.insert(Seat::new(Desk::new()));
            // Here and not once it is connected, for the client may speak at once.
            socket.on("subscribe", subscribe);
            socket.on("unsubscribe", unsubscribe);
            socket.on("join_room", join_room);
            socket.on("leave_room", leave_room);
            Ok(())
        }
        Err(problem) if problem.status() == http::StatusCode::SERVICE_UNAVAILABLE => {
            Err("not ready")
        }
        Err(problem) if problem.status() == http::StatusCode::BAD_REQUEST => Err("malformed"),
        Err(_) => Err("unauthorized"),
    }
}

#[derive(Clone, Copy)]
struct LastSeq(Option<i64>);

/// Where the handlers of a client's messages find its socket, as soon as it has arrived. A client may speak before.
type Seat = Arc<Desk>;

struct Desk {
    live: SetOnce<Arc<Live>>,
    asks: Semaphore,
}

impl Desk {
    fn new() -> Self {
        Self {
            live: SetOnce::new(),
            asks: Semaphore::new(MAX_ASKS),
        }
    }

    /// Refuses a message where too many wait before it.
    fn refuse(&self, sockets: &Sockets, ack: Ack) {
        let refusal = Frame::error("TOO_MANY", "256 messages wait for their answers");
        if let Some(live) = self.live.get() {
            respond(sockets, live, &refusal, ack);
        }
    }
}

async fn connected(
    socket: SocketRef,
    State(sockets): State<Sockets>,
    State(transports): State<Transports>,
    Extension(identity): Extension<Identity>,
    Extension(LastSeq(last_seq)): Extension<LastSeq>,
    Extension(seat): Extension<Seat>,
) {
    if let Some(user) = &identity.user {
        socket.join(format!("user:{user}"));
    }
    let live = sockets
        .hub
        .open(identity, Link::SocketIo(socket.clone()), "socketio");
    // Not to be held by the handler: one that is set after the client left is never called, and never dropped.
    let leaving = (sockets.clone(), Arc::downgrade(&live));
    socket.on_disconnect(async move || {
        let (sockets, live) = leaving;
        if let Some(live) = live.upgrade() {
            sockets.hub.remove(&live);
            live.ended.cancel();
        }
    });
    if !socket.connected() {
        // It left before we could hear of it.
        sockets.hub.remove(&live);
        live.ended.cancel();
    }
    let arrival = sockets.arrive(&live, last_seq).await;
    // The connect handler runs once, so the seat is free.
    let _ = seat.live.set(live.clone());
    sockets
        .welcome(&live, &socket.id.to_string(), arrival)
        .await;
    live.ended.cancelled().await;
    see_off(&live, &transports).await;
    // It holds what holds it: neither would ever be dropped.
    socket.extensions.remove::<Seat>();
}

/// Tells a client that we end why, if it reads it in time. One whose session ended is disconnected for good; from
/// others the connection is taken, by which clients know to come back.
async fn see_off(live: &Live, transports: &Transports) {
    // Of an instance that leaves, all connections are closed at once, and the reason was told before.
    let (Some(socket), Some((goodbye, Some(reason)))) = (live.socketio(), farewell(live)) else {
        return;
    };
    let deadline = Instant::now() + FAREWELL;
    while live.send(&reason) == Err(NotSent::Full)
        && Instant::now() < deadline
        && socket.connected()
    {
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    if goodbye == Goodbye::SessionEnded && socket.clone().disconnect().is_ok() {
        return;
    }
    tokio::time::sleep(RETRY_PAUSE).await;
    if transports.cut(
        socket.id.as_str(),
        socket.req_parts().extensions.get::<Cut>(),
    ) {
        return;
    }
    // A client that polls leaves nothing to cut: it is disconnected when it has room, or ends by its missing pong.
    while socket.connected() && socket.clone().disconnect().is_err() {
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn subscribe(
    State(sockets): State<Sockets>,
    Extension(seat): Extension<Seat>,
    TryData(ask): TryData<Subscribe>,
    ack: Ack,
) {
    let Ok(_ask) = seat.asks.try_acquire() else {
        return seat.refuse(&sockets, ack);
    };
    let live = seat.live.wait().await;
    let reply = sockets.subscribe(live, ask.map_err(|_| ())).await;
    respond(&sockets, live, &reply, ack);
}

async fn unsubscribe(
    State(sockets): State<Sockets>,
    Extension(seat): Extension<Seat>,
    TryData(ask): TryData<Subscribe>,
    ack: Ack,
) {
    let Ok(_ask) = seat.asks.try_acquire() else {
        return seat.refuse(&sockets, ack);
    };
    let live = seat.live.wait().await;
    let reply = sockets.unsubscribe(live, ask.map_err(|_| ()));
    respond(&sockets, live, &reply, ack);
}

async fn join_room(
    socket: SocketRef,
    State(sockets): State<Sockets>,
    Extension(seat): Extension<Seat>,
    TryData(ask): TryData<Room>,
    ack: Ack,
) {
    let Ok(_ask) = seat.asks.try_acquire() else {
        return seat.refuse(&sockets, ack);
    };
    let live = seat.live.wait().await;
    let reply = match ask {
        Err(_) => malformed("join_room", "{room}"),
        Ok(Room { room }) if room.is_empty() || room.len() > MAX_ROOM_NAME => {
            malformed("join_room", "a room of 1 to 128 bytes")
        }
        Ok(Room { room }) if !live.identity.may_join(&room) => {
            Frame::error("FORBIDDEN", "this room is not yours to join")
        }
        Ok(_) if socket.rooms().len() >= MAX_ROOMS => {
            Frame::error("TOO_MANY", "a socket is in at most 100 rooms")
        }
        Ok(Room { room }) => {
            socket.join(room.clone());
            answer("room_joined", "room", &room, "Joined the room")
        }
    };
    respond(&sockets, live, &reply, ack);
}

async fn leave_room(
    socket: SocketRef,
    State(sockets): State<Sockets>,
    Extension(seat): Extension<Seat>,
    TryData(ask): TryData<Room>,
    ack: Ack,
) {
    let Ok(_ask) = seat.asks.try_acquire() else {
        return seat.refuse(&sockets, ack);
    };
    let live = seat.live.wait().await;
    let reply = match ask {
        Err(_) => malformed("leave_room", "{room}"),
        Ok(Room { room }) => {
            socket.leave(room.clone());
            answer("room_left", "room", &room, "Left the room")
        }
    };
    respond(&sockets, live, &reply, ack);
}

/// Answers by the event, and by the acknowledgement where one is wanted.
fn respond(sockets: &Sockets, live: &Live, reply: &Arc<Frame>, ack: Ack) {
    if live.send(reply) == Err(NotSent::Full) || ack.send(&reply.data).is_err() {
        sockets.hub.cut(live, Goodbye::Slow);
    }
}
