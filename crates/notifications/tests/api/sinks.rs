//! Stand-ins for what lies outside: a server that is called, one that takes mail, and the service of users.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use coordination::Membership;
use http::{HeaderMap, StatusCode};
use platform::Platform;
use platform::http::{Path, Query};
use platform::testing::announce;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::app::{SOON, until};

/// What a server does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Status(u16),
    /// Nothing comes, ever.
    Silence,
    /// To another path of the same server.
    Elsewhere,
}

/// A server that is called, and remembers what it was told.
pub struct Sink {
    pub address: SocketAddr,
    inner: Arc<Inner>,
    _serving: JoinSet<()>,
}

struct Inner {
    calls: Mutex<Vec<Call>>,
    answer: watch::Sender<Answer>,
    /// How many callers have left without an answer.
    hung_up: watch::Sender<usize>,
}

/// A caller that waits; it leaves without an answer when this is dropped.
struct Waiting(Arc<Inner>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.hung_up.send_modify(|count| *count += 1);
    }
}

#[derive(Clone, Debug)]
pub struct Call {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Call {
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Sink {
    pub async fn open(answer: Answer) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            calls: Mutex::default(),
            answer: watch::channel(answer).0,
            hung_up: watch::channel(0).0,
        });
        let routes = Router::new().fallback(any(take)).with_state(inner.clone());
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self {
            address,
            inner,
            _serving: serving,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    pub fn answers(&self, answer: Answer) {
        self.inner.answer.send_replace(answer);
    }

    pub fn calls(&self) -> Vec<Call> {
        self.inner.calls.lock().unwrap().clone()
    }

    /// Waits until so many callers have left without an answer.
    pub async fn after_hang_ups(&self, count: usize) {
        let mut hung_up = self.inner.hung_up.subscribe();
        let enough = hung_up.wait_for(|seen| *seen >= count);
        let _ = tokio::time::timeout(SOON, enough)
            .await
            .expect("the callers leave soon");
    }

    /// Waits for so many calls.
    pub async fn after(&self, count: usize) -> Vec<Call> {
        until("the calls", async || self.calls().len() >= count).await;
        self.calls()
    }
}

async fn take(
    State(inner): State<Arc<Inner>>,
    uri: http::Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path().to_owned();
    inner.calls.lock().unwrap().push(Call {
        path,
        headers,
        body,
    });
    let answer = *inner.answer.borrow();
    match answer {
        Answer::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Answer::Silence => {
            let _waiting = Waiting(inner);
            std::future::pending().await
        }
        Answer::Elsewhere => (StatusCode::FOUND, [("location", "/elsewhere")]).into_response(),
    }
}

/// The service of users, which can reach everybody but `nobody`; `mute` has no phone. It counts users `u1`, `u2` and so on,
/// of whom every tenth has the role `tenth`.
pub struct Users {
    crowd: Arc<Crowd>,
    _member: Membership,
    _serving: JoinSet<()>,
}

struct Crowd {
    count: i64,
    /// Whoever asks for more than this has to wait.
    gate: watch::Sender<i64>,
    asked: AtomicI64,
}

impl Users {
    pub async fn open(platform: &Platform) -> Self {
        Self::with(platform, 0).await
    }

    pub async fn with(platform: &Platform, count: i64) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let crowd = Arc::new(Crowd {
            count,
            gate: watch::channel(i64::MAX).0,
            asked: AtomicI64::new(0),
        });
        let routes = Router::new()
            .route("/internal/users/{user}/contact", get(contact))
            .route("/internal/users/census", get(census))
            .route("/internal/users", get(page))
            .with_state(crowd.clone());
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self {
            crowd,
            _member: announce(platform, "users", address).await,
            _serving: serving,
        }
    }

    /// Lets whoever asks for users after this one wait.
    pub fn stop_after(&self, seq: i64) {
        self.crowd.gate.send_replace(seq);
    }

    /// Waits until somebody asks for users after this one.
    pub async fn asked_after(&self, seq: i64) {
        let crowd = &self.crowd;
        until("the question", async || {
            crowd.asked.load(Ordering::SeqCst) >= seq
        })
        .await;
    }
}

#[derive(Deserialize, garde::Validate)]
#[garde(allow_unvalidated)]
struct Wanted {
    role: Option<String>,
    after: Option<i64>,
    upto: Option<i64>,
    limit: Option<usize>,
}

impl Crowd {
    fn of(&self, wanted: &Wanted) -> Vec<Value> {
        let (after, upto) = (wanted.after.unwrap_or(0), wanted.upto.unwrap_or(i64::MAX));
        (1..=self.count)
            .filter(|seq| wanted.role.is_none() || seq % 10 == 0)
            .filter(|seq| after < *seq && *seq <= upto)
            .take(wanted.limit.unwrap_or(usize::MAX))
            .map(|seq| json!({ "id": format!("u{seq}"), "seq": seq }))
            .collect()
    }
}

async fn census(State(crowd): State<Arc<Crowd>>, Query(wanted): Query<Wanted>) -> Response {
    let last = crowd
        .of(&wanted)
        .last()
        .map_or(json!(0), |last| last["seq"].clone());
    let count = crowd.of(&wanted).len();
    axum::response::Json(json!({ "count": count, "lastSeq": last })).into_response()
}

async fn page(State(crowd): State<Arc<Crowd>>, Query(wanted): Query<Wanted>) -> Response {
    let after = wanted.after.unwrap_or(0);
    crowd.asked.fetch_max(after, Ordering::SeqCst);
    let mut gate = crowd.gate.subscribe();
    gate.wait_for(|gate| after <= *gate).await.unwrap();
    axum::response::Json(crowd.of(&wanted)).into_response()
}

async fn contact(headers: HeaderMap, Path(user): Path<String>) -> Response {
    if !headers.contains_key("x-cloudphone-service") {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let email = format!("{user}@example.com");
    match user.as_str() {
        "nobody" => StatusCode::NOT_FOUND.into_response(),
        "mute" => axum::response::Json(json!({ "email": email })).into_response(),
        _ => axum::response::Json(json!({ "email": email, "phone": "+8613800000000" }))
            .into_response(),
    }
}
