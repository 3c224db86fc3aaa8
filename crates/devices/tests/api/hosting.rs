//! Replicas that host simulated devices, and die.

use std::time::Duration;

use platform::lifecycle::Tasks;
use sqlx::PgPool;

use crate::app::{TestApp, ports, until};

async fn app(db: PgPool) -> TestApp {
    TestApp::with(db, |config| config.host_lease = Duration::from_millis(800)).await
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_of_a_replica_that_dies_is_taken_over(db: PgPool) {
    let first = app(db).await;
    let second = first.another().await;
    let alice = first.user("alice", &[]).await;
    let device = alice.running().await;
    let adb = ports(&device).adb;
    second.host().await;

    first.devices.runtimes().simulated.vanish().await;
    assert!(!first.answers(adb).await);

    until("another replica listens", async || {
        second.host().await;
        second.answers(adb).await
    })
    .await;
    assert_eq!(alice.status(&device).await, "running");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_replica_that_leaves_hands_its_devices_over_at_once(db: PgPool) {
    let first = TestApp::with(db, |config| config.host_lease = Duration::from_secs(600)).await;
    let second = first.another().await;
    let alice = first.user("alice", &[]).await;
    let adb = ports(&alice.running().await).adb;
    let tasks = Tasks::new();
    first.devices.spawn_jobs(&tasks).await.unwrap();

    let left = tasks.stop(Duration::from_secs(10)).await;

    assert!(left.is_empty(), "{left:?}");
    second.host().await;
    assert!(second.answers(adb).await);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_replica_that_was_frozen_lets_go_when_it_wakes(db: PgPool) {
    let frozen = app(db).await;
    let second = frozen.another().await;
    let alice = frozen.user("alice", &[]).await;
    let adb = ports(&alice.running().await).adb;
    until("the lease has run out", async || {
        sqlx::query_scalar("select bool_and(until < now()) from devices.hosts")
            .fetch_one(&frozen.platform.db)
            .await
            .unwrap()
    })
    .await;

    // It cannot listen yet: the frozen one has the ports in its hands.
    second.host().await;
    frozen.host().await;
    until("the other replica listens", async || {
        second.host().await;
        second.answers(adb).await
    })
    .await;

    // Now only one of them does.
    second.devices.runtimes().simulated.vanish().await;
    assert!(!second.answers(adb).await);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_stopped_device_is_not_taken_over(db: PgPool) {
    let first = app(db).await;
    let alice = first.user("alice", &[]).await;
    let device = alice.running().await;
    alice.act(&device, "stop").await;
    first.run_operations().await;

    let second = first.another().await;
    second.host().await;

    assert!(!second.answers(ports(&device).adb).await);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_jobs_of_a_replica_bring_a_device_to_run_by_themselves(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let tasks = Tasks::new();
    app.devices.spawn_jobs(&tasks).await.unwrap();

    let device = alice.create(serde_json::json!({ "name": "n" })).await;
    until("it runs", async || alice.status(&device).await == "running").await;
    alice.delete(&device).await;
    until("its ports are free", async || {
        !app.answers(ports(&device).adb).await
    })
    .await;

    let left = tasks.stop(Duration::from_secs(10)).await;
    assert!(left.is_empty(), "{left:?}");
}
