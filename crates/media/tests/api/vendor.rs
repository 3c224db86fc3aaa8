//! A function on this machine that makes pictures and misbehaves as it is told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::app::{TestApp, User, picture};

pub const SECRET: &str = "a secret of the vendor's own";

/// What is done with one message instead of what it asks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trick {
    /// Nothing, and no answer in time.
    Hang,
    /// Nothing but this status.
    Status(u16),
    /// Nothing but an answer that is no JSON.
    Garbage,
    /// What it asks, but the answer is lost.
    LoseAnswer,
}

#[derive(Clone, Debug)]
pub struct Made {
    pub id: String,
    pub message: Value,
    pub asked: usize,
    pub cancelled: bool,
}

#[derive(Default)]
pub struct Inner {
    /// By our reference.
    pub taken: BTreeMap<String, Made>,
    /// The references of all submissions that arrived.
    pub submissions: Vec<String>,
    /// How messages are met, by their action, in their order.
    pub tricks: BTreeMap<&'static str, VecDeque<Trick>>,
    /// After how many questions something is done.
    pub done_after: usize,
    /// What the files are.
    pub failing: bool,
    /// Everything is met by this.
    pub always: Option<Trick>,
}

/// The function; it ends with the test.
pub struct Vendor {
    pub address: String,
    pub inner: Arc<Mutex<Inner>>,
    _running: JoinSet<()>,
}

#[derive(Clone)]
struct Shared {
    address: String,
    inner: Arc<Mutex<Inner>>,
}

impl Vendor {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let inner = Arc::new(Mutex::new(Inner {
            done_after: 2,
            ..Inner::default()
        }));
        let shared = Shared {
            address: address.clone(),
            inner: inner.clone(),
        };
        let router = Router::new()
            .route("/", post(receive))
            .route("/cloud", post(invoke))
            .route("/files/{name}", get(file))
            .route(
                "/inward",
                get(|| async { axum::response::Redirect::temporary("http://10.0.0.1/a.png") }),
            )
            .route(
                "/round",
                get(|| async { axum::response::Redirect::temporary("/round") }),
            )
            .route("/large", get(|| async { vec![0_u8; (10 << 20) + 1] }))
            .with_state(shared);
        let server = async move { axum::serve(listener, router).await.unwrap() };
        // It ends with the test that holds it.
        let mut running = JoinSet::new();
        running.spawn(server);
        Self {
            address,
            inner,
            _running: running,
        }
    }

    /// Its entry in the list of providers.
    pub fn entry(&self, name: &str, priority: i32, kinds: &[&str]) -> Value {
        json!({
            "ref": name, "kind": "http", "url": self.address, "types": kinds, "secret": SECRET, "priority": priority,
            "timeoutSeconds": 0.5,
        })
    }

    pub fn set(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.inner.lock().unwrap());
    }

    pub fn trick(&self, action: &'static str, tricks: impl IntoIterator<Item = Trick>) {
        self.set(|inner| inner.tricks.entry(action).or_default().extend(tricks));
    }

    pub fn taken(&self) -> Vec<Made> {
        self.inner.lock().unwrap().taken.values().cloned().collect()
    }

    pub fn submissions(&self) -> usize {
        self.inner.lock().unwrap().submissions.len()
    }

    /// Its report of a step, signed.
    pub async fn report(&self, app: &TestApp, task: &str, report: Value) -> crate::app::Reply {
        let body = report.to_string();
        let now = app.platform.clock.now().utc().timestamp();
        let secret = SECRET.as_bytes().to_vec().into();
        let mut request = http::Request::post(format!("/media/callbacks/{task}/0"));
        for (name, value) in platform::standard_webhook::sign(&secret, "m-1", now, body.as_bytes())
        {
            request = request.header(name, value);
        }
        app.call(request.body(Body::from(body)).unwrap()).await
    }

    pub fn output(&self) -> String {
        format!("{}/files/a.png", self.address)
    }
}

