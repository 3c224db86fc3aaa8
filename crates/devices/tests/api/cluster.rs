//! A stand-in for the API server of a Kubernetes cluster, on a port of its own: it keeps objects in memory, with resource
//! versions, identities, conflicts and absences as the real one has them, and lets time pass for pods with each look.

use std::collections::BTreeMap;
use std::future::pending;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::StatusCode;
use platform::http::{Path, Query};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// A cluster with the namespace `phones`.
#[derive(Clone)]
pub struct Cluster {
    state: Arc<Mutex<Inner>>,
    folder: Arc<tempfile::TempDir>,
    address: String,
}

#[derive(Default)]
struct Inner {
    /// By kind and name.
    objects: BTreeMap<(String, String), Value>,
    version: u64,
    token: String,
    silent: bool,
    /// How many of the next writes find that somebody else was quicker.
    conflicts: u32,
    /// What we may not do, as `delete pods`.
    forbidden: Vec<String>,
    requests: Vec<String>,
    /// The next request of this kind, as `POST pods`, waits.
    held_back: Option<String>,
    let_go: Arc<Notify>,
}

impl Cluster {
    /// Starts it.
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let cluster = Self {
            state: Arc::default(),
            folder: Arc::new(tempfile::tempdir().unwrap()),
            address,
        };
        cluster.admit("first");
        cluster.hand_out("first");
        let one = "/api/v1/namespaces/phones/{kind}/{name}";
        let router = Router::new()
            .route("/version", get(version))
            .route(
                "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
                post(review),
            )
            .route("/api/v1/namespaces/phones/{kind}", get(list).post(create))
            .route(one, get(find).put(replace).patch(merge).delete(delete))
            .route(
                "/apis/metrics.k8s.io/v1beta1/namespaces/phones/pods/{name}",
                get(measured),
            )
            .layer(from_fn_with_state(cluster.clone(), admission))
            .with_state(cluster.clone());
        // It ends with the process of the test.
        #[expect(
            clippy::disallowed_methods,
            reason = "a stand-in needs no graceful end"
        )]
        tokio::spawn(async move { axum::serve(listener, router).await });
        cluster
    }

    /// How a node names it.
    pub fn endpoint(&self) -> String {
        let path = self.kubeconfig();
        format!(
            "kubeconfig://{}?context=test&namespace=phones",
            path.display()
        )
    }

    fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("config")
    }

    /// Lets in who has this token, and nobody else.
    pub fn admit(&self, token: &str) {
        self.with(|inner| inner.token = token.to_owned());
    }

    /// Gives our side this token.
    pub fn hand_out(&self, token: &str) {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "other",
            "clusters": [{ "name": "test", "cluster": { "server": self.address } }],
            "users": [{ "name": "test", "user": { "token": token } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        });
        std::fs::write(self.kubeconfig(), config.to_string()).unwrap();
    }

    /// Whether it answers at all.
    pub fn fall_silent(&self, silent: bool) {
        self.with(|inner| inner.silent = silent);
    }

    /// Has somebody else be quicker with so many of the next writes.
    pub fn interfere(&self, conflicts: u32) {
        self.with(|inner| inner.conflicts = conflicts);
    }

    /// Has the next request of a kind, as `POST pods`, wait on its way until it is let go.
    pub fn hold_back(&self, request: &str) {
        self.with(|inner| inner.held_back = Some(request.to_owned()));
    }

    /// Waits until there is a request that is held back.
    pub async fn holds(&self) {
        testkit::eventually(
            Duration::from_secs(60),
            "a request is held back",
            async || {
                anyhow::ensure!(self.with(|inner| inner.held_back.is_none()));
                Ok(())
            },
        )
        .await;
    }

    /// Lets the request go that was held back.
    pub fn let_go(&self) {
        self.with(|inner| inner.let_go.notify_one());
    }

    /// Forbids something, as `delete pods`.
    pub fn forbid(&self, what: &str) {
        self.with(|inner| inner.forbidden.push(what.to_owned()));
    }

    /// Puts an object there that we have not made.
    pub fn put(&self, kind: &str, name: &str, mut object: Value) {
        self.with(|inner| {
            object["metadata"]["name"] = json!(name);
            inner.store(kind, name, object);
        });
    }

    /// The object of a name.
    pub fn object(&self, kind: &str, name: &str) -> Option<Value> {
        self.with(|inner| inner.objects.get(&(kind.into(), name.into())).cloned())
    }

    /// The names of all objects of a kind.
    pub fn names(&self, kind: &str) -> Vec<String> {
        self.with(|inner| {
            let keys = inner.objects.keys();
            let names = keys.filter(|(of, _)| of == kind).map(|(_, name)| name);
            names.cloned().collect()
        })
    }

    /// All there is, as `pods/cp-1`.
    pub fn everything(&self) -> Vec<String> {
        self.with(|inner| {
            let keys = inner.objects.keys();
            keys.map(|(kind, name)| format!("{kind}/{name}")).collect()
        })
    }

    /// Removes an object, as its machine does when it dies.
    pub fn lose(&self, kind: &str, name: &str) {
        self.with(|inner| inner.objects.remove(&(kind.into(), name.into())));
    }

    /// Ends what runs in a pod.
    pub fn end(&self, name: &str) {
        self.with(|inner| {
            let key = ("pods".to_owned(), name.to_owned());
            inner.objects.get_mut(&key).unwrap()["status"] = json!({ "phase": "Failed" });
        });
    }

    /// The requests so far, as `POST pods`, and none of them any more.
    pub fn requests(&self) -> Vec<String> {
        self.with(|inner| std::mem::take(&mut inner.requests))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.state.lock().unwrap())
    }
}

