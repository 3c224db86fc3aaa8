//! A front door on a port, and a client before it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use contracts::Service;
use coordination::{Keys, RateLimiter};
use fred::clients::Pool;
use fred::interfaces::ClientLike;
use gateway::front::{
    Decisions, Directory, Front, FrontConfig, Identities, Limiters, Upstream, Upstreams,
};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use platform::serve::{Drain, Server};
use platform::{Clock, Problem};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// A front door on a port, which ends with this value.
pub struct Door {
    pub address: SocketAddr,
    pub front: Front,
    pub upstreams: Upstreams,
    pub decisions: Decisions,
    pub registry: watch::Sender<Arc<Directory>>,
    pub drain: CancellationToken,
    pub client: Client<HttpConnector, Body>,
    _accepting: AbortOnDropHandle<()>,
}

/// A reply that was read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// Asserts that it is a refusal with all its members.
    pub fn expect_problem(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let body = self.json();
        assert_eq!(
            (body["status"].as_u64(), body["statusCode"].as_u64()),
            (Some(status.into()), Some(status.into()))
        );
        assert_eq!(body["error"], code);
        assert_eq!(
            body["requestId"].as_str(),
            self.headers["x-request-id"].to_str().ok()
        );
        for member in ["type", "title", "detail", "message", "timestamp", "path"] {
            assert!(body[member].is_string(), "{member} in {body}");
        }
    }
}

impl Door {
    /// A door before instances of the notification service, or of others by [`Door::before`].
    pub async fn to(service: Service, upstreams: &[Upstream]) -> Self {
        Self::before(FrontConfig::default(), directory(service, upstreams), None).await
    }

    pub async fn before(config: FrontConfig, directory: Directory, redis: Option<Pool>) -> Self {
        Self::knowing(config, directory, redis, None).await
    }

    /// The same for a door that knows its callers.
    pub async fn knowing(
        config: FrontConfig,
        directory: Directory,
        redis: Option<Pool>,
        identities: Option<Identities>,
    ) -> Self {
        let local = Router::new()
            .route("/gateway/ping", axum::routing::any(|| async { "pong" }))
            .route("/gateway/secret", axum::routing::any(forbidden))
            .route("/health", axum::routing::any(|| async { "well" }))
            .route("/metrics", axum::routing::get(|| async { "numbers 1" }));
        let (registry, watched) = watch::channel(Arc::new(directory));
        let upstreams = Upstreams::follow(watched, Directory::clone, &config);
        let drain = CancellationToken::new();
        let (stall, keys) = (config.stream_idle, config.keys.clone());
        let decisions = Decisions::new(config.decisions, config.remember);
        let front = Front::new(
            config,
            upstreams.clone(),
            redis.map(|redis| {
                let limiter = RateLimiter::new(redis.clone(), keys);
                (redis, Limiters::new(limiter, Vec::new()))
            }),
            identities,
            local,
            decisions.clone(),
            drain.clone(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = Client::builder(TokioExecutor::new()).build_http();
        let accepting = TaskTracker::new().spawn(accept(listener, front.clone(), stall));
        let accepting = AbortOnDropHandle::new(accepting);
        Self {
            address,
            front,
            upstreams,
            decisions,
            registry,
            drain,
            client,
            _accepting: accepting,
        }
    }

    /// Changes the registry.
    pub fn register(&self, service: Service, upstreams: &[Upstream]) {
        self.registry
            .send_replace(Arc::new(directory(service, upstreams)));
    }

    pub fn request(&self, method: &str, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(self.request("GET", path).body(Body::empty()).unwrap())
            .await
    }

    pub async fn post(&self, path: &str, body: impl Into<Body>) -> Reply {
        self.send(self.request("POST", path).body(body.into()).unwrap())
            .await
    }

    pub async fn send(&self, request: Request<Body>) -> Reply {
        let response = self
            .client
            .request(request)
            .await
            .expect("the front door answers");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("the reply is whole").to_bytes();
        Reply {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }

    pub fn report(&self, service: Service) -> Value {
        serde_json::to_value(&self.upstreams.report()[service.name()]).unwrap()
    }
}

/// As the layer of every service leaves it: the reply, and the problem it was made from.
async fn forbidden() -> axum::response::Response {
    let problem = Problem::forbidden("the role admin is required");
    let mut reply = problem.reply(Clock::system().now(), None, None);
    reply.extensions_mut().insert(problem);
    reply
}

pub fn directory(service: Service, upstreams: &[Upstream]) -> Directory {
    Directory::from([(service, upstreams.to_vec())])
}

async fn accept(listener: TcpListener, front: Front, stall: Duration) {
    let server = Server::new("gateway", front, &Drain::new()).give_up_after(stall);
    while let Ok((stream, peer)) = listener.accept().await {
        server.serve(None, stream, peer);
    }
}

/// The private Redis of the tests, with names of the test's own.
pub async fn redis() -> (Pool, Keys) {
    use fred::types::Builder;
    use fred::types::config::Config;
    let url = std::env::var("REDIS_URL").expect("REDIS_URL names a Redis for tests");
    let pool = Builder::from_config(Config::from_url(&url).unwrap())
        .build_pool(2)
        .unwrap();
    pool.init().await.expect("the Redis of the tests answers");
    (
        pool,
        Keys::new(&format!("test:{:032x}", rand::random::<u128>())),
    )
}

/// Waits until something holds, and fails when it takes far too long.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited
        .await
        .unwrap_or_else(|_| panic!("it never came that {what}"));
}