impl User {
    /// Asks for something; its id.
    pub async fn make(&self, kind: &str, input: &str) -> String {
        let body = json!({ "type": kind, "inputUrl": input });
        let reply = self.post("/media/tasks", body).await;
        reply.expect(StatusCode::CREATED).text("/id")
    }
}

async fn receive(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let mut whsec = "whsec_".to_owned();
    base64::Engine::encode_string(
        &base64::engine::general_purpose::STANDARD,
        SECRET,
        &mut whsec,
    );
    let header = |name: &str| headers[name].to_str().unwrap().to_owned();
    let reference = standardwebhooks::Webhook::new(&whsec).unwrap();
    let signed = reference.sign(
        &header("webhook-id"),
        header("webhook-timestamp").parse().unwrap(),
        &body,
    );
    if signed.unwrap() != header("webhook-signature") {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let message: Value = serde_json::from_slice(&body).unwrap();
    let action = message["action"].as_str().unwrap().to_owned();
    let trick = {
        let mut inner = shared.inner.lock().unwrap();
        let once = inner
            .tricks
            .get_mut(action.as_str())
            .and_then(VecDeque::pop_front);
        once.or(inner.always)
    };
    match trick {
        Some(Trick::Hang) => std::future::pending().await,
        Some(Trick::Status(status)) => StatusCode::from_u16(status).unwrap().into_response(),
        Some(Trick::Garbage) => "<html>".into_response(),
        Some(Trick::LoseAnswer) => {
            shared.act(&action, &message);
            std::future::pending().await
        }
        None => axum::Json(shared.act(&action, &message)).into_response(),
    }
}

/// The same function as a cloud invokes it.
async fn invoke(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let signed = headers["authorization"].to_str().unwrap();
    assert!(
        signed.starts_with("TC3-HMAC-SHA256 Credential=AKIDtest/"),
        "{signed}"
    );
    assert_eq!(headers["x-tc-action"], "Invoke");
    let invocation: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(invocation["FunctionName"], "compose");
    let message: Value =
        serde_json::from_str(invocation["ClientContext"].as_str().unwrap()).unwrap();
    let answer = shared.act(message["action"].as_str().unwrap(), &message);
    let result = json!({ "RetMsg": answer.to_string(), "InvokeResult": 0 });
    axum::Json(json!({ "Response": { "Result": result, "RequestId": "r" } })).into_response()
}

async fn file() -> Vec<u8> {
    picture(7, 7, [1, 2, 3])
}

impl Shared {
    fn act(&self, action: &str, message: &Value) -> Value {
        let mut inner = self.inner.lock().unwrap();
        let reference = message["reference"].as_str().unwrap_or_default().to_owned();
        match action {
            "submit" => {
                inner.submissions.push(reference.clone());
                let next = format!("v-{}", inner.taken.len());
                let taken = inner.taken.entry(reference).or_insert_with(|| Made {
                    id: next,
                    message: message.clone(),
                    asked: 0,
                    cancelled: false,
                });
                json!({ "id": taken.id })
            }
            "find" => json!({ "id": inner.taken.get(&reference).map(|made| made.id.clone()) }),
            "query" => {
                let (done_after, failing) = (inner.done_after, inner.failing);
                let ids: Vec<_> = message["ids"].as_array().unwrap().clone();
                let mut tasks = Vec::new();
                for made in inner
                    .taken
                    .values_mut()
                    .filter(|made| ids.contains(&json!(made.id)))
                {
                    made.asked += 1;
                    tasks.push(if made.asked < done_after {
                        json!({ "id": made.id, "status": "running", "progress": 40 })
                    } else if failing {
                        json!({ "id": made.id, "status": "failed", "errorMessage": "no garment in the picture" })
                    } else {
                        let url = format!("{}/files/{}.png", self.address, made.id);
                        json!({ "id": made.id, "status": "succeeded", "outputUrls": [url] })
                    });
                }
                json!({ "tasks": tasks })
            }
            "cancel" => {
                if let Some(made) = inner.taken.get_mut(&reference) {
                    made.cancelled = true;
                }
                json!({})
            }
            _ => json!({ "status": "ok" }),
        }
    }
}
