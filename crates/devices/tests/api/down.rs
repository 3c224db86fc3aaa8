//! Engines that die, freeze and come back; skipped where no engines are wanted.

use std::time::Duration;

use devices::config::Failover;
use devices::node::health::tend;
use devices::node::settings::parse;
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use testkit::Engine;

use crate::app::{TestApp, id, ports, text, until};
use crate::docker::{engine, greeting};
use crate::nodes::beside;

/// A replica with a node for each engine, `a`, `b` …, on addresses of their own.
pub async fn app(db: PgPool, engines: &[&Engine], failover: Failover) -> TestApp {
    let probe = TestApp::new(db.clone()).await;
    sqlx::query("delete from devices.nodes")
        .execute(&db)
        .await
        .unwrap();
    let nodes = engines.iter().zip([("a", 1), ("b", 2), ("c", 3)]);
    let list: Vec<Value> = nodes
        .map(|(engine, (name, number))| {
            let address = beside(&probe, number).to_string();
            json!({ "name": name, "endpoint": engine.endpoint(), "address": address, "devices": 10 })
        })
        .collect();
    let mut config = probe.config.clone();
    config.nodes = parse(&json!(list).to_string()).unwrap();
    config.image = testkit::IMAGE.into();
    config.failover = failover;
    config.snapshot_copies = 1 + i64::from(failover == Failover::Snapshot);
    config.node_down_after = Duration::from_millis(500);
    TestApp::on(&probe.platform, config).await
}

pub fn small() -> Value {
    json!({ "name": "n", "cpuCores": 1, "memoryMB": 512 })
}

/// Waits until a node is in a status, tending the nodes meanwhile.
pub async fn until_node(app: &TestApp, node: &str, status: &str) {
    let admin = app.user("root", &["admin"]).await;
    until(&format!("node {node} is {status}"), async || {
        tend(&app.devices).await.unwrap();
        let node = admin.get(&format!("/nodes/{node}")).await;
        text(&node.expect(StatusCode::OK).body, "status") == status
    })
    .await;
}

