//! What keeps the leases of ports right.

use std::time::Duration;

use http::StatusCode;
use serde_json::json;
use sqlx::PgPool;

use crate::app::{TestApp, id, ports, until};

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
            "adb": { "total": 1000, "used": 1, "available": 999, "range": "5555-6554" },
            "webrtc": { "total": 1000, "used": 1, "available": 999, "range": "8080-9079" },
            "scrcpy": { "total": 1000, "used": 1, "available": 999, "range": "27183-28182" },
        })
    );
}
