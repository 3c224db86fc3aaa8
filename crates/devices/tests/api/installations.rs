//! Apps that are installed from a queue, whichever replica works and whichever dies.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use coordination::Membership;
use devices::installation::db::{Claimed, finish, renew, requeue};
use http::StatusCode;
use platform::http::Path;
use platform::testing::announce;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::adb::packages;
use crate::app::{TestApp, User, id, ports, text, until};

/// A stand-in for the service of apps, which has every app but `none`.
struct AppStore {
    shelf: Arc<Shelf>,
    _member: Membership,
    _serving: JoinSet<()>,
}

#[derive(Default)]
struct Shelf {
    /// Whether packages begin and do not come.
    stuck: AtomicBool,
    given: AtomicUsize,
}

impl AppStore {
    async fn open(app: &TestApp) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shelf = Arc::new(Shelf::default());
        let routes = Router::new().route("/internal/apps/{app}/package", get(package));
        let routes = routes.with_state(shelf.clone());
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self {
            shelf,
            _member: announce(&app.platform, "apps", address).await,
            _serving: serving,
        }
    }

    fn given(&self) -> usize {
        self.shelf.given.load(Ordering::SeqCst)
    }
}

async fn package(State(shelf): State<Arc<Shelf>>, Path(app): Path<String>) -> Response {
    if app == "none" {
        return StatusCode::NOT_FOUND.into_response();
    }
    shelf.given.fetch_add(1, Ordering::SeqCst);
    let content = CONTENT;
    let headers = [
        ("x-cloudphone-package", stub_name()),
        ("content-length", content.len().to_string()),
    ];
    if shelf.stuck.load(Ordering::SeqCst) {
        let never = futures::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
        return (headers, axum::body::Body::from_stream(never)).into_response();
    }
    (headers, content).into_response()
}

/// What every package holds.
const CONTENT: &[u8] = b"PK\x03\x04 an app";

