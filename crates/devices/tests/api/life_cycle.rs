//! Starting, stopping, restarting and deleting.

use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{TestApp, id, ports, text, until};

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_running_device_stops_and_starts_on_the_same_ports(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let adb = ports(&device).adb;

    let stopping = alice.act(&device, "stop").await.expect(StatusCode::OK);
    let again = alice.act(&device, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;
    assert_eq!(
        (&stopping.body["status"], &again.body["status"]),
        (&json!("stopping"), &json!("stopping"))
    );
    assert_eq!(alice.status(&device).await, "stopped");
    assert!(!app.answers(adb).await);
    assert_eq!(alice.act(&device, "stop").await.body["status"], "stopped");

    let starting = alice.act(&device, "start").await.expect(StatusCode::OK);
    assert_eq!(starting.body["status"], "starting");
    app.run_operations().await;
    assert_eq!(alice.act(&device, "start").await.body["status"], "running");
    assert!(app.answers(adb).await);
    assert_eq!(ports(&alice.device(&device).await), ports(&device));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_restart_shows_rebooting_and_the_finer_state(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;

    for action in ["restart", "reboot"] {
        let answer = alice.act(&device, action).await.expect(StatusCode::OK);
        assert_eq!(
            (&answer.body["status"], &answer.body["operation"]),
            (&json!("rebooting"), &json!("restarting"))
        );
        app.run_operations().await;
        assert_eq!(alice.status(&device).await, "running");
        assert!(app.answers(ports(&device).adb).await);
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_asked_during_an_operation_waits_for_its_turn(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(json!({ "name": "n" })).await;

    let stop = alice.act(&device, "stop");
    let (stopped, ()) = tokio::join!(stop, async {
        // The stop waits behind the creation, which nobody carries out until now.
        crate::app::until("the stop is queued", async || {
            let count: i64 = sqlx::query_scalar("select count(*) from devices.operations")
                .fetch_one(&app.platform.db)
                .await
                .unwrap();
            count == 2
        })
        .await;
        app.run_operations().await;
    });

    let stopped = stopped.expect(StatusCode::OK);
    assert!(["stopping", "stopped"].contains(&text(&stopped.body, "status").as_str()));
    app.run_operations().await;
    assert_eq!(alice.status(&device).await, "stopped");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn who_waits_in_vain_is_told_busy_and_nothing_happens_later(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(json!({ "name": "n" })).await;

    let (stop, restart) = tokio::join!(alice.act(&device, "stop"), alice.act(&device, "restart"));

    stop.refused(StatusCode::CONFLICT, "DEVICE_BUSY");
    let restart = restart.refused(StatusCode::CONFLICT, "DEVICE_BUSY");
    assert!(restart.headers.contains_key("retry-after"));
    app.run_operations().await;
    assert_eq!(alice.status(&device).await, "running");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_deleted_device_is_gone_at_once_and_its_ports_rest_before_they_come_again(db: PgPool) {
    let app = TestApp::with(db, |config| {
        config.port_quarantine = std::time::Duration::from_millis(1500);
    })
    .await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;

    let deleted = alice.delete(&device).await.expect(StatusCode::OK);

    assert!(deleted.body["message"].is_string());
    let path = format!("/devices/{}", id(&device));
    alice
        .get(&path)
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    alice
        .delete(&device)
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    for action in ["start", "stop", "restart"] {
        alice
            .act(&device, action)
            .await
            .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    }
    // The ports are held until the deletion is complete.
    assert_eq!(
        ports(&alice.create(json!({ "name": "second" })).await).adb,
        5556
    );
    app.run_operations().await;
    assert!(!app.answers(5555).await);
    let saga = format!("/devices/saga/{}", text(&deleted.body, "sagaId"));
    let saga = alice.get(&saga).await.expect(StatusCode::OK).body;
    assert_eq!(
        (&saga["status"], &saga["device"]),
        (&json!("completed"), &Value::Null)
    );
    let events = app.events().await;
    let told = events
        .iter()
        .find(|event| event["type"] == "device.deleted");
    assert_eq!(told.unwrap()["data"]["deviceId"], device["id"]);
    // Then they rest.
    assert_eq!(
        ports(&alice.create(json!({ "name": "third" })).await).adb,
        5557
    );
    let root = app.user("root", &["admin"]).await;
    let adb = root.get("/ports/stats").await.body["adb"].clone();
    assert_eq!(
        (&adb["resting"], &adb["available"]),
        (&json!(1), &json!(997))
    );
    until(
        "the rest is over by the clock of the database",
        async || {
            let adb = root.get("/ports/stats").await.body["adb"].clone();
            (&adb["resting"], &adb["available"]) == (&json!(0), &json!(998))
        },
    )
    .await;
    // Redis counts by its own clock.
    until("the port is leased again", async || {
        ports(&alice.create(json!({ "name": "next" })).await).adb == 5555
    })
    .await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn ports_that_rest_keep_resting_when_redis_forgets_them(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    alice.delete(&device).await.expect(StatusCode::OK);
    app.run_operations().await;

    app.lose_redis().await;

    assert_eq!(ports(&alice.create(json!({ "name": "n" })).await).adb, 5556);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_deletion_is_accepted_in_every_state_and_cancels_what_is_queued(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    for status in [
        "creating",
        "starting",
        "running",
        "stopping",
        "stopped",
        "rebooting",
        "error",
    ] {
        let device = alice.running().await;
        sqlx::query("update devices.devices set status = $2 where id = $1")
            .bind(id(&device))
            .bind(status)
            .execute(&app.platform.db)
            .await
            .unwrap();

        alice.delete(&device).await.expect(StatusCode::OK);
        app.run_operations().await;

        assert!(!app.answers(ports(&device).adb).await, "{status}");
    }
    let created = alice.create(json!({ "name": "n" })).await;
    alice.delete(&created).await.expect(StatusCode::OK);
    app.run_operations().await;

    let saga = format!("/devices/saga/{}", text(&created, "sagaId"));
    let saga = alice.get(&saga).await.body;
    assert_eq!(
        (&saga["status"], &saga["error"]),
        (&json!("failed"), &json!("the device was deleted"))
    );
    let stats = app
        .user("root", &["admin"])
        .await
        .get("/ports/stats")
        .await
        .body;
    assert_eq!(
        (&stats["adb"]["used"], &stats["adb"]["range"]),
        (&json!(0), &json!("5555-6554"))
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_in_error_takes_no_wishes_and_tells_why(db: PgPool) {
    let app = TestApp::with(db, |config| config.operation_attempts = 1).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    alice.act(&device, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;
    // Another program is quicker than the next start.
    let foreign = tokio::net::TcpListener::bind((app.config.node_address, 5555))
        .await
        .unwrap();

    alice.act(&device, "start").await.expect(StatusCode::OK);
    app.run_operations().await;

    let failed = alice.device(&device).await;
    assert_eq!(failed["status"], "error");
    assert_eq!(
        failed["error"],
        "port 5555 of the device is occupied by another program"
    );
    assert_eq!(failed["healthScore"], 0);
    for action in ["start", "stop", "restart", "reboot"] {
        alice
            .act(&device, action)
            .await
            .refused(StatusCode::CONFLICT, "CONFLICT");
    }
    let event = app.events().await.pop().unwrap();
    assert_eq!(
        (&event["data"]["status"], &event["data"]["previousStatus"]),
        (&json!("error"), &json!("starting"))
    );
    drop(foreign);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_operation_that_fails_is_tried_again(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    alice.act(&device, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;
    let foreign = tokio::net::TcpListener::bind((app.config.node_address, 5555))
        .await
        .unwrap();
    alice.act(&device, "start").await.expect(StatusCode::OK);
    app.run_operations().await;
    assert_eq!(alice.status(&device).await, "starting");
    drop(foreign);

    crate::app::until("the device runs", async || {
        app.run_operations().await;
        alice.status(&device).await == "running"
    })
    .await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_the_system_said_of_a_failure_is_not_for_clients(db: PgPool) {
    // No address of this machine.
    let elsewhere = |config: &mut devices::Config| {
        config.node_address = [192, 0, 2, 1].into();
        config.operation_attempts = 1;
    };
    let app = TestApp::with(db, elsewhere).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(json!({ "name": "n" })).await;

    app.run_operations().await;

    assert_eq!(
        alice.device(&device).await["error"],
        "could not listen on the ports of a device"
    );
}