impl Inner {
    fn next(&mut self) -> String {
        self.version += 1;
        self.version.to_string()
    }

    fn store(&mut self, kind: &str, name: &str, mut object: Value) -> Value {
        let meta = &mut object["metadata"];
        if meta["uid"].is_null() {
            meta["uid"] = json!(format!("uid-{}", self.next()));
            meta["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        meta["resourceVersion"] = json!(self.next());
        let key = (kind.to_owned(), name.to_owned());
        self.objects.insert(key, object.clone());
        object
    }

    /// What the machines do between two looks: pods end that are to, start where their claim is there, and claims go that no
    /// pod uses any more.
    fn pass_time(&mut self) {
        let is_going = |object: &Value| !object["metadata"]["deletionTimestamp"].is_null();
        self.objects
            .retain(|(kind, _), object| kind != "pods" || !is_going(object));
        let uses = |object: &Value| {
            let volumes = object["spec"]["volumes"].as_array();
            let claims = volumes.into_iter().flatten();
            claims
                .filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str())
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let pods = self.objects.iter().filter(|((kind, _), _)| kind == "pods");
        let used: Vec<String> = pods.flat_map(|(_, pod)| uses(pod)).collect();
        self.objects.retain(|(kind, name), object| {
            kind != "persistentvolumeclaims" || !is_going(object) || used.contains(name)
        });
        let keys = self.objects.keys();
        let claims: Vec<String> = keys
            .filter(|(kind, _)| kind == "persistentvolumeclaims")
            .map(|(_, name)| name.clone())
            .collect();
        for ((kind, _), pod) in &mut self.objects {
            if kind == "pods" && pod["status"]["phase"] == "Pending" {
                let ready = uses(pod).iter().all(|claim| claims.contains(claim));
                pod["status"] = match (ready, pod["status"]["looks"].as_u64()) {
                    (true, Some(1..)) => json!({ "phase": "Running" }),
                    (true, _) => json!({ "phase": "Pending", "looks": 1 }),
                    (false, _) => {
                        json!({ "phase": "Pending", "conditions": [{ "type": "PodScheduled", "status": "False",
                        "message": "persistentvolumeclaim not found" }] })
                    }
                };
            }
        }
    }

    /// What the API server says of the ports of a service.
    fn faults(&self, name: &str, service: &Value) -> Vec<Value> {
        let ports = service["spec"]["ports"].as_array().unwrap();
        let others = self.objects.iter();
        let others = others.filter(|((kind, of), _)| kind == "services" && of != name);
        let taken: Vec<_> = others
            .flat_map(|(_, other)| other["spec"]["ports"].as_array().into_iter().flatten())
            .map(|port| port["nodePort"].clone())
            .collect();
        let mut faults = Vec::new();
        for (number, port) in ports.iter().enumerate() {
            let wanted = &port["nodePort"];
            let message = if taken.contains(wanted) {
                "provided port is already allocated"
            } else if !(30_000..=32_767).contains(&wanted.as_i64().unwrap()) {
                "provided port is not in the valid range. The range of valid ports is 30000-32767"
            } else {
                continue;
            };
            faults.push(json!({ "reason": "FieldValueInvalid", "field": format!("spec.ports[{number}].nodePort"),
                "message": format!("Invalid value: {wanted}: {message}") }));
        }
        faults
    }
}

fn refuse(code: u16, reason: &str, message: &str, causes: Vec<Value>) -> Response {
    let body = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
        "message": message, "details": { "causes": causes } });
    (StatusCode::from_u16(code).unwrap(), body.to_string()).into_response()
}

