//! An engine that answers, and cannot remove one image: everything else goes on.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use devices::node::health::tend;
use devices::node::settings::parse;
use http::{Method, StatusCode};
use platform::http::Json;
use platform::lifecycle::Tasks;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::TcpListener;

use crate::app::{TestApp, id, text, until};

/// What the engine keeps, and which images it was told to remove.
#[derive(Clone)]
struct Engine {
    cluster: String,
    snapshots: Arc<Mutex<Vec<String>>>,
    removed: Arc<Mutex<Vec<String>>>,
}

async fn answer(State(engine): State<Engine>, request: Request) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().to_string());
    let path = request.uri().path().to_owned();
    if path.ends_with("/images/json") {
        // One image is damaged: the engine fails whenever it is to be found by itself.
        if uri.contains("snapshot%3Ddamaged") {
            let fault = json!({ "message": "input/output error" });
            return (StatusCode::INTERNAL_SERVER_ERROR, Json(fault)).into_response();
        }
        let kept = engine.snapshots.lock().unwrap().clone();
        let image = |snapshot: &String| {
            json!({
                "Id": format!("sha256:{snapshot}"), "ParentId": "", "RepoTags": [format!("cloudphone-snapshot:{snapshot}")],
                "RepoDigests": [], "Created": 1, "Size": 1, "SharedSize": 1, "Containers": 0,
                "Labels": { "cloudphone.snapshot": snapshot, "cloudphone.cluster": engine.cluster },
            })
        };
        let images = kept
            .iter()
            .filter(|snapshot| !uri.contains("snapshot%3D") || uri.contains(snapshot.as_str()))
            .map(image);
        return Json(images.collect::<Vec<Value>>()).into_response();
    }
    if path.contains("/images/") && method == Method::DELETE {
        engine.removed.lock().unwrap().push(path);
        return Json(json!([])).into_response();
    }
    let version = json!({ "ApiVersion": "1.41", "MinAPIVersion": "1.24", "Version": "20.10.0" });
    match path.rsplit('/').next() {
        Some("_ping") => "OK".into_response(),
        Some("info") => {
            let info = json!({ "ID": "broken", "DockerRootDir": "/data", "NCPU": 8, "MemTotal": 16_000_000_000_u64 });
            Json(info).into_response()
        }
        _ => Json(version).into_response(),
    }
}

/// A replica with a node whose engine is this one, and a device that runs elsewhere.
async fn with_engine(db: PgPool, snapshots: &[&str], tasks: &Tasks) -> (TestApp, Engine, Value) {
    let probe = TestApp::new(db.clone()).await;
    // Before there is a node for containers, which takes all devices then.
    let device = probe.user("alice", &[]).await.running().await;
    let engine = Engine {
        cluster: probe.cluster().await,
        snapshots: Arc::new(Mutex::new(
            snapshots.iter().map(ToString::to_string).collect(),
        )),
        removed: Arc::default(),
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let routes = Router::new().fallback(answer).with_state(engine.clone());
    tasks.spawn("tests.engine", async move {
        Ok(axum::serve(listener, routes).await?)
    });
    let node = json!([{ "name": "broken", "endpoint": format!("tcp://{address}"), "address": "127.0.0.9", "devices": 10 }]);
    let mut config = probe.config.clone();
    config.nodes.extend(parse(&node.to_string()).unwrap());
    config.operation_attempts = 2;
    let app = TestApp::on(&probe.platform, config).await;
    until("the engine answers", async || {
        tend(&app.devices).await.unwrap();
        app.devices
            .runtimes()
            .engines
            .answering()
            .contains(&"broken".to_owned())
    })
    .await;
    (app, engine, device)
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_sweep_goes_on_behind_an_image_that_cannot_be_removed(db: PgPool) {
    let tasks = Tasks::new();
    let (app, engine, _device) = with_engine(db, &["damaged", "whole"], &tasks).await;

    devices::snapshot::jobs::sweep(&app.devices).await.unwrap();

    let removed = engine.removed.lock().unwrap().clone();
    assert!(
        removed.iter().any(|path| path.contains("whole")),
        "{removed:?}"
    );
    assert!(!removed.iter().any(|path| path.contains("damaged")));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_removal_that_fails_stands_in_no_way(db: PgPool) {
    let tasks = Tasks::new();
    let (app, _engine, device) = with_engine(db.clone(), &["damaged"], &tasks).await;
    let alice = app.user("alice", &[]).await;
    sqlx::query("update devices.devices set runtime = 'docker', node = 'broken'")
        .execute(&db)
        .await
        .unwrap();
    sqlx::query(
        "insert into devices.snapshots (id, device_id, user_id, name, status, taken_at, created_by, created_at, updated_at)
        values ('damaged', $1, 'alice', 'n', 'ready', now(), 'alice', now(), now())",
    )
    .bind(id(&device))
    .execute(&db)
    .await
    .unwrap();

    let deleted = alice
        .send("DELETE", "/snapshots/damaged", Value::Null)
        .await;
    deleted.expect(StatusCode::OK);
    until("the removal is given up", async || {
        tend(&app.devices).await.unwrap();
        app.run_operations().await;
        let open: i64 = sqlx::query_scalar(
            "select count(*) from devices.operations where state in ('queued', 'running')",
        )
        .fetch_one(&db)
        .await
        .unwrap();
        open == 0
    })
    .await;

    let (state, error): (String, String) =
        sqlx::query_as("select state, error from devices.operations where kind = 'forget'")
            .fetch_one(&db)
            .await
            .unwrap();
    assert_eq!(state, "failed", "{error}");
    let left: i64 = sqlx::query_scalar("select count(*) from devices.snapshots")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(left, 0, "the sweep may remove it now");
    assert_eq!(text(&alice.device(&device).await, "status"), "running");
}
