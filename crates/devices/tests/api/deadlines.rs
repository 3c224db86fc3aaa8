//! Operations that take too long, whoever works on them.

use std::time::Duration;

use devices::operation::db::Claimed;
use devices::operation::{overdue, steps};
use http::StatusCode;
use serde_json::json;
use sqlx::PgPool;

use crate::app::{TestApp, id, text};
use crate::queue::{claim_one, freeze};

/// Lets so many seconds pass for the operations.
async fn age(db: &PgPool, seconds: i32) {
    let update = "update devices.operations set begun_at = begun_at - make_interval(secs => $1), due_at = due_at - make_interval(secs => $1)";
    sqlx::query(update)
        .bind(f64::from(seconds))
        .execute(db)
        .await
        .unwrap();
}

async fn app(db: PgPool) -> TestApp {
    TestApp::with(db, |config| {
        config.operation_deadline = Duration::from_secs(100);
    })
    .await
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_whose_workers_die_one_after_the_other_ends_in_error(db: PgPool) {
    let app = app(db.clone()).await;
    let alice = app.user("alice", &[]).await;
    let created = alice.create(json!({ "name": "n" })).await;
    // Each of them dies as soon as it has the operation.
    for _ in 0..3 {
        claim_one(&db).await.unwrap();
        freeze(&db).await;
        age(&db, 30).await;
        overdue::end(&app.devices).await.unwrap();
        assert_eq!(alice.status(&created).await, "creating");
    }
    let last = claim_one(&db).await.unwrap();
    age(&db, 11).await;

    overdue::end(&app.devices).await.unwrap();

    let device = alice.device(&created).await;
    assert_eq!(device["status"], "error");
    assert_eq!(device["error"], "the operation took longer than 100s");
    let saga = format!("/devices/saga/{}", text(&created, "sagaId"));
    assert_eq!(alice.get(&saga).await.body["status"], "failed");
    // A worker that was only slow changes nothing any more.
    let late = devices::operation::steps::carry_out(&app.devices, &last).await;
    assert!(late.is_err());
    app.run_operations().await;
    assert_eq!(alice.status(&created).await, "error");
    let errors = app.events().await;
    let errors = errors
        .iter()
        .filter(|event| event["data"]["status"] == "error");
    assert_eq!(errors.count(), 1);
    // It can be deleted, and a deletion has no deadline.
    alice.delete(&created).await.expect(StatusCode::OK);
    age(&db, 10_000).await;
    overdue::end(&app.devices).await.unwrap();
    app.run_operations().await;
    let left: i64 = sqlx::query_scalar("select used_devices::bigint from devices.nodes")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(left, 0);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_nobody_claims_waits_ten_deadlines(db: PgPool) {
    let app = app(db.clone()).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(json!({ "name": "n" })).await;

    for (seconds, status) in [(990, "creating"), (20, "error")] {
        age(&db, seconds).await;
        overdue::end(&app.devices).await.unwrap();
        assert_eq!(alice.status(&device).await, status);
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_image_on_its_way_keeps_its_time_when_the_restore_is_tried_again(db: PgPool) {
    let app = app(db.clone()).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let path = format!("/devices/{}/snapshots", id(&device));
    let taken = alice.post(&path, json!({ "name": "s" })).await;
    let taken = taken.expect(StatusCode::CREATED).body;
    app.run_operations().await;
    // Of an engine that is not there, from here on.
    let update = sqlx::query("update devices.devices set runtime = 'docker'");
    update.execute(&db).await.unwrap();
    let path = format!("/snapshots/{}/restore", text(&taken, "id"));
    alice.post(&path, json!({})).await.expect(StatusCode::OK);
    let again: Claimed = sqlx::query_as(
        "update devices.operations set state = 'running', step = $1, attempts = 2, begun_at = now(),
            fencing_token = nextval('devices.fencing_tokens'), lease_until = now() + interval '1 hour'
        where kind = 'restore' returning id, device_id, kind, fencing_token, attempts, snapshot_id",
    )
    .bind(overdue::BRINGING)
    .fetch_one(&db)
    .await
    .unwrap();
    age(&db, 200).await;

    // It gets as far as to the engine.
    assert!(steps::carry_out(&app.devices, &again).await.is_err());

    overdue::end(&app.devices).await.unwrap();
    assert_eq!(alice.status(&device).await, "rebooting");
    age(&db, 3600).await;
    overdue::end(&app.devices).await.unwrap();
    assert_eq!(alice.status(&device).await, "error");
}
