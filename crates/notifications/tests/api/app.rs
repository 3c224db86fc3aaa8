//! Two instances of the service in one process, served on ports of their own.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use contracts::{Event, EventBody, Service, UserId};
use futures::{SinkExt, StreamExt};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use notifications::{Config, Notifications};
use platform::lifecycle::{Phase, Readiness, Tasks};
use platform::{Env, Platform, Settings, events, testing};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tower::ServiceExt;

/// How long a test waits for what must come.
pub const SOON: Duration = Duration::from_secs(10);
/// How long a test listens for what must not come.
pub const A_WHILE: Duration = Duration::from_millis(300);

pub const NEAR: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 40_000);
pub const FAR: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 7)),
    40_000,
);

pub struct Cluster {
    pub first: Instance,
    pub second: Instance,
    pub tasks: Tasks,
}

pub struct Instance {
    pub platform: Platform,
    pub state: Notifications,
    pub address: SocketAddr,
    router: Router,
}

pub struct Reply {
    pub status: StatusCode,
    pub replayed: bool,
    pub body: Value,
}

/// Sweeps so rarely that what arrives came by Redis.
pub fn without_sweep() -> Config {
    config("3600", "0.2")
}

/// As in production.
pub fn with_sweep() -> Config {
    config("1", "0.2")
}

/// Neither sweeps nor checks sessions unless it is told.
pub fn without_sweep_or_checks() -> Config {
    config("3600", "3600")
}

fn config(sweep_seconds: &str, check_seconds: &str) -> Config {
    config_with(&[
        ("NOTIFICATIONS_SWEEP_SECONDS", sweep_seconds),
        ("NOTIFICATIONS_SESSION_CHECK_SECONDS", check_seconds),
    ])
}

/// With these settings, and the defaults of all others.
pub fn config_with(settings: &[(&str, &str)]) -> Config {
    let mut env: Env = settings.iter().copied().collect();
    let config = Config::from_env(&mut env);
    env.finish().unwrap();
    config
}

impl Cluster {
    pub async fn new(db: PgPool, config: Config) -> Self {
        Self::with(db, config, |_| {}).await
    }

    pub async fn closed_sandbox(db: PgPool) -> Self {
        Self::with(db, with_sweep(), |settings| settings.sandbox = false).await
    }

    pub async fn with(db: PgPool, config: Config, change: impl FnOnce(&mut Settings)) -> Self {
        let platform = testing::with(db, change).await;
        let other = beside(&platform, &platform.redis_url.clone()).await;
        Self::of(platform, other, config).await
    }

    pub async fn of(platform: Platform, other: Platform, config: Config) -> Self {
        let tasks = Tasks::new();
        let first = Instance::start(platform, config.clone(), &tasks).await;
        let second = Instance::start(other, config, &tasks).await;
        Self {
            first,
            second,
            tasks,
        }
    }

    pub async fn sign_in(&self, user: &str, roles: &[&str]) -> String {
        testing::sign_in(&self.first.platform, &id(user), roles).await
    }

    /// Writes an event as another service does, and lets the relay run.
    pub async fn emit(&self, event: &Event) {
        let mut tx = self.first.platform.db.begin().await.unwrap();
        events::emit(&mut tx, event).await.unwrap();
        tx.commit().await.unwrap();
    }

    pub fn event(&self, user: &str, body: EventBody) -> Event {
        Event::new(id(user), self.first.platform.clock.now(), body)
    }
}

/// A second replica of the same cluster.
pub async fn beside(platform: &Platform, redis_url: &str) -> Platform {
    let readiness = Readiness::default();
    readiness.advance(Phase::Ready);
    let other = Platform::new(
        platform.settings.clone(),
        platform.db.clone(),
        platform::redis::connect(redis_url).await.unwrap(),
        platform.keys.clone(),
        platform.clock.clone(),
        platform.auth.clone(),
        readiness,
    );
    other.name_instance(Service::Notifications, || "instance-1".to_owned());
    other
}

