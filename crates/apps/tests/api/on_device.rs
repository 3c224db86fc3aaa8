//! What is on a device: the service of devices says it, and of the apps that the caller may see their names are told.

use std::net::Ipv4Addr;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use coordination::Membership;
use http::{HeaderMap, StatusCode, Uri};
use platform::http::{Json, Path};
use platform::testing::announce;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::app::{TestApp, User, form};
use testkit::package::package;

/// A stand-in for the service of devices, which tells of one device: that it has these apps.
struct Phones {
    _member: Membership,
    _serving: JoinSet<()>,
}

impl Phones {
    async fn open(app: &TestApp, is_checked: bool, apps: Value) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = async move |Path(device): Path<String>, headers: HeaderMap| -> Response {
            assert!(headers.contains_key(platform::auth::IDENTITY_HEADER));
            if device != "phone" {
                let problem = json!({ "message": "device not found" });
                return (StatusCode::NOT_FOUND, Json(problem)).into_response();
            }
            Json(json!({ "deviceId": device, "isChecked": is_checked, "apps": apps }))
                .into_response()
        };
        let holders = async |Path(app): Path<String>, uri: Uri| -> Json<Value> {
            let device = json!({ "deviceId": "phone", "deviceName": app, "status": "installed", "packageName": uri.query() });
            Json(json!([device]))
        };
        let routes = Router::new()
            .route("/devices/{id}/apps", get(answer))
            .route("/devices/with-app/{app}", get(holders));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self {
            _member: announce(&app.platform, "devices", address).await,
            _serving: serving,
        }
    }
}

async fn upload(app: &TestApp, user: &User, name: &str) -> Value {
    let form = form(Some(&package(name, "2.1", 21)), &[]);
    app.upload(user, form, 4096).await.expect(201).body
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn apps_on_a_device_are_named_as_far_as_the_caller_may_see_them(db: PgPool) {
    let app = TestApp::start(db).await;
    let (alice, bob) = (app.user(&[]).await, app.user(&[]).await);
    let mine = upload(&app, &alice, "com.example.mine").await;
    let foreign = upload(&app, &bob, "com.example.foreign").await;
    let at = "2026-01-02T03:04:05.000Z";
    let apps = json!([
        { "appId": "gone", "packageName": "com.example.gone", "status": "installed", "installedAt": at },
        { "appId": mine["id"], "packageName": "com.example.mine", "status": "installed", "installedAt": at },
        { "appId": foreign["id"], "status": "pending" },
    ]);
    let _phones = Phones::open(&app, true, apps).await;

    let listed = app.get(&alice, "/apps/devices/phone/apps").await;
    let listed = listed.expect(200).body;

    let named = |n: usize| listed[n].as_object().unwrap();
    let wanted = json!({
        "id": format!("phone:{}", mine["id"].as_str().unwrap()),
        "deviceId": "phone", "applicationId": mine["id"], "packageName": "com.example.mine",
        "appName": mine["name"], "name": mine["name"], "versionName": "2.1", "version": "2.1",
        "versionCode": 21, "size": mine["size"], "status": "installed", "isChecked": true, "installedAt": at,
    });
    assert_eq!(json!(named(1)), wanted);
    assert_eq!(listed[0]["packageName"], "com.example.gone");
    assert!(!named(0).contains_key("appName"), "{listed}");
    let of_bob = json!({
        "id": format!("phone:{}", foreign["id"].as_str().unwrap()),
        "deviceId": "phone", "applicationId": foreign["id"], "status": "pending", "isChecked": false,
    });
    assert_eq!(json!(named(2)), of_bob);
    let second = app
        .get(&alice, "/apps/devices/phone/apps?limit=1&offset=1")
        .await;
    assert_eq!(second.expect(200).body, json!([wanted]));
    for other in ["other", "a%2Fb"] {
        app.get(&alice, &format!("/apps/devices/{other}/apps"))
            .await
            .refused(404, "NOT_FOUND");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_the_device_did_not_say_is_told_as_such(db: PgPool) {
    let app = TestApp::start(db).await;
    let alice = app.user(&[]).await;
    app.get(&alice, "/apps/devices/phone/apps")
        .await
        .refused(503, "NOT_READY");
    let apps =
        json!([{ "appId": "game", "packageName": "com.example.game", "status": "installed" }]);
    let _phones = Phones::open(&app, false, apps).await;

    let listed = app.get(&alice, "/apps/devices/phone/apps").await;

    assert_eq!(listed.expect(200).body[0]["isChecked"], false);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_devices_of_an_app_are_told_to_whoever_may_see_it(db: PgPool) {
    let app = TestApp::start(db).await;
    let (alice, bob) = (app.user(&[]).await, app.user(&[]).await);
    let mine = upload(&app, &alice, "com.example.mine").await;
    let path = format!("/apps/{}/devices", mine["id"].as_str().unwrap());
    app.get(&alice, &path).await.refused(503, "NOT_READY");
    let _phones = Phones::open(&app, true, json!([])).await;

    let listed = app.get(&alice, &format!("{path}?limit=7&offset=2")).await;

    let id = mine["id"].as_str().unwrap();
    let wanted = json!([{
        "id": format!("phone:{id}"), "applicationId": id, "deviceId": "phone", "deviceName": id,
        "packageName": "limit=7&offset=2", "status": "installed",
    }]);
    assert_eq!(listed.expect(200).body, wanted);
    app.get(&bob, &path).await.refused(404, "NOT_FOUND");
}