fn answer(code: StatusCode, object: &Value) -> Response {
    (code, object.to_string()).into_response()
}

fn absent(kind: &str, name: &str) -> Response {
    refuse(
        404,
        "NotFound",
        &format!("{kind} \"{name}\" not found"),
        Vec::new(),
    )
}

/// Who may come in, and what he may do.
async fn admission(State(cluster): State<Cluster>, request: Request, next: Next) -> Response {
    let token = request.headers().get("authorization");
    let token = token
        .and_then(|token| token.to_str().ok())
        .unwrap_or_default();
    let verb = match request.method().as_str() {
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "get",
    };
    let kind = request.uri().path().split('/').nth(5).unwrap_or_default();
    let (silent, known, forbidden, held_back) = cluster.with(|inner| {
        let line = format!("{} {kind}", request.method());
        let held_back = inner.held_back.take_if(|held| *held == line);
        let held_back = held_back.map(|_| inner.let_go.clone());
        inner.requests.push(line);
        let forbidden = inner.forbidden.contains(&format!("{verb} {kind}"));
        let known = token == format!("Bearer {}", inner.token);
        (inner.silent, known, forbidden, held_back)
    });
    if let Some(let_go) = held_back {
        let_go.notified().await;
    }
    if silent {
        pending::<()>().await;
    }
    if !known {
        return refuse(401, "Unauthorized", "Unauthorized", Vec::new());
    }
    if forbidden {
        let message =
            format!("{kind} is forbidden: User \"phones\" cannot {verb} resource \"{kind}\"");
        return refuse(403, "Forbidden", &message, Vec::new());
    }
    next.run(request).await
}

/// What a pod uses, where somebody has said so; a cluster without the metrics API answers as for a pod that it has not measured.
async fn measured(State(cluster): State<Cluster>, Path(name): Path<String>) -> Response {
    match cluster.object("metrics", &name) {
        Some(metrics) => axum::Json(metrics).into_response(),
        None => absent("pods.metrics.k8s.io", &name),
    }
}

async fn version() -> Response {
    let version = json!({ "major": "1", "minor": "33", "gitVersion": "v1.33.0", "gitCommit": "", "gitTreeState": "",
        "buildDate": "", "goVersion": "", "compiler": "", "platform": "linux/amd64" });
    answer(StatusCode::OK, &version)
}

async fn review(State(cluster): State<Cluster>, body: String) -> Response {
    let mut review: Value = serde_json::from_str(&body).unwrap();
    let asked = &review["spec"]["resourceAttributes"];
    let asked = format!(
        "{} {}",
        asked["verb"].as_str().unwrap(),
        asked["resource"].as_str().unwrap()
    );
    let allowed = cluster.with(|inner| !inner.forbidden.contains(&asked));
    review["status"] = json!({ "allowed": allowed });
    answer(StatusCode::CREATED, &review)
}

#[derive(serde::Deserialize, garde::Validate)]
#[serde(rename_all = "camelCase")]
#[garde(allow_unvalidated)]
struct Parameters {
    label_selector: Option<String>,
    limit: Option<usize>,
    #[serde(rename = "continue")]
    after: Option<String>,
    dry_run: Option<String>,
}

async fn list(
    State(cluster): State<Cluster>,
    Path(kind): Path<String>,
    Query(query): Query<Parameters>,
) -> Response {
    cluster.with(|inner| {
        inner.pass_time();
        let selector = query.label_selector.as_deref();
        let wanted = selector.and_then(|selector| selector.split_once('='));
        let after = query.after.unwrap_or_default();
        let limit = query.limit.unwrap_or(usize::MAX);
        let objects = inner.objects.iter();
        let objects: Vec<_> = objects
            .filter(|((of, name), object)| {
                *of == kind
                    && *name > after
                    && wanted.is_none_or(|(key, value)| object["metadata"]["labels"][key] == value)
            })
            .map(|((_, name), object)| (name, object))
            .collect();
        let more = (objects.len() > limit).then(|| objects[limit - 1].0.clone());
        let items: Vec<_> = objects
            .iter()
            .take(limit)
            .map(|(_, object)| object)
            .collect();
        let list = json!({ "kind": "List", "apiVersion": "v1", "items": items,
            "metadata": { "resourceVersion": inner.version.to_string(), "continue": more } });
        answer(StatusCode::OK, &list)
    })
}