/// The events that tell of a status.
async fn told(app: &TestApp, status: &str) -> usize {
    let events = app.events().await;
    let told = events
        .iter()
        .filter(|event| event["data"]["status"] == status);
    told.count()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_an_engine_had_is_found_again_when_it_is_back(db: PgPool) {
    let Some(engine) = engine() else {
        return;
    };
    let app = app(db.clone(), &[&engine], Failover::None).await;
    let other = app.another().await;
    let alice = app.user("alice", &[]).await;
    let (running, stopped, deleted) = (
        alice.create(small()).await,
        alice.create(small()).await,
        alice.create(small()).await,
    );
    app.run_operations().await;
    alice.act(&stopped, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;
    let created = alice.create(small()).await;

    engine.kill();
    let refused = alice.post("/devices", small()).await;
    let refused = refused.refused(StatusCode::SERVICE_UNAVAILABLE, "NOT_READY");
    let message = text(&refused.body, "message");
    assert!(
        message.contains("the engine of the node does not answer"),
        "{message}"
    );
    // Two replicas see it at the same time.
    tokio::join!(
        until_node(&app, "a", "down"),
        until_node(&other, "a", "down")
    );

    for device in [&running, &created, &deleted] {
        until("the device is in error", async || {
            tend(&app.devices).await.unwrap();
            let device = alice.device(device).await;
            device["status"] == "error" && device["error"] == "node a is down"
        })
        .await;
    }
    assert_eq!(told(&app, "error").await, 3);
    assert_eq!(alice.status(&stopped).await, "stopped");
    alice
        .act(&stopped, "start")
        .await
        .refused(StatusCode::SERVICE_UNAVAILABLE, "NOT_READY");
    let refused = alice.post("/devices", small()).await;
    let message = text(&refused.body, "message");
    assert!(message.ends_with("1 node: down"), "{message}");
    alice.delete(&deleted).await.expect(StatusCode::OK);
    app.run_operations().await;

    engine.start_again().unwrap();
    until_node(&app, "a", "ready").await;
    until("everything is as it shall be", async || {
        tend(&app.devices).await.unwrap();
        app.run_operations().await;
        alice.status(&running).await == "running" && alice.status(&created).await == "running"
    })
    .await;

    let address = app.config.nodes[0].bind.unwrap_or(beside(&app, 1));
    for device in [&running, &created] {
        assert_eq!(greeting(address, ports(device).adb).await, "port 5555");
    }
    assert_eq!(alice.status(&stopped).await, "stopped");
    until("the deletion is complete", async || {
        app.run_operations().await;
        let left = engine.docker(&["ps", "-aq"]).unwrap();
        left.lines().count() == 3
    })
    .await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn with_failover_a_device_runs_elsewhere_and_never_twice(db: PgPool) {
    let (Some(first), Some(second)) = (engine(), engine()) else {
        return;
    };
    let app = app(db.clone(), &[&first, &second], Failover::Restart).await;
    let admin = app.user("root", &["admin"]).await;
    let alice = app.user("alice", &[]).await;
    // Both come to the first node.
    admin
        .post("/nodes/b/cordon", json!({}))
        .await
        .expect(StatusCode::OK);
    let (running, stopped) = (alice.create(small()).await, alice.create(small()).await);
    app.run_operations().await;
    alice.act(&stopped, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;
    admin
        .post("/nodes/b/uncordon", json!({}))
        .await
        .expect(StatusCode::OK);

    let snapshots = format!("/devices/{}/snapshots", id(&running));
    let taken = alice.post(&snapshots, json!({ "name": "s" })).await;
    let taken = text(&taken.expect(StatusCode::CREATED).body, "id");
    app.run_operations().await;

    first.freeze();
    until_node(&app, "a", "down").await;
    until("the device runs elsewhere", async || {
        tend(&app.devices).await.unwrap();
        app.run_operations().await;
        alice.status(&running).await == "running"
    })
    .await;

    let moved = alice.device(&running).await;
    assert_eq!(moved["adbHost"], beside(&app, 2).to_string());
    assert_eq!(
        greeting(beside(&app, 2), ports(&moved).adb).await,
        "port 5555"
    );
    assert_eq!(
        alice.device(&stopped).await["adbHost"],
        beside(&app, 1).to_string()
    );
    // What was kept is kept on the node that is down.
    let snapshot = alice.get(&format!("/snapshots/{taken}")).await;
    assert_eq!(snapshot.expect(StatusCode::OK).body["status"], "error");
    let restored = alice
        .post(&format!("/snapshots/{taken}/restore"), Value::Null)
        .await;
    restored.refused(StatusCode::CONFLICT, "CONFLICT");
    let used = async |node: &str| {
        let node = admin
            .get(&format!("/nodes/{node}"))
            .await
            .expect(StatusCode::OK);
        node.body["devices"].clone()
    };
    assert_eq!((used("a").await, used("b").await), (json!(1), json!(1)));

    // The node that was cut off only, with the container still in it: nothing comes to it before that is gone.
    first.thaw();
    until_node(&app, "a", "ready").await;
    let left = first
        .docker(&["ps", "-a", "--format", "{{.Label \"cloudphone.device\"}}"])
        .unwrap();
    assert_eq!(left.trim(), id(&stopped).to_string());
    alice.act(&stopped, "start").await.expect(StatusCode::OK);
    app.run_operations().await;
    assert_eq!(alice.status(&stopped).await, "running");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_node_boots_no_more_devices_at_a_time_than_it_may(db: PgPool) {
    let Some(engine) = engine() else {
        return;
    };
    let app = app(db.clone(), &[&engine], Failover::None).await;
    let alice = app.user("alice", &[]).await;
    for _ in 0..6 {
        alice.create(small()).await;
    }
    let engines = &app.devices.runtimes().engines;
    // Without a setting it may as many as the machine of its engine, which is this one, has processors.
    let processors = std::thread::available_parallelism().unwrap().get().max(2);
    assert_eq!(
        engines.boots(None),
        [("a".to_owned(), i64::try_from(processors).unwrap())]
    );
    let claims = (0..8).map(|_| {
        let (db, of_nodes) = (db.clone(), engines.boots(Some(3)));
        async move {
            let mut conn = db.acquire().await.unwrap();
            let lease = Duration::from_secs(600);
            let boots = devices::operation::db::Boots { of_nodes, here: 16 };
            let claimed = devices::operation::db::claim(&mut conn, boots, false, lease, 2).await;
            claimed.unwrap().len()
        }
    });

    let claimed: usize = futures::future::join_all(claims).await.into_iter().sum();

    assert_eq!(claimed, 3);
}
