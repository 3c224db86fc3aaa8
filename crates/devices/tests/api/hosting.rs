//! Replicas that host simulated devices, and die.

use std::time::Duration;

use coordination::PortSet;
use devices::operation::db::Claimed;
use devices::runtime::{Runtime, Spec};
use platform::lifecycle::Tasks;
use serde_json::json;
use sqlx::PgPool;

use crate::app::{TestApp, id, ports, until};
use crate::occupied::{answers_on_all, occupy, resting};
use crate::queue::{claim_one, freeze};

/// Lets the leases of all hosts end.
async fn silence(db: &PgPool) {
    sqlx::query("update devices.hosts set until = clock_timestamp() - interval '1 second'")
        .execute(db)
        .await
        .unwrap();
}

/// Has a replica listen for the device of an operation, and do no more of it.
async fn listen(app: &TestApp, claimed: &Claimed) {
    let mut conn = app.platform.db.acquire().await.unwrap();
    let device = devices::device::db::find(&mut conn, &claimed.device_id).await;
    drop(conn);
    let spec = Spec::of(&device.unwrap().unwrap(), claimed.fencing_token);
    app.devices.runtimes().simulated.start(&spec).await.unwrap();
}

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

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_replica_that_listens_without_a_lease_is_not_taken_for_another_program(db: PgPool) {
    // A start waits for a quarter of it.
    let lease = Duration::from_secs(60);
    let first = TestApp::with(db.clone(), |config| config.host_lease = lease).await;
    let second = first.another().await;
    let alice = first.user("alice", &[]).await;
    let created = alice.create(json!({ "name": "n" })).await;
    listen(&first, &claim_one(&db).await.unwrap()).await;
    freeze(&db).await;
    silence(&db).await;

    let waking = async {
        until("the second replica has tried to listen", async || {
            let hosts: i64 = sqlx::query_scalar("select count(*) from devices.hosts")
                .fetch_one(&db)
                .await
                .unwrap();
            hosts == 0
        })
        .await;
        first.host().await;
    };
    tokio::join!(second.run_operations(), waking);

    let device = alice.device(&created).await;
    assert_eq!(device["status"], "running", "{device}");
    assert_eq!(ports(&device), ports(&created));
    assert_eq!(resting(&first).await, []);
    assert!(answers_on_all(&first, ports(&device)).await);
    second.devices.runtimes().simulated.vanish().await;
    assert!(!first.answers(ports(&device).adb).await);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_host_that_cannot_listen_is_not_taken_for_one_that_does(db: PgPool) {
    let first = TestApp::new(db.clone()).await;
    let second = first.another().await;
    let alice = first.user("alice", &[]).await;
    alice.running().await;
    let created = alice.create(json!({ "name": "n" })).await;
    let _foreign = occupy(&first, ports(&created).webrtc).await;
    // The first replica claimed the device, could not listen, and could not give it back either.
    sqlx::query(
        "insert into devices.hosts (device_id, host, until)
        select $1, host, clock_timestamp() + interval '1 hour' from devices.hosts",
    )
    .bind(id(&created))
    .execute(&db)
    .await
    .unwrap();

    until("it runs", async || {
        second.run_operations().await;
        first.host().await;
        alice.status(&created).await == "running"
    })
    .await;

    let device = alice.device(&created).await;
    assert_ne!(ports(&device).webrtc, ports(&created).webrtc);
    assert!(answers_on_all(&first, ports(&device)).await);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_replica_that_listens_on_the_former_ports_of_a_device_changes_over(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    let alice = app.user("alice", &[]).await;
    let created = alice.create(json!({ "name": "n" })).await;
    listen(&app, &claim_one(&db).await.unwrap()).await;
    let (before, now) = (ports(&created), app.platform.clock.now());
    let others = PortSet {
        adb: before.adb + 1,
        webrtc: before.webrtc + 1,
        scrcpy: before.scrcpy + 1,
    };
    let mut conn = db.acquire().await.unwrap();
    devices::device::db::set_ports(&mut conn, &id(&created), others, now)
        .await
        .unwrap();
    freeze(&db).await;

    app.run_operations().await;

    assert_eq!(alice.status(&created).await, "running");
    assert!(answers_on_all(&app, others).await);
    assert!(!app.answers(before.adb).await);
}
