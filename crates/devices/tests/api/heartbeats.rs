//! Heartbeats: said by services alone, and shown on the device.

use chrono::TimeDelta;
use contracts::Service;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{Answer, TestApp, id, text};

async fn heartbeat(app: &TestApp, device: &str, body: Value) -> Answer {
    let path = format!("/devices/{device}/heartbeat");
    let (auth, now) = (&app.platform.auth, app.platform.clock.now());
    let signed = auth.service_credential(Service::Media, now, &Method::POST, &path);
    app.post_as_service(&signed, &path, body).await
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_service_says_that_a_device_lives_and_nobody_else_may(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let root = app.user("root", &["admin"]).await;
    let device = alice.running().await;
    assert_eq!(device.get("lastHeartbeatAt"), None);
    let body =
        json!({ "cpuUsage": 12.5, "memoryUsage": 50, "storageUsed": 1024, "temperature": 41 });

    let path = format!("/devices/{}/heartbeat", id(&device));
    for user in [&alice, &root] {
        let refused = user.post(&path, body.clone()).await;
        refused.refused(StatusCode::FORBIDDEN, "FORBIDDEN");
    }
    let anonymous = app.anonymous("127.0.0.1", "POST", &path, body.clone());
    assert_eq!(anonymous.await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(alice.device(&device).await.get("lastHeartbeatAt"), None);

    // Two at once write one row.
    let said = text(&device, "id");
    let (one, other) = tokio::join!(
        heartbeat(&app, &said, body.clone()),
        heartbeat(&app, &said, body)
    );
    one.expect(StatusCode::OK);
    other.expect(StatusCode::OK);

    let first = text(&alice.device(&device).await, "lastHeartbeatAt");
    assert!(!first.is_empty());
    let shown = alice.get(&format!("/devices/{said}/metrics")).await.body;
    let figures = ["cpuUsage", "memoryUsed", "storageUsage", "simulated"];
    assert_eq!(
        figures.map(|name| shown[name].clone()),
        [json!(12.5), json!(2048.0), json!(10.0), json!(true)]
    );

    // What a later one leaves out stays as it was.
    app.platform.clock.advance(TimeDelta::seconds(30));
    heartbeat(&app, &said, json!({}))
        .await
        .expect(StatusCode::OK);
    let later = text(&alice.device(&device).await, "lastHeartbeatAt");
    assert!(later > first, "{later} after {first}");
    let shown = alice.get(&format!("/devices/{said}/metrics")).await.body;
    assert_eq!(shown["cpuUsage"], 12.5);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_heartbeat_that_comes_late_changes_nothing_more(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let said = text(&device, "id");
    let shown = async || {
        let shown = alice.get(&format!("/devices/{said}/metrics")).await.body;
        let figures = ["cpuUsage", "memoryUsed", "storageUsed"].map(|name| shown[name].clone());
        (
            figures,
            text(&alice.device(&device).await, "lastHeartbeatAt"),
        )
    };
    let body = json!({ "cpuUsage": 10, "memoryUsed": 100, "storageUsed": 1000 });
    heartbeat(&app, &said, body).await.expect(StatusCode::OK);
    let before = shown().await;

    // What another replica took in before it, and wrote after it.
    app.platform.clock.advance(TimeDelta::seconds(-5));
    let late = json!({ "cpuUsage": 90, "memoryUsed": 900, "storageUsed": 9000 });
    heartbeat(&app, &said, late.clone())
        .await
        .expect(StatusCode::OK);
    assert_eq!(shown().await, before);

    // Nor does it replace what was measured since.
    app.platform.clock.advance(TimeDelta::seconds(10));
    devices::measure::collect::step(&app.devices).await.unwrap();
    let measured = shown().await;
    app.platform.clock.advance(TimeDelta::seconds(-2));
    heartbeat(&app, &said, late.clone())
        .await
        .expect(StatusCode::OK);
    assert_eq!(shown().await.0, measured.0);

    app.platform.clock.advance(TimeDelta::seconds(5));
    heartbeat(&app, &said, late).await.expect(StatusCode::OK);
    assert_eq!(shown().await.0, [json!(90.0), json!(900.0), json!(9000.0)]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_heartbeat_of_nothing_or_of_nonsense_is_refused_and_leaves_no_row(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let said = text(&device, "id");

    let nonsense = heartbeat(&app, &said, json!({ "cpuUsage": 101 })).await;
    nonsense.refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
    let unknown = heartbeat(&app, "none", json!({})).await;
    unknown.refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    alice.delete(&device).await.expect(StatusCode::OK);
    let deleted = heartbeat(&app, &said, json!({})).await;
    deleted.refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    app.run_operations().await;

    let rows: i64 = sqlx::query_scalar("select count(*) from devices.readings")
        .fetch_one(&app.platform.db)
        .await
        .unwrap();
    assert_eq!(rows, 0);
}
