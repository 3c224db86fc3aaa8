//! What keeps the leases of ports right.

use std::time::Duration;

use coordination::{PortError, StoreError};
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::TcpListener;

use crate::app::{TestApp, User, id, ports, until};

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_keeps_its_ports_for_as_long_as_it_exists(db: PgPool) {
    let app = TestApp::with(db, |config| {
        config.port_lease = Duration::from_millis(300);
        config.port_quarantine = Duration::from_millis(1);
    })
    .await;
    let alice = app.user("alice", &[]).await;
    let first = alice.create(json!({ "name": "n" })).await;

    tokio::time::sleep(Duration::from_millis(400)).await;
    app.devices.ports().keep().await.unwrap();
    let second = alice.create(json!({ "name": "n" })).await;

    assert_eq!((ports(&first).adb, ports(&second).adb), (5555, 5556));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn ports_that_no_device_took_come_back(db: PgPool) {
    let app = TestApp::with(db, |config| {
        config.port_lease = Duration::from_millis(100);
        config.port_quarantine = Duration::from_millis(1);
    })
    .await;
    let alice = app.user("alice", &[]).await;
    // The process died behind this line.
    app.devices
        .ports()
        .lease(&contracts::DeviceId::new())
        .await
        .unwrap();

    until("the ports are free again", async || {
        app.devices.ports().keep().await.unwrap();
        let device = alice.create(json!({ "name": "n" })).await;
        let adb = ports(&device).adb;
        alice.delete(&device).await.expect(StatusCode::OK);
        app.run_operations().await;
        adb == 5555
    })
    .await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn ports_that_no_replica_confirms_are_free_again(db: PgPool) {
    let app = TestApp::unconfirmed(db).await;
    let ports = app.devices.ports();
    ports.rebuild().await.unwrap();

    let refused = ports.lease(&contracts::DeviceId::new()).await.unwrap_err();

    assert!(
        matches!(
            refused,
            devices::Error::Ports(PortError::Store(StoreError::NotReplicated { .. }))
        ),
        "{refused}"
    );
    until("the ports are free again", async || {
        ports.leases().await.unwrap().is_empty()
    })
    .await;
    assert!(ports.resting().await.unwrap().is_empty());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn redis_learns_again_what_it_forgot_about_one_device(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(json!({ "name": "n" })).await;
    // Behind everybody's back.
    let ports_before = ports(&device);
    app.devices
        .ports()
        .release(&id(&device), ports_before)
        .await;

    app.devices.ports().keep().await.unwrap();

    let key = app.platform.keys.ports("local") + "adb:5555";
    let holder: String = fred::interfaces::KeysInterface::get(&app.platform.redis, key)
        .await
        .unwrap();
    assert_eq!(holder, id(&device).to_string());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn ports_are_shown_to_the_owner_and_counted_for_admins(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(json!({ "name": "n" })).await;
    let path = format!("/devices/{}/ports", id(&device));

    let shown = alice.get(&path).await.expect(StatusCode::OK).body;

    assert_eq!(
        shown,
        json!({ "deviceId": device["id"], "adbHost": app.config.node_address.to_string(), "adbPort": 5555, "webrtcPort": 8080, "scrcpyPort": 27183 })
    );
    app.user("bob", &[])
        .await
        .get(&path)
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    alice
        .get("/ports/stats")
        .await
        .refused(StatusCode::FORBIDDEN, "FORBIDDEN");
    let stats = app
        .user("root", &["admin"])
        .await
        .get("/ports/stats")
        .await
        .body;
    assert_eq!(
        stats,
        json!({
            "adb": { "total": 1000, "used": 1, "resting": 0, "available": 999, "range": "5555-6554" },
            "webrtc": { "total": 1000, "used": 1, "resting": 0, "available": 999, "range": "8080-9079" },
            "scrcpy": { "total": 1000, "used": 1, "resting": 0, "available": 999, "range": "27183-28182" },
        })
    );
}

/// Leaves one device with ports; those of another rest because it is deleted, and one that a foreign process had.
async fn rest_some_ports(app: &TestApp, alice: &User) -> Value {
    let foreign = TcpListener::bind((app.config.node_address, 5556))
        .await
        .unwrap();
    let gone = alice.create(json!({ "name": "n" })).await;
    let kept = alice.create(json!({ "name": "n" })).await;
    alice.delete(&gone).await.expect(StatusCode::OK);
    app.run_operations().await;
    drop(foreign);
    kept
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn admins_see_who_holds_which_ports_and_what_rests_why(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, root) = (
        app.user("alice", &[]).await,
        app.user("root", &["admin"]).await,
    );
    let kept = rest_some_ports(&app, &alice).await;

    let leases = root.get("/ports/leases?pageSize=1").await;
    let leases = leases.expect(StatusCode::OK).body;
    let resting = root.get("/ports/resting?pageSize=100&node=local").await;
    let resting = resting.expect(StatusCode::OK).body;

    assert_eq!(
        (&leases["total"], &leases["totalPages"]),
        (&json!(1), &json!(1))
    );
    let mut lease = leases["data"][0].clone();
    for moment in ["since", "until"] {
        assert!(lease[moment].take().is_string(), "{moment}");
    }
    assert_eq!(
        lease,
        json!({ "node": "local", "deviceId": kept["id"], "userId": "alice", "status": "running",
            "adbPort": 5557, "webrtcPort": 8081, "scrcpyPort": 27184, "since": null, "until": null })
    );
    let rests = resting["data"].as_array().unwrap().iter();
    let rests: Vec<_> = rests
        .map(|rest| json!([rest["kind"], rest["port"], rest["reason"]]))
        .collect();
    assert_eq!(
        rests,
        [
            json!(["adb", 5555, "returned"]),
            json!(["adb", 5556, "foreign-process"]),
            json!(["scrcpy", 27183, "returned"]),
            json!(["webrtc", 8080, "returned"]),
        ]
    );
    let stats = root.get("/ports/stats").await.body;
    assert_eq!(
        (&stats["adb"]["resting"], &stats["webrtc"]["resting"]),
        (&json!(2), &json!(1))
    );
    for path in ["/ports/leases", "/ports/resting"] {
        let refused = alice.get(path).await;
        refused.refused(StatusCode::FORBIDDEN, "FORBIDDEN");
        let nowhere = root.get(&format!("{path}?node=nowhere")).await;
        nowhere.refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_rests_is_known_again_after_redis_lost_everything(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, root) = (
        app.user("alice", &[]).await,
        app.user("root", &["admin"]).await,
    );
    rest_some_ports(&app, &alice).await;
    let known = async || {
        let body = root.get("/ports/resting?pageSize=100").await.body;
        let rests = body["data"].as_array().unwrap().iter();
        rests
            .map(|rest| (rest["port"].clone(), rest["reason"].clone()))
            .collect::<Vec<_>>()
    };
    let before = known().await;

    app.lose_redis().await;
    // Who only looks builds no index.
    app.devices.ports().keep().await.unwrap();
    let root = app.user("root", &["admin"]).await;
    let known = async || {
        let body = root.get("/ports/resting?pageSize=100").await.body;
        let rests = body["data"].as_array().unwrap().iter();
        rests
            .map(|rest| (rest["port"].clone(), rest["reason"].clone()))
            .collect::<Vec<_>>()
    };

    assert_eq!(known().await, before);
    assert_eq!(before.len(), 4);
}