async fn find(
    State(cluster): State<Cluster>,
    Path((kind, name)): Path<(String, String)>,
) -> Response {
    cluster.with(|inner| {
        inner.pass_time();
        match inner.objects.get(&(kind.clone(), name.clone())) {
            Some(object) => answer(StatusCode::OK, object),
            None => absent(&kind, &name),
        }
    })
}

async fn create(
    State(cluster): State<Cluster>,
    Path(kind): Path<String>,
    Query(query): Query<Parameters>,
    body: String,
) -> Response {
    let mut object: Value = serde_json::from_str(&body).unwrap();
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    cluster.with(|inner| {
        if inner.objects.contains_key(&(kind.clone(), name.clone())) {
            let message = format!("{kind} \"{name}\" already exists");
            return refuse(409, "AlreadyExists", &message, Vec::new());
        }
        if let Some(refusal) = invalid(inner, &kind, &name, &object) {
            return refusal;
        }
        if kind == "pods" {
            object["status"] = json!({ "phase": "Pending" });
        }
        if query.dry_run.is_some() {
            return answer(StatusCode::CREATED, &object);
        }
        answer(StatusCode::CREATED, &inner.store(&kind, &name, object))
    })
}

fn invalid(inner: &Inner, kind: &str, name: &str, object: &Value) -> Option<Response> {
    let faults = match kind {
        "services" => inner.faults(name, object),
        _ => Vec::new(),
    };
    let first = faults.first()?["message"].as_str()?.to_owned();
    let message = format!("Service \"{name}\" is invalid: spec.ports: {first}");
    Some(refuse(422, "Invalid", &message, faults))
}

/// Whether a write is based on what is there; somebody else may have been quicker.
fn outdated(inner: &mut Inner, key: &(String, String), based_on: &Value) -> Option<Response> {
    if inner.conflicts > 0 {
        inner.conflicts -= 1;
        let version = json!(inner.next());
        if let Some(object) = inner.objects.get_mut(key) {
            object["metadata"]["resourceVersion"] = version;
        }
    }
    let Some(object) = inner.objects.get(key) else {
        return Some(absent(&key.0, &key.1));
    };
    let is = &object["metadata"]["resourceVersion"];
    (!based_on.is_null() && based_on != is).then(|| {
        let message =
            "the object has been modified; please apply your changes to the latest version";
        refuse(409, "Conflict", message, Vec::new())
    })
}

async fn replace(
    State(cluster): State<Cluster>,
    Path(key): Path<(String, String)>,
    body: String,
) -> Response {
    let object: Value = serde_json::from_str(&body).unwrap();
    cluster.with(|inner| {
        let based_on = &object["metadata"]["resourceVersion"];
        let refusal = outdated(inner, &key, based_on);
        let refusal = refusal.or_else(|| invalid(inner, &key.0, &key.1, &object));
        refusal
            .unwrap_or_else(|| answer(StatusCode::OK, &inner.store(&key.0, &key.1, object.clone())))
    })
}

async fn merge(
    State(cluster): State<Cluster>,
    Path(key): Path<(String, String)>,
    body: String,
) -> Response {
    let change: Value = serde_json::from_str(&body).unwrap();
    cluster.with(|inner| {
        let based_on = &change["metadata"]["resourceVersion"];
        outdated(inner, &key, based_on).unwrap_or_else(|| {
            let mut object = inner.objects[&key].clone();
            apply(&mut object, &change);
            answer(StatusCode::OK, &inner.store(&key.0, &key.1, object))
        })
    })
}

/// RFC 7386.
fn apply(object: &mut Value, change: &Value) {
    match change {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::Null => _ = object.as_object_mut().unwrap().remove(key),
                    value => apply(&mut object[key], value),
                }
            }
        }
        value => *object = value.clone(),
    }
}

async fn delete(
    State(cluster): State<Cluster>,
    Path(key): Path<(String, String)>,
    body: String,
) -> Response {
    let options: Value = serde_json::from_str(&body).unwrap_or_default();
    cluster.with(|inner| {
        let Some(object) = inner.objects.get_mut(&key) else {
            return absent(&key.0, &key.1);
        };
        let uid = &options["preconditions"]["uid"];
        if !uid.is_null() && *uid != object["metadata"]["uid"] {
            let message = "Precondition failed: UID in precondition does not match";
            return refuse(409, "Conflict", message, Vec::new());
        }
        // A pod has its grace, and a claim waits for the pod that uses it.
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let object = object.clone();
        if key.0 == "services" {
            inner.objects.remove(&key);
        }
        answer(StatusCode::OK, &object)
    })
}
