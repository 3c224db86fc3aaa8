//! Which node a device comes to, and that none is promised more than it has.

use std::collections::BTreeMap;

use devices::node::settings::parse;
use futures::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::TcpListener;

use crate::app::{TestApp, ports, text};
use crate::nodes::{beside, simulated};

/// A replica and two nodes, `a` and `b`, on addresses of their own; `more` is said of both.
async fn two_nodes(db: PgPool, more: Value) -> TestApp {
    let probe = TestApp::new(db.clone()).await;
    let list = json!([
        simulated("a", beside(&probe, 1), more.clone()),
        simulated("b", beside(&probe, 2), more)
    ]);
    sqlx::query("delete from devices.nodes")
        .execute(&db)
        .await
        .unwrap();
    let mut config = probe.config.clone();
    config.nodes = parse(&list.to_string()).unwrap();
    TestApp::on(&probe.platform, config).await
}

/// How much of each node the rows of the devices take, and how much the node says.
async fn used(db: &PgPool) -> Vec<(String, [i64; 3], [i64; 3])> {
    let rows: Vec<(String, i64, i64, i64, i64, i64, i64)> = sqlx::query_as(
        "select n.name, n.used_devices::bigint, n.used_cpu_millis, n.used_memory_mb, count(d.id),
            coalesce(sum(d.cpu_cores), 0) * 1000, coalesce(sum(d.memory_mb), 0)
        from devices.nodes n left join devices.devices d on d.node = n.name and d.released_at is null group by n.name order by n.name",
    )
    .fetch_all(db)
    .await
    .unwrap();
    let rows = rows.into_iter();
    rows.map(|(name, a, b, c, d, e, f)| (name, [a, b, c], [d, e, f]))
        .collect()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn creations_at_once_on_three_replicas_get_exactly_the_room_there_is(db: PgPool) {
    // Two nodes of 16 GB and 7 devices: four times 4 GB, then nothing more on each.
    let first = two_nodes(db.clone(), json!({ "memoryMB": 16_384, "devices": 7 })).await;
    let replicas = [first.clone(), first.another().await, first.another().await];
    let alice = first.user("alice", &[]).await;

    let asked = (0..24).map(|number| {
        let alice = replicas[number % 3].as_user(&alice);
        async move { alice.post("/devices", json!({ "name": "n" })).await }
    });
    let answers = join_all(asked).await;

    let (granted, refused): (Vec<_>, Vec<_>) = answers
        .into_iter()
        .partition(|answer| answer.status == StatusCode::CREATED);
    assert_eq!((granted.len(), refused.len()), (8, 16));
    for answer in refused {
        let answer = answer.refused(StatusCode::SERVICE_UNAVAILABLE, "NOT_READY");
        let message = text(&answer.body, "message");
        let reason = "memory (MB): 4096 asked, 0 of 16384 free";
        assert!(message.contains(&format!("2 nodes: {reason}")), "{message}");
        assert!(answer.headers.contains_key("retry-after"));
    }
    for (node, said, sum) in used(&db).await {
        assert_eq!((said, said[0]), (sum, 4), "{node}");
    }
    // What was refused left no device, no operation and no lease.
    let left: i64 = sqlx::query_scalar(
        "select (select count(*) from devices.devices) + (select count(*) from devices.operations)",
    )
    .fetch_one(&db)
    .await
    .unwrap();
    assert_eq!(left, 16);
    for node in ["a", "b"] {
        let leases = first.devices.ports().of_name(node).leases().await.unwrap();
        assert_eq!(leases.len(), 4, "{node}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_devices_use_is_counted_whichever_version_writes_them(db: PgPool) {
    let app = two_nodes(db.clone(), json!({ "memoryMB": 16_384, "devices": 7 })).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(json!({ "name": "n" })).await;
    let agrees = async || {
        let used = used(&db).await.into_iter();
        used.map(|(_, said, sum)| (said == sum).then_some(said[0]))
            .collect::<Option<Vec<_>>>()
    };

    // A version that knows of no counting makes a device, and one that counts by itself makes another.
    let copy = "insert into devices.devices (id, user_id, name, type, provider_type, runtime, status, wanted, cpu_cores, memory_mb,
            storage_mb, resolution, dpi, android_version, node, adb_port, webrtc_port, scrcpy_port, created_at, updated_at)
        select $1, user_id, name, type, provider_type, runtime, 'stopped', wanted, cpu_cores, memory_mb, storage_mb, resolution, dpi,
            android_version, node, adb_port + $2, webrtc_port + $2, scrcpy_port + $2, created_at, updated_at
        from devices.devices where id = $3";
    for (name, number) in [("old", 1), ("older", 2)] {
        let mut tx = db.begin().await.unwrap();
        let copy = sqlx::query(copy)
            .bind(name)
            .bind(number)
            .bind(text(&device, "id"));
        copy.execute(&mut *tx).await.unwrap();
        if name == "old" {
            let update = "update devices.nodes set used_devices = used_devices + 1, used_memory_mb = used_memory_mb + 4096";
            sqlx::query(update).execute(&mut *tx).await.unwrap();
        }
        tx.commit().await.unwrap();
    }
    assert_eq!(agrees().await, Some(vec![3, 0]));

    // Both ways of deletion.
    alice
        .delete(&json!({ "id": "older" }))
        .await
        .expect(StatusCode::OK);
    app.run_operations().await;
    sqlx::query("update devices.devices set status = 'deleted', deleted_at = now(), released_at = now() where id = 'old'")
        .execute(&db)
        .await
        .unwrap();
    assert_eq!(agrees().await, Some(vec![1, 0]));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_a_device_had_is_free_when_its_deletion_is_complete(db: PgPool) {
    let app = two_nodes(db.clone(), json!({ "devices": 1 })).await;
    let alice = app.user("alice", &[]).await;
    let devices = [
        alice.create(json!({ "name": "n" })).await,
        alice.create(json!({ "name": "n" })).await,
    ];

    alice.delete(&devices[0]).await.expect(StatusCode::OK);
    alice
        .post("/devices", json!({ "name": "n" }))
        .await
        .refused(StatusCode::SERVICE_UNAVAILABLE, "NOT_READY");
    app.run_operations().await;

    let again = alice.create(json!({ "name": "n" })).await;
    assert_eq!(again["adbHost"], devices[0]["adbHost"]);
    for (node, said, sum) in used(&db).await {
        assert_eq!(said, sum, "{node}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn devices_are_spread_over_nodes_and_packed_where_that_is_wished(db: PgPool) {
    let app = two_nodes(db, json!({ "memoryMB": 100_000 })).await;
    let alice = app.user("alice", &[]).await;
    let count = async |app: &TestApp| {
        let alice = app.as_user(&alice);
        let mut count = BTreeMap::new();
        for _ in 0..4 {
            let device = alice.create(json!({ "name": "n" })).await;
            *count.entry(text(&device, "adbHost")).or_insert(0) += 1;
        }
        count.into_values().collect::<Vec<_>>()
    };

    assert_eq!(count(&app).await, [2, 2]);

    let mut config = app.config.clone();
    config.placement = devices::node::placement::Policy::Pack;
    let packing = TestApp::on(&app.platform, config).await;
    assert_eq!(count(&packing).await, [4]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_node_without_free_ports_leaves_its_devices_to_the_next(db: PgPool) {
    let app = two_nodes(db, json!({})).await;
    let mut config = app.config.clone();
    config.ports.adb = 5555..=5555;
    let app = TestApp::on(&app.platform, config).await;
    let alice = app.user("alice", &[]).await;
    let _occupied = TcpListener::bind((beside(&app, 1), 5555)).await.unwrap();

    let device = alice.create(json!({ "name": "n" })).await;

    assert_eq!(device["adbHost"], beside(&app, 2).to_string());
    let refused = alice.post("/devices", json!({ "name": "n" })).await;
    let refused = refused.refused(StatusCode::SERVICE_UNAVAILABLE, "NOT_READY");
    let message = text(&refused.body, "message");
    let refusals = message.matches("no free adb port on the node:");
    assert_eq!(refusals.count(), 2, "{message}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn every_node_has_a_port_space_of_its_own(db: PgPool) {
    let app = two_nodes(db, json!({})).await;
    let alice = app.user("alice", &[]).await;

    let devices = [alice.running().await, alice.running().await];

    assert_ne!(devices[0]["adbHost"], devices[1]["adbHost"]);
    assert_eq!(ports(&devices[0]), ports(&devices[1]));
    for device in &devices {
        assert_eq!(device["status"], "running");
    }
    // Any replica keeps the leases of all nodes.
    app.lose_redis().await;
    app.devices.keep_ports().await.unwrap();
    for node in ["a", "b"] {
        let leases = app.devices.ports().of_name(node).leases().await.unwrap();
        assert_eq!(leases.len(), 1, "{node}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_that_grows_takes_room_of_its_node(db: PgPool) {
    let app = two_nodes(db.clone(), json!({ "memoryMB": 6_000 })).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(json!({ "name": "n" })).await;
    let path = format!("/devices/{}", text(&device, "id"));

    alice
        .send("PATCH", &path, json!({ "memoryMB": 6_001 }))
        .await
        .refused(StatusCode::SERVICE_UNAVAILABLE, "NOT_READY");
    assert_eq!(alice.device(&device).await["memoryMB"], 4_096);
    for memory in [6_000, 512] {
        let change = json!({ "memoryMB": memory, "cpuCores": 3 });
        let changed = alice.send("PATCH", &path, change).await;
        assert_eq!(changed.expect(StatusCode::OK).body["memoryMB"], memory);
    }

    for (node, said, sum) in used(&db).await {
        assert_eq!(said, sum, "{node}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn without_an_engine_that_answers_a_creation_says_so_and_leaves_nothing(db: PgPool) {
    let list =
        r#"[{"name": "a", "endpoint": "unix:///nowhere/docker.sock", "address": "127.0.0.1"}]"#;
    let app = TestApp::with(db.clone(), |config| config.nodes = parse(list).unwrap()).await;
    let alice = app.user("alice", &[]).await;

    let refused = alice.post("/devices", json!({ "name": "n" })).await;

    let refused = refused.refused(StatusCode::SERVICE_UNAVAILABLE, "NOT_READY");
    let message = text(&refused.body, "message");
    assert!(
        message.contains("the engine of the node does not answer"),
        "{message}"
    );
    for (node, said, sum) in used(&db).await {
        assert_eq!((said, sum), ([0; 3], [0; 3]), "{node}");
    }
    let ports = app.devices.ports().of_name("a");
    ports.rebuild().await.unwrap();
    assert!(ports.leases().await.unwrap().is_empty());
}
