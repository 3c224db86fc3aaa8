//! Who may not, and what is not accepted.

use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{TestApp, id, text};

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_sandbox_lets_loopback_create_for_anybody_and_nothing_else(db: PgPool) {
    let app = TestApp::new(db).await;
    let body = json!({ "userId": "user1", "name": "device1" });

    let created = app
        .anonymous("127.0.0.1", "POST", "/devices", body.clone())
        .await;
    let created = created.expect(StatusCode::CREATED).body;

    assert_eq!(created["userId"], "user1");
    app.anonymous("203.0.113.9", "POST", "/devices", body)
        .await
        .refused(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED");
    app.anonymous("127.0.0.1", "POST", "/devices", json!({ "name": "n" }))
        .await
        .refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
    let device = format!("/devices/{}", id(&created));
    for (method, path) in [
        ("GET", "/devices".to_owned()),
        ("GET", "/devices/my".to_owned()),
        ("GET", "/devices/count".to_owned()),
        ("GET", "/devices/my/stats".to_owned()),
        ("GET", "/devices/stats".to_owned()),
        ("GET", "/ports/stats".to_owned()),
        ("GET", format!("/devices/saga/{}", text(&created, "sagaId"))),
        ("GET", device.clone()),
        ("PATCH", device.clone()),
        ("DELETE", device.clone()),
        ("GET", format!("{device}/ports")),
        ("POST", format!("{device}/start")),
        ("POST", format!("{device}/stop")),
        ("POST", format!("{device}/restart")),
        ("POST", format!("{device}/reboot")),
    ] {
        app.anonymous("127.0.0.1", method, &path, Value::Null)
            .await
            .refused(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn devices_of_others_are_not_found_except_by_admins(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob, root) = (
        app.user("alice", &[]).await,
        app.user("bob", &[]).await,
        app.user("root", &["admin"]).await,
    );
    let device = alice.running().await;
    let created = alice.create(json!({ "name": "n" })).await;
    let path = format!("/devices/{}", id(&device));
    let saga = format!("/devices/saga/{}", text(&created, "sagaId"));

    for (method, path) in [
        ("GET", path.clone()),
        ("PATCH", path.clone()),
        ("DELETE", path.clone()),
        ("GET", format!("{path}/ports")),
        ("POST", format!("{path}/start")),
        ("POST", format!("{path}/stop")),
        ("POST", format!("{path}/restart")),
        ("GET", saga.clone()),
        ("GET", "/devices/saga/none".to_owned()),
        ("GET", "/devices/a%20b".to_owned()),
        ("POST", "/devices/none/start".to_owned()),
    ] {
        bob.send(method, &path, Value::Null)
            .await
            .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    }
    bob.get("/devices?userId=alice")
        .await
        .refused(StatusCode::FORBIDDEN, "FORBIDDEN");
    bob.post("/devices", json!({ "name": "n", "userId": "alice" }))
        .await
        .refused(StatusCode::FORBIDDEN, "FORBIDDEN");
    root.get(&path).await.expect(StatusCode::OK);
    root.get(&saga).await.expect(StatusCode::OK);
    let given = root
        .post("/devices", json!({ "name": "n", "userId": "alice" }))
        .await;
    assert_eq!(given.expect(StatusCode::CREATED).body["userId"], "alice");
    root.act(&device, "stop").await.expect(StatusCode::OK);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn every_fault_of_a_new_device_is_told_and_nothing_stored(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let many: Vec<_> = (0..11).map(|n| n.to_string()).collect();
    for (field, value) in [
        ("name", json!("")),
        ("name", json!("x".repeat(101))),
        ("name", json!(7)),
        ("description", json!("x".repeat(501))),
        ("type", json!("watch")),
        ("providerType", json!("toaster")),
        ("cpuCores", json!(0)),
        ("cpuCores", json!(17)),
        ("cpuCores", json!("2")),
        ("memoryMB", json!(511)),
        ("memoryMB", json!(32_769)),
        ("storageMB", json!(1_023)),
        ("storageMB", json!(1_048_577)),
        ("resolution", json!("10x10")),
        ("dpi", json!(119)),
        ("dpi", json!(641)),
        ("androidVersion", json!("eleven")),
        ("tags", json!(many)),
        ("metadata", json!({ "k": "x".repeat(17_000) })),
        ("metadata", json!([])),
        ("userId", json!("a b")),
        ("autoStart", json!("yes")),
    ] {
        let mut body = json!({ "name": "n" });
        body[field] = value.clone();
        let answer = alice.post("/devices", body).await;
        let answer = answer.refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
        assert_eq!(answer.body["details"][0]["field"], field, "{value}");
    }
    let answer = alice
        .post("/devices", json!({ "cpuCores": 0, "dpi": 1 }))
        .await;
    let answer = answer.refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
    assert_eq!(answer.body["details"].as_array().unwrap().len(), 3);
    assert_eq!(alice.get("/devices/count").await.body["count"], 0);
}