impl Instance {
    pub async fn start(platform: Platform, config: Config, tasks: &Tasks) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let state = Notifications::new(&platform, config).await.unwrap();
        state.spawn_jobs(tasks).await.unwrap();
        let routes = notifications::router(state.clone());
        let router = platform::http::service(&platform, Service::Notifications, routes).router;
        let router = notifications::wrap(router, &state);
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let service = router
            .clone()
            .into_make_service_with_connect_info::<SocketAddr>();
        tasks.spawn("tests.serve", async move {
            Ok(axum::serve(listener, service).await?)
        });
        Self {
            platform,
            state,
            address,
            router,
        }
    }

    pub async fn call(
        &self,
        request: http::request::Builder,
        body: Value,
        from: SocketAddr,
    ) -> Reply {
        let body = if body.is_null() {
            Body::empty()
        } else {
            Body::from(body.to_string())
        };
        let mut request = request
            .header("content-type", "application/json")
            .body(body)
            .unwrap();
        request.extensions_mut().insert(ConnectInfo(from));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, replayed) = (
            response.status(),
            response.headers().contains_key("idempotent-replayed"),
        );
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        Reply {
            status,
            replayed,
            body: serde_json::from_slice(&bytes).unwrap_or_default(),
        }
    }

    /// The status and the text of a reply.
    pub async fn raw(&self, mut request: Request<String>) -> (StatusCode, String) {
        request.extensions_mut().insert(ConnectInfo(NEAR));
        let response = self
            .router
            .clone()
            .oneshot(request.map(Body::from))
            .await
            .unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    pub async fn ask(&self, method: &str, path: &str, token: &str, body: Value) -> Reply {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {token}"));
        self.call(request, body, FAR).await
    }

    pub async fn get(&self, path: &str, token: &str) -> Reply {
        self.ask("GET", path, token, Value::Null).await
    }

    /// Sends as the seed's checklist does: from this machine, without a token.
    pub async fn send(&self, user: &str, message: &str) -> Value {
        let request = Request::builder().method("POST").uri("/notifications/send");
        let reply = self
            .call(request, json!({ "userId": user, "message": message }), NEAR)
            .await;
        assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.body);
        reply.body
    }

    pub async fn connect(&self, path: &str) -> Socket {
        self.try_connect(path).await.unwrap()
    }

    pub async fn try_connect(&self, path: &str) -> Result<Socket, tungstenite::Error> {
        let (socket, _) =
            tokio_tungstenite::connect_async(format!("ws://{}{path}", self.address)).await?;
        Ok(Socket(socket))
    }
}

/// A plain WebSocket, or the text frames of another protocol over one.
pub struct Socket(pub WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    pub async fn say(&mut self, text: impl Into<String>) {
        self.0
            .send(Message::Text(text.into().into()))
            .await
            .unwrap();
    }

    /// The next text; pings are answered underneath.
    pub async fn text(&mut self) -> String {
        loop {
            let message = tokio::time::timeout(SOON, self.0.next())
                .await
                .expect("a frame comes soon");
            match message.expect("the socket is open").unwrap() {
                Message::Text(text) => return text.to_string(),
                Message::Close(frame) => panic!("closed: {frame:?}"),
                _ => {}
            }
        }
    }

    pub async fn frame(&mut self) -> Value {
        serde_json::from_str(&self.text().await).unwrap()
    }

    /// The payload of the next frame of an event; others are passed over.
    pub async fn event(&mut self, name: &str) -> Value {
        loop {
            let mut frame = self.frame().await;
            if frame["event"] == name {
                return frame["data"].take();
            }
        }
    }

    /// Whether no notification comes for a while.
    pub async fn is_quiet(&mut self) -> bool {
        tokio::time::timeout(A_WHILE, self.event("notification"))
            .await
            .is_err()
    }

    /// How the server closes it.
    pub async fn closed(&mut self) -> Option<CloseFrame> {
        loop {
            match tokio::time::timeout(SOON, self.0.next())
                .await
                .expect("the end comes soon")
            {
                Some(Ok(Message::Close(frame))) => return frame,
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    }
}

pub fn id(user: &str) -> UserId {
    user.parse().unwrap()
}

/// Waits until a condition holds.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, waiting)
        .await
        .unwrap_or_else(|_| panic!("{what} does not come"));
}