/// By which name the stub of a device lists it: without a manifest a package is named by its content.
fn stub_name() -> String {
    let fold = |digest: u32, byte: &u8| (digest ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    format!(
        "streamed.package{:08x}",
        CONTENT.iter().fold(0x811c_9dc5, fold)
    )
}

async fn install(user: &User, ids: &[&Value]) -> Value {
    let ids: Vec<&Value> = ids.iter().map(|device| &device["id"]).collect();
    let ask = json!({ "appId": "game", "ids": ids });
    let answer = user.post("/devices/batch/install", ask).await;
    answer.expect(StatusCode::OK).body
}

async fn batch(user: &User, report: &Value) -> Value {
    let path = format!("/devices/batch/installs/{}", text(report, "batchId"));
    user.get(&path).await.expect(StatusCode::OK).body
}

async fn count(app: &TestApp, device: &Value) -> usize {
    let address = app.config.node_address;
    packages(address, ports(device).adb).await.len()
}

/// Makes due what waits.
async fn hurry(app: &TestApp) {
    sqlx::query(
        "update devices.installations set due_at = clock_timestamp() where state = 'queued'",
    )
    .execute(&app.platform.db)
    .await
    .unwrap();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_batch_is_answered_at_once_and_done_by_all_replicas_each_device_once(db: PgPool) {
    let app = TestApp::new(db).await;
    let (store, other) = (AppStore::open(&app).await, app.another().await);
    let (alice, bob) = (app.user("alice", &[]).await, app.user("bob", &[]).await);
    let mut mine = Vec::new();
    for _ in 0..4 {
        mine.push(alice.running().await);
    }
    let (stopped, foreign) = (alice.running().await, bob.running().await);
    alice.act(&stopped, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;

    let all = [&mine[3], &stopped, &mine[0], &foreign, &mine[1], &mine[2]];
    let report = install(&alice, &all).await;

    assert_eq!(
        (&report["total"], &report["succeeded"], &report["failed"]),
        (&json!(6), &json!(4), &json!(2)),
        "{report}"
    );
    for (result, device) in report["results"].as_array().unwrap().iter().zip(all) {
        assert_eq!(result["deviceId"], device["id"]);
    }
    assert!(text(&report["results"][1], "error").contains("does not run"));
    assert!(text(&report["results"][3], "error").contains("not found"));
    let waiting = batch(&alice, &report).await;
    assert_eq!(
        (&waiting["total"], &waiting["done"]),
        (&json!(4), &json!(0))
    );
    // Of the package nothing was read yet.
    let asked = store.given();
    for device in &mine {
        assert_eq!(count(&app, device).await, 0);
    }

    let (one, two) = tokio::join!(
        app.devices.run_installations(),
        other.devices.run_installations()
    );

    assert_eq!(one.unwrap() + two.unwrap(), 4);
    assert_eq!(store.given() - asked, 4);
    for device in &mine {
        assert_eq!(count(&app, device).await, 1);
    }
    let over = batch(&alice, &report).await;
    assert_eq!((&over["done"], &over["failed"]), (&json!(4), &json!(0)));
    for result in over["results"].as_array().unwrap() {
        assert_eq!(result["status"], "installed", "{over}");
        let saga = format!("/devices/saga/{}", text(result, "sagaId"));
        let saga = alice.get(&saga).await.expect(StatusCode::OK).body;
        assert_eq!(
            (&saga["status"], &saga["error"]),
            (&json!("completed"), &Value::Null)
        );
    }
    let path = format!("/devices/batch/installs/{}", text(&report, "batchId"));
    bob.get(&path)
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    // Each step of four was told once, in order.
    let events = app.events().await;
    let told: Vec<_> = events
        .iter()
        .filter(|event| event["data"]["batchId"] == report["batchId"])
        .map(|event| event["data"]["done"].clone())
        .collect();
    assert_eq!(told, [1, 2, 3, 4].map(|done| json!(done)));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn where_a_worker_dies_another_goes_on_and_a_late_one_changes_nothing(db: PgPool) {
    let app = TestApp::with(db.clone(), |config| {
        config.operation_lease = Duration::from_millis(600);
    })
    .await;
    let (store, other) = (AppStore::open(&app).await, app.elsewhere(db).await);
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let path = format!("/devices/{}/install", id(&device));
    let queued = alice.post(&path, json!({ "appId": "game" })).await;
    let queued = queued.expect(StatusCode::OK).body;
    assert_eq!(queued["status"], "pending");

    store.shelf.stuck.store(true, Ordering::SeqCst);
    let dying = begun(&app, &store, async || true).await;
    assert_eq!(
        batch(&alice, &queued).await["results"][0]["status"],
        "installing"
    );
    // Another one goes on, and has not done it either when the first wakes: what that held is no longer its own.
    let second = begun(&other, &store, async || {
        let now = app.platform.clock.now();
        let mut tx = app.platform.db.begin().await.unwrap();
        let ended = finish(&mut tx, &dying, Some("late"), now).await.unwrap();
        let pause = (Duration::ZERO, true);
        let requeued = requeue(&mut tx, &dying, pause, "late").await.unwrap();
        let lease = Duration::from_secs(60);
        let renewed = renew(&mut tx, &dying, lease).await.unwrap();
        tx.commit().await.unwrap();
        (ended, requeued, renewed) == (false, false, false)
    })
    .await;
    assert!(second.fencing_token > dying.fencing_token);
    store.shelf.stuck.store(false, Ordering::SeqCst);

    until("a third worker goes on", async || {
        app.devices.run_installations().await.unwrap() == 1
    })
    .await;

    assert_eq!(
        batch(&alice, &queued).await["results"][0]["status"],
        "installed"
    );
    assert_eq!(count(&app, &device).await, 1);
}

/// Has a replica begin the one installation whose package does not come, asks whether all is well meanwhile, and lets its worker
/// die; what it held.
async fn begun(app: &TestApp, store: &AppStore, is_well: impl AsyncFn() -> bool) -> Claimed {
    let asked = store.given();
    let working = async {
        loop {
            app.devices.run_installations().await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let looking = async {
        until("the package has begun", async || store.given() > asked).await;
        assert!(is_well().await);
        sqlx::query_as(
            "select id, device_id, app_id, user_id, sees_all, fencing_token, attempts, false as is_last
            from devices.installations where state = 'running'",
        )
        .fetch_one(&app.platform.db)
        .await
        .unwrap()
    };
    tokio::select! { () = working => unreachable!(), held = looking => held }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_installation_on_which_one_worker_after_another_died_has_failed(db: PgPool) {
    let app = TestApp::new(db).await;
    let store = AppStore::open(&app).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let path = format!("/devices/{}/install", id(&device));
    let queued = alice.post(&path, json!({ "appId": "game" })).await;
    let queued = queued.expect(StatusCode::OK).body;
    let asked = store.given();
    sqlx::query(
        "update devices.installations set state = 'running', attempts = $1, fencing_token = nextval('devices.fencing_tokens'),
            lease_until = now() - interval '1 second'",
    )
    .bind(app.config.operation_attempts)
    .execute(&app.platform.db)
    .await
    .unwrap();

    assert_eq!(app.devices.run_installations().await.unwrap(), 1);

    let result = &batch(&alice, &queued).await["results"][0];
    assert_eq!(result["status"], "failed");
    let error = text(result, "error");
    assert!(error.contains("never brought to an end"), "{error}");
    assert_eq!(store.given(), asked);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_away_is_waited_for_and_what_is_refused_is_not(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let (device, gone) = (alice.running().await, alice.running().await);

    // Nobody can tell yet whether there is such an app.
    let report = install(&alice, &[&device, &gone]).await;
    assert_eq!(report["succeeded"], 2, "{report}");
    alice.delete(&gone).await.expect(StatusCode::OK);
    app.devices.run_installations().await.unwrap();
    let waiting = batch(&alice, &report).await;
    let statuses = waiting["results"].as_array().unwrap().iter();
    let statuses: Vec<_> = statuses.map(|result| text(result, "status")).collect();
    assert_eq!(statuses, ["pending", "failed"], "{waiting}");

    let store = AppStore::open(&app).await;
    // It restarts meanwhile: the app comes when it runs again.
    alice.act(&device, "restart").await.expect(StatusCode::OK);
    hurry(&app).await;
    assert_eq!(app.devices.run_installations().await.unwrap(), 0);
    app.run_operations().await;
    assert_eq!(app.devices.run_installations().await.unwrap(), 1);
    assert_eq!(count(&app, &device).await, 1);
    let over = batch(&alice, &report).await;
    assert_eq!((&over["done"], &over["failed"]), (&json!(2), &json!(1)));

    let path = format!("/devices/{}/install", id(&device));
    let none = alice.post(&path, json!({ "appId": "none" })).await;
    none.refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    // Its owner forbids it after it was queued: that is final, and the device is what it was.
    let queued = alice.post(&path, json!({ "appId": "game" })).await.body;
    alice
        .act(&device, "adb/disable")
        .await
        .expect(StatusCode::OK);
    assert_eq!(app.devices.run_installations().await.unwrap(), 1);
    let refused = batch(&alice, &queued).await["results"][0].clone();
    assert_eq!(refused["status"], "failed");
    assert!(
        text(&refused, "error").contains("ADB is disabled"),
        "{refused}"
    );
    assert_eq!(alice.status(&device).await, "running");
    drop(store);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn so_much_waits_for_a_device_and_no_more(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let path = format!("/devices/{}/install", id(&device));
    let asking = (0..12).map(|_| alice.post(&path, json!({ "appId": "game" })));

    let answers = futures::future::join_all(asking).await;

    let taken = answers
        .iter()
        .filter(|answer| answer.status == StatusCode::OK);
    assert_eq!(taken.count(), 8);
    for answer in answers {
        if answer.status != StatusCode::OK {
            answer.refused(StatusCode::CONFLICT, "DEVICE_BUSY");
        }
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_user_has_so_many_installations_open_over_all_devices_and_replicas(db: PgPool) {
    let app = TestApp::with(db.clone(), |config| config.queued_installations = 5).await;
    let other = app.elsewhere(db).await;
    let store = AppStore::open(&app).await;
    let (alice, bob) = (app.user("alice", &[]).await, app.user("bob", &[]).await);
    let mut mine = Vec::new();
    for _ in 0..4 {
        mine.push(alice.running().await);
    }
    let his = bob.running().await;
    let all: Vec<&Value> = mine.iter().collect();

    // Of two batches at once, at two replicas, as much is queued as there is room for.
    let alice_there = other.as_user(&alice);
    let (one, two) = tokio::join!(install(&alice, &all), install(&alice_there, &all));

    let queued = |report: &Value| report["succeeded"].as_i64().unwrap();
    assert_eq!(queued(&one) + queued(&two), 5, "{one} {two}");
    let refused: Vec<&Value> = [&one, &two]
        .into_iter()
        .flat_map(|report| report["results"].as_array().unwrap())
        .filter(|result| result["success"] == false)
        .collect();
    assert_eq!(refused.len(), 3);
    for result in refused {
        assert_eq!(result["code"], "RATE_LIMITED", "{result}");
    }
    let path = format!("/devices/{}/install", id(&mine[0]));
    let ask = json!({ "appId": "game" });
    let one_more = alice.post(&path, ask.clone()).await;
    one_more.refused(StatusCode::TOO_MANY_REQUESTS, "RATE_LIMITED");
    // That is hers alone, and what is not there is not told as too much.
    assert_eq!(queued(&install(&bob, &[&his]).await), 1);
    let none = alice.post("/devices/none/install", ask.clone()).await;
    none.refused(StatusCode::NOT_FOUND, "NOT_FOUND");

    // What is over counts no more.
    app.devices.run_installations().await.unwrap();
    alice.post(&path, ask).await.expect(StatusCode::OK);
    drop(store);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_key_that_installs_an_app_needs_to_see_apps_too(db: PgPool) {
    let app = TestApp::new(db).await;
    let owner = platform::testing::account(&app.platform, &[]).await;
    for path in ["/devices/none/install", "/devices/batch/install"] {
        let half = platform::testing::api_key(&app.platform, &owner, &["devices:write"]).await;
        let refused = app.post_with_key(&half.1, path).await;
        let refused = refused.refused(StatusCode::FORBIDDEN, "FORBIDDEN").body;
        assert!(text(&refused, "message").contains("apps:read"), "{refused}");

        let scopes = ["devices:write", "apps:read"];
        let whole = platform::testing::api_key(&app.platform, &owner, &scopes).await;
        let passed = app.post_with_key(&whole.1, path).await;
        assert_eq!(passed.status, StatusCode::BAD_REQUEST, "{}", passed.body);
    }
}

async fn on_device(user: &User, device: &Value) -> Value {
    let path = format!("/devices/{}/apps", id(device));
    user.get(&path).await.expect(StatusCode::OK).body
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_on_a_device_is_told_by_the_device_where_it_runs_and_else_from_what_was_put_there(
    db: PgPool,
) {
    let app = TestApp::new(db).await;
    let (store, other) = (AppStore::open(&app).await, app.another().await);
    let (alice, bob) = (app.user("alice", &[]).await, app.user("bob", &[]).await);
    let device = alice.running().await;
    let path = format!("/devices/{}/apps", id(&device));

    let none = on_device(&alice, &device).await;
    assert_eq!(
        (&none["isChecked"], &none["apps"]),
        (&json!(true), &json!([]))
    );
    install(&alice, &[&device]).await;
    let coming = on_device(&alice, &device).await;
    assert_eq!(
        coming["apps"],
        json!([{ "appId": "game", "status": "pending" }])
    );
    other.devices.run_installations().await.unwrap();

    let there = on_device(&alice, &device).await;
    assert_eq!(there["isChecked"], true, "{there}");
    assert_eq!(there["apps"].as_array().unwrap().len(), 1, "{there}");
    let game = &there["apps"][0];
    let told = (text(game, "appId"), text(game, "packageName"));
    assert_eq!(told, ("game".to_owned(), stub_name()));
    assert_eq!(game["status"], "installed");
    assert!(game["installedAt"].is_string(), "{there}");
    // A device is its owner's, and an administrator's.
    bob.get(&path)
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    let root = app.user("root", &["admin"]).await;
    assert_eq!(on_device(&root, &device).await, there);

    // Removed past us: the device knows, as long as it runs.
    let shell = format!("/devices/{}/shell", id(&device));
    let removal = json!({ "command": format!("pm uninstall {}", stub_name()) });
    alice.post(&shell, removal).await.expect(StatusCode::OK);
    assert_eq!(on_device(&alice, &device).await["apps"], json!([]));
    alice.act(&device, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;
    let stopped = on_device(&alice, &device).await;
    assert_eq!(stopped["isChecked"], false);
    assert!(
        text(&stopped, "uncheckedBecause").contains("does not run"),
        "{stopped}"
    );
    assert_eq!(stopped["apps"][0]["appId"], "game");
    drop(store);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_removed_is_forgotten_and_what_was_installed_meanwhile_is_not(db: PgPool) {
    let app = TestApp::new(db).await;
    let (_store, other) = (AppStore::open(&app).await, app.another().await);
    let alice = app.user("alice", &[]).await;
    let (one, two) = (alice.running().await, alice.running().await);
    install(&alice, &[&one, &two]).await;
    app.devices.run_installations().await.unwrap();
    let recorded = async || -> Vec<String> {
        sqlx::query_scalar("select device_id from devices.installed_apps order by installed_at")
            .fetch_all(&app.platform.db)
            .await
            .unwrap()
    };
    assert_eq!(recorded().await.len(), 2);

    let name = json!({ "packageName": stub_name() });
    let path = format!("/devices/{}/uninstall", id(&one));
    alice.post(&path, name).await.expect(StatusCode::OK);
    assert_eq!(recorded().await, [text(&two, "id")]);

    // A removal that began before another replica installed the app anew leaves the new one alone.
    let (device, name) = (id(&two), stub_name());
    let begun = devices::installation::removal::Removal::begin(&app.devices, &device, &name);
    let begun = begun.await.unwrap();
    install(&alice, &[&two]).await;
    other.devices.run_installations().await.unwrap();
    begun.end().await.unwrap();
    assert_eq!(recorded().await, [text(&two, "id")]);

    let ask = json!({ "ids": [one["id"], two["id"]], "packageName": name });
    alice
        .post("/devices/batch/uninstall", ask)
        .await
        .expect(StatusCode::OK);
    assert_eq!(recorded().await, Vec::<String>::new());
    // With a device its list goes.
    install(&alice, &[&two]).await;
    app.devices.run_installations().await.unwrap();
    alice.delete(&two).await.expect(StatusCode::OK);
    assert_eq!(recorded().await, Vec::<String>::new());
    alice
        .get(&format!("/devices/{}/apps", id(&one)))
        .await
        .expect(StatusCode::OK);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_app_is_on_the_devices_it_was_put_on_and_on_its_way_to_others_of_the_same_owner(
    db: PgPool,
) {
    let app = TestApp::new(db).await;
    let _store = AppStore::open(&app).await;
    let alice = app.user("alice", &[]).await;
    let (bob, admin) = (
        app.user("bob", &[]).await,
        app.user("root", &["admin"]).await,
    );
    let (one, two, third) = (
        alice.running().await,
        alice.running().await,
        bob.running().await,
    );
    install(&alice, &[&one]).await;
    install(&bob, &[&third]).await;
    app.devices.run_installations().await.unwrap();
    install(&alice, &[&one, &two]).await;

    let of = async |user: &User, query: &str| {
        let path = format!("/devices/with-app/game{query}");
        user.get(&path).await.expect(StatusCode::OK).body
    };
    let listed = of(&alice, "").await;
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    assert_eq!(listed[0]["deviceId"], two["id"]);
    assert_eq!(listed[0]["deviceName"], two["name"]);
    assert_eq!(listed[0]["status"], "pending");
    assert!(listed[0].get("packageName").is_none());
    // It is there, whatever is on its way anew.
    assert_eq!(listed[1]["deviceId"], one["id"]);
    assert_eq!(listed[1]["status"], "installed");
    assert_eq!(listed[1]["packageName"], stub_name());
    assert!(listed[1]["installedAt"].is_string());
    assert_eq!(of(&alice, "?limit=1&offset=1").await, json!([listed[1]]));
    assert_eq!(of(&bob, "").await[0]["deviceId"], third["id"]);
    assert_eq!(of(&admin, "").await.as_array().unwrap().len(), 3);

    alice.delete(&one).await.expect(StatusCode::OK);
    alice.delete(&two).await.expect(StatusCode::OK);
    assert_eq!(of(&alice, "").await, json!([]));
}
