//! Nodes that are drained: their devices run elsewhere with what was on them, and nothing stays behind, whoever dies. With
//! engines where they are wanted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use devices::config::Failover;
use devices::device::{ProviderType, RuntimeKind};
use devices::moving::jobs::look;
use devices::node::Labels;
use devices::node::health::tend;
use devices::node::placement::Demand;
use devices::node::reservation::{begin_transfer, discount, hold, hold_disk, redeem};
use devices::node::settings::parse;
use devices::operation::db::Claimed;
use devices::snapshot::jobs::sweep;
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use testkit::Engine;

use crate::adb::{install, packages};
use crate::app::{TestApp, User, id, ports, text, until};
use crate::docker::{engine, greeting, has, kept, put};
use crate::down::until_node;
use crate::nodes::{beside, simulated};
use crate::passage::Passage;

/// A replica with nodes for simulated devices, `a`, which takes all of them, and `b`, which is closed.
pub async fn simulated_nodes(db: PgPool, parallel_moves: i64) -> TestApp {
    let probe = TestApp::new(db).await;
    let nodes = json!([
        simulated("a", beside(&probe, 1), json!({})),
        simulated("b", beside(&probe, 2), json!({}))
    ]);
    with_nodes(probe, nodes, parallel_moves).await
}

/// The same with engines, the second one reached at this endpoint.
async fn engines(db: PgPool, a: &Engine, b: String) -> TestApp {
    let probe = TestApp::new(db).await;
    let node = |name: &str, endpoint: String, number| {
        let address = beside(&probe, number).to_string();
        json!({ "name": name, "endpoint": endpoint, "address": address, "devices": 10 })
    };
    let nodes = json!([node("a", a.endpoint(), 1), node("b", b, 2)]);
    with_nodes(probe, nodes, 2).await
}

/// The same with nodes that are soon down, and with what becomes of their devices.
async fn failing(db: PgPool, a: &Engine, b: &Engine, failover: Failover) -> TestApp {
    let app = engines(db, a, b.endpoint()).await;
    let mut config = app.config.clone();
    config.failover = failover;
    config.node_down_after = Duration::from_millis(500);
    TestApp::on(&app.platform, config).await
}

async fn with_nodes(probe: TestApp, nodes: Value, parallel_moves: i64) -> TestApp {
    sqlx::query("delete from devices.nodes")
        .execute(&probe.platform.db)
        .await
        .unwrap();
    let mut config = probe.config.clone();
    config.nodes = parse(&nodes.to_string()).unwrap();
    config.image = testkit::IMAGE.into();
    config.parallel_moves = parallel_moves;
    config.operation_lease = Duration::from_secs(3);
    let app = TestApp::on(&probe.platform, config).await;
    act(&app, "b", "cordon").await;
    app
}

async fn act(app: &TestApp, node: &str, action: &str) {
    let admin = app.user("root", &["admin"]).await;
    let path = format!("/nodes/{node}/{action}");
    admin.post(&path, json!({})).await.expect(StatusCode::OK);
}

/// Has the devices of `a` leave it for `b`.
async fn drain(app: &TestApp) {
    act(app, "b", "uncordon").await;
    act(app, "a", "drain").await;
    look(&app.devices).await.unwrap();
}

async fn node(app: &TestApp, name: &str) -> Value {
    let admin = app.user("root", &["admin"]).await;
    let node = admin.get(&format!("/nodes/{name}")).await;
    node.expect(StatusCode::OK).body
}

/// Works until nothing is to be done any more on both nodes, and nothing is left behind.
async fn settle(app: &TestApp) {
    until("nothing is left to be done", async || {
        tend(&app.devices).await.unwrap();
        look(&app.devices).await.unwrap();
        app.run_operations().await;
        let left: i64 = sqlx::query_scalar(
            "select (select count(*) from devices.leftovers) + (select count(*) from devices.moves where settled_at is null)
                + (select count(*) from devices.operations where state in ('queued', 'running'))",
        )
        .fetch_one(&app.platform.db)
        .await
        .unwrap();
        left == 0
    })
    .await;
}

async fn events(app: &TestApp, kind: &str) -> Vec<Value> {
    let mut events = app.events().await;
    events.retain(|event| event["type"] == kind);
    events
}

/// The devices that have ports of a node in Redis.
async fn leased(app: &TestApp, node: &str) -> Vec<String> {
    let leases = app.devices.ports().of_name(node).leases().await.unwrap();
    leases.into_iter().map(|set| set.owner).collect()
}

/// That what Redis leases on a node, and no more, is what its rows hold.
async fn ports_agree(app: &TestApp) {
    for node in ["a", "b"] {
        let rows: Vec<(String, i32)> = sqlx::query_as(
            "select id, adb_port from devices.devices where node = $1 and released_at is null order by adb_port",
        )
        .bind(node)
        .fetch_all(&app.platform.db)
        .await
        .unwrap();
        let leases = app.devices.ports().of_name(node).leases().await;
        // A node that nothing came to has no index.
        let mut leases: Vec<(String, i32)> = leases
            .unwrap_or_default()
            .into_iter()
            .map(|set| (set.owner, i32::from(set.ports.adb)))
            .collect();
        leases.sort_by_key(|(_, port)| *port);
        assert_eq!(leases, rows, "node {node}");
    }
}

fn small() -> Value {
    json!({ "name": "n", "cpuCores": 1, "memoryMB": 512 })
}

fn containers(engine: &Engine) -> Vec<String> {
    let listed = engine
        .docker(&["ps", "-a", "--format", "{{.Names}}"])
        .unwrap();
    listed.lines().map(str::to_owned).collect()
}

/// Puts more into a container than fits on the way between two engines.
fn fill(engine: &Engine, container: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large");
    std::fs::write(&path, vec![7; 8 * 1024 * 1024]).unwrap();
    let (from, to) = (path.display().to_string(), format!("{container}:/large"));
    engine.docker(&["cp", &from, &to]).unwrap();
}

async fn snapshot(app: &TestApp, user: &User, device: &Value) -> String {
    let path = format!("/devices/{}/snapshots", id(device));
    let taken = user.post(&path, json!({ "name": "s" })).await;
    app.run_operations().await;
    text(&taken.expect(StatusCode::CREATED).body, "id")
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_drained_node_gives_its_devices_away_as_they_are(db: PgPool) {
    let app = simulated_nodes(db, 2).await;
    let alice = app.user("alice", &[]).await;
    let (running, stopped) = (alice.running().await, alice.running().await);
    install(beside(&app, 1), ports(&running).adb, "com.example.app").await;
    alice.act(&stopped, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;

    drain(&app).await;
    let (moving, shown) = (alice.device(&running).await, node(&app, "a").await);
    settle(&app).await;

    assert_eq!(
        (&moving["status"], &moving["operation"]),
        (&json!("running"), &json!("moving"))
    );
    assert_eq!(
        shown["drain"],
        json!({ "left": 2, "moving": 2, "failed": [] })
    );
    let moved = alice.device(&running).await;
    assert_eq!(
        (&moved["status"], text(&moved, "adbHost")),
        (&json!("running"), beside(&app, 2).to_string())
    );
    assert_eq!(
        packages(beside(&app, 2), ports(&moved).adb).await,
        ["com.example.app"]
    );
    let resting = alice.device(&stopped).await;
    assert_eq!(
        (&resting["status"], text(&resting, "adbHost")),
        (&json!("stopped"), beside(&app, 2).to_string())
    );
    ports_agree(&app).await;
    let told = events(&app, "device.moved").await;
    assert_eq!(told.len(), 2);
    assert_eq!(
        (&told[0]["data"]["fromNode"], &told[0]["data"]["toNode"]),
        (&json!("a"), &json!("b"))
    );
    assert_eq!(
        node(&app, "a").await["drain"],
        json!({ "left": 0, "moving": 0, "failed": [] })
    );
    let admin = app.user("root", &["admin"]).await;
    let removed = admin.send("DELETE", "/nodes/a", Value::Null).await;
    removed.expect(StatusCode::OK);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn no_more_devices_leave_a_node_at_a_time_than_may(db: PgPool) {
    let app = simulated_nodes(db, 2).await;
    let alice = app.user("alice", &[]).await;
    for _ in 0..5 {
        alice.running().await;
    }
    act(&app, "b", "uncordon").await;
    act(&app, "a", "drain").await;

    let looks = (0..6).map(|_| look(&app.devices));
    futures::future::try_join_all(looks).await.unwrap();

    assert_eq!(
        node(&app, "a").await["drain"],
        json!({ "left": 5, "moving": 2, "failed": [] })
    );
    settle(&app).await;
    until("all have gone", async || {
        settle(&app).await;
        node(&app, "a").await["devices"] == 0
    })
    .await;
    ports_agree(&app).await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_that_no_node_takes_goes_on_where_it_is_and_it_is_told_why(db: PgPool) {
    let app = simulated_nodes(db, 2).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    act(&app, "a", "drain").await;

    settle(&app).await;

    let stays = alice.device(&device).await;
    assert_eq!(
        (&stays["status"], text(&stays, "adbHost")),
        (&json!("running"), beside(&app, 1).to_string())
    );
    let drain = node(&app, "a").await["drain"].clone();
    let reason = "no node takes the device: a: is being drained; b: cordoned";
    let failed = json!([{ "deviceId": id(&device), "attempts": 1, "reason": reason }]);
    assert_eq!(drain, json!({ "left": 1, "moving": 0, "failed": failed }));
    let told = events(&app, "device.move_failed").await;
    assert_eq!(told[0]["data"]["reason"], reason);

    // Opened and drained again, it is tried again at once.
    act(&app, "a", "uncordon").await;
    act(&app, "b", "uncordon").await;
    act(&app, "a", "drain").await;
    settle(&app).await;
    assert_eq!(node(&app, "b").await["devices"], 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_move_that_fails_again_and_again_is_told_once(db: PgPool) {
    let app = simulated_nodes(db, 2).await;
    let alice = app.user("alice", &[]).await;
    alice.running().await;
    act(&app, "a", "drain").await;

    for _ in 0..3 {
        settle(&app).await;
        sql(
            &app,
            "update devices.moves set settled_at = settled_at - interval '1 hour'",
        )
        .await;
    }

    assert!(
        node(&app, "a").await["drain"]["failed"][0]["attempts"]
            .as_i64()
            .unwrap()
            >= 3
    );
    assert_eq!(events(&app, "device.move_failed").await.len(), 1);
    act(&app, "a", "uncordon").await;
    act(&app, "a", "drain").await;
    settle(&app).await;
    assert_eq!(events(&app, "device.move_failed").await.len(), 2);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_of_too_many_layers_is_not_stopped_for_a_move_in_vain(db: PgPool) {
    let (Some(first), Some(second)) = (engine(), engine()) else {
        return;
    };
    for number in 0..64 {
        let create = ["create", "--name", "layers", testkit::IMAGE];
        first.docker(&create).unwrap();
        put(&first, "layers", &format!("layer-{number}"));
        first.docker(&["commit", "layers", testkit::IMAGE]).unwrap();
        first.docker(&["rm", "layers"]).unwrap();
    }
    let app = engines(db, &first, second.endpoint()).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(small()).await;
    app.run_operations().await;
    assert_eq!(alice.status(&device).await, "running");
    let before = events(&app, "device.status_changed").await.len();

    drain(&app).await;
    app.run_operations().await;

    assert_eq!(alice.status(&device).await, "running");
    assert_eq!(events(&app, "device.status_changed").await.len(), before);
    let failed = node(&app, "a").await["drain"]["failed"].clone();
    let reason = text(&failed[0], "reason");
    assert!(reason.contains("layers"), "{failed}");
    assert_eq!((kept(&first), kept(&second)), (vec![], vec![]));
    // The ports that were leased for it are free again.
    until("nothing is leased there", async || {
        leased(&app, "b").await.is_empty()
    })
    .await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_node_without_free_ports_is_not_chosen_and_no_device_is_stopped_for_it(db: PgPool) {
    let mut app = simulated_nodes(db, 1).await;
    let mut config = app.config.clone();
    config.ports.adb = 5555..=5555;
    app = TestApp::on(&app.platform, config).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    act(&app, "b", "uncordon").await;
    act(&app, "a", "cordon").await;
    alice.running().await;
    let before = events(&app, "device.status_changed").await.len();

    drain(&app).await;
    app.run_operations().await;

    assert_eq!(alice.status(&device).await, "running");
    assert_eq!(events(&app, "device.status_changed").await.len(), before);
    let failed = node(&app, "a").await["drain"]["failed"].clone();
    let reason = text(&failed[0], "reason");
    assert!(reason.contains("b: no free adb port"), "{failed}");
    assert_eq!(node(&app, "b").await["used"]["devices"], 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn room_on_the_other_node_is_promised_before_anything_is_brought(db: PgPool) {
    let (Some(first), Some(second)) = (engine(), engine()) else {
        return;
    };
    let passage = Passage::closed(&second);
    let app = engines(db, &first, passage.endpoint()).await;
    let alice = app.user("alice", &[]).await;
    sql(
        &app,
        "update devices.nodes set most_devices = 1 where name = 'b'",
    )
    .await;

    let (device, _) = held_up(&app, &alice, &first, &passage).await;

    // Its image is on its way, and nobody else gets the one place; the ports of a worker that is gone are free again.
    assert_eq!(node(&app, "b").await["used"]["devices"], 1);
    until("nothing is leased there", async || {
        leased(&app, "b").await.is_empty()
    })
    .await;
    act(&app, "a", "cordon").await;
    let refused = alice.post("/devices", small()).await;
    refused.refused(StatusCode::SERVICE_UNAVAILABLE, "NOT_READY");
    act(&app, "a", "drain").await;
    passage.open();
    settle(&app.another().await).await;
    let moved = alice.device(&device).await;
    assert_eq!(text(&moved, "adbHost"), beside(&app, 2).to_string());
    assert_eq!(node(&app, "b").await["used"]["devices"], 1);
    assert_eq!(node(&app, "a").await["used"]["devices"], 0);
    assert!(is(&app, "select count(*) = 0 from devices.reservations").await);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_last_place_is_promised_once_and_images_come_a_few_at_a_time(db: PgPool) {
    let app = simulated_nodes(db, 1).await;
    let other = app.another().await;
    let alice = app.user("alice", &[]).await;
    let mut claims = Vec::new();
    for _ in 0..4 {
        let device = id(&alice.create(small()).await);
        claims.push(
            sqlx::query_as::<_, Claimed>(
                "update devices.operations set state = 'running', fencing_token = nextval('devices.fencing_tokens'), attempts = 1,
                    lease_until = now() + interval '1 hour'
                where device_id = $1 returning id, device_id, kind, fencing_token, attempts, snapshot_id",
            )
            .bind(device)
            .fetch_one(&app.platform.db)
            .await
            .unwrap(),
        );
    }
    act(&app, "b", "uncordon").await;
    sql(
        &app,
        "update devices.nodes set most_devices = 2 where name = 'b'",
    )
    .await;
    let demand = Demand::new(ProviderType::Simulated, (1, 512), Labels::new());
    let place = ("b", RuntimeKind::Simulated);

    // Two places, four that want one, at two replicas at once; who asks again has what he had.
    let asking = claims.iter().enumerate().map(|(number, claimed)| {
        let (db, demand) = (&[&app, &other][number % 2].platform.db, &demand);
        async move {
            let mut held = Vec::new();
            for _ in 0..2 {
                let mut tx = db.begin().await.unwrap();
                held.push(hold(&mut tx, claimed, place, demand).await.unwrap());
                tx.commit().await.unwrap();
            }
            assert_eq!(held[0], held[1]);
            held[0]
        }
    });
    let held = futures::future::join_all(asking).await;
    let mut lucky = claims.iter().zip(&held).filter(|(_, held)| **held);
    let (Some((one, _)), Some((two, _)), None) = (lucky.next(), lucky.next(), lucky.next()) else {
        panic!("two of four have a place: {held:?}");
    };
    assert_eq!(node(&app, "b").await["used"]["devices"], 2);
    let mut conn = app.platform.db.acquire().await.unwrap();
    let mut nodes = devices::node::db::all(&mut conn).await.unwrap();
    discount(&mut conn, one, &mut nodes).await.unwrap();
    let left = nodes.iter().find(|node| node.name == "b").unwrap();
    assert_eq!((left.used_devices, left.used_memory_mb), (1, 512));

    assert!(begin_transfer(&mut conn, one, "b", 1).await.unwrap());
    assert!(begin_transfer(&mut conn, one, "b", 1).await.unwrap());
    assert!(!begin_transfer(&mut conn, two, "b", 1).await.unwrap());
    // Who has died brings nothing any more.
    sqlx::query(
        "update devices.operations set lease_until = now() - interval '1 second' where id = $1",
    )
    .bind(one.id)
    .execute(&mut *conn)
    .await
    .unwrap();
    assert!(begin_transfer(&mut conn, two, "b", 1).await.unwrap());
    // Nor does a worker who wakes when another one has the operation.
    let late = Claimed {
        fencing_token: 1,
        ..two.clone()
    };
    assert!(!begin_transfer(&mut conn, &late, "b", 9).await.unwrap());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn two_promises_that_change_their_nodes_wait_for_each_other_and_never_both(db: PgPool) {
    let app = simulated_nodes(db, 1).await;
    let alice = app.user("alice", &[]).await;
    for _ in 0..2 {
        alice.create(small()).await;
    }
    act(&app, "b", "uncordon").await;
    let claims: Vec<Claimed> = sqlx::query_as(
        "update devices.operations set state = 'running', fencing_token = nextval('devices.fencing_tokens'), attempts = 1,
            lease_until = now() + interval '1 hour'
        returning id, device_id, kind, fencing_token, attempts, snapshot_id",
    )
    .fetch_all(&app.platform.db)
    .await
    .unwrap();
    let demand = Demand::new(ProviderType::Simulated, (1, 512), Labels::new());
    let kind = RuntimeKind::Simulated;
    for (claimed, node) in claims.iter().zip(["a", "b"]) {
        let mut tx = app.platform.db.begin().await.unwrap();
        assert!(hold(&mut tx, claimed, (node, kind), &demand).await.unwrap());
        tx.commit().await.unwrap();
    }

    let mut first = app.platform.db.begin().await.unwrap();
    let held = hold(&mut first, &claims[0], ("b", kind), &demand).await;
    assert!(held.unwrap());
    let is_held = AtomicBool::new(false);
    let other = async {
        let mut second = app.platform.db.begin().await.unwrap();
        let held = hold(&mut second, &claims[1], ("a", kind), &demand).await;
        is_held.store(true, Ordering::SeqCst);
        assert!(held.unwrap());
        second.commit().await
    };
    let one = async {
        until("the other one waits, or does not", async || {
            let waiting: i64 = sqlx::query_scalar(
                "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
            )
            .fetch_one(&app.platform.db)
            .await
            .unwrap();
            waiting > 0 || is_held.load(Ordering::SeqCst)
        })
        .await;
        first.commit().await
    };
    let (one, other) = tokio::join!(one, other);

    one.unwrap();
    other.unwrap();
    for name in ["a", "b"] {
        // Of each node one promise, beside the two devices that are on the first.
        let used = if name == "a" { 3 } else { 1 };
        assert_eq!(node(&app, name).await["used"]["devices"], used);
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_disk_of_a_node_is_promised_to_images_that_are_on_their_way(db: PgPool) {
    let app = simulated_nodes(db, 1).await;
    let (alice, admin) = (
        app.user("alice", &[]).await,
        app.user("root", &["admin"]).await,
    );
    let there = alice.running().await;
    sql(&app, "update devices.devices set node = 'b'").await;
    for _ in 0..2 {
        alice.create(small()).await;
    }
    let claims: Vec<Claimed> = sqlx::query_as(
        "update devices.operations set state = 'running', fencing_token = nextval('devices.fencing_tokens'), attempts = 1,
            lease_until = now() + interval '1 hour'
        where state = 'queued' returning id, device_id, kind, fencing_token, attempts, snapshot_id",
    )
    .fetch_all(&app.platform.db)
    .await
    .unwrap();
    act(&app, "b", "uncordon").await;
    let patched = admin.send("PATCH", "/nodes/b", json!({ "diskMB": 1000 }));
    let patched = patched.await.expect(StatusCode::OK).body;
    assert_eq!(patched["capacity"]["diskMB"], 1000);
    let demand = Demand::new(ProviderType::Simulated, (1, 512), Labels::new());
    let mb = 1 << 20;
    let room = async |claimed: &Claimed, bytes: i64| {
        let place = ("b", RuntimeKind::Simulated);
        let mut tx = app.platform.db.begin().await.unwrap();
        assert!(hold(&mut tx, claimed, place, &demand).await.unwrap());
        let held = hold_disk(&mut tx, claimed, "b", bytes).await.unwrap();
        tx.commit().await.unwrap();
        held
    };

    assert!(!room(&claims[0], 1001 * mb).await);
    assert!(room(&claims[0], 600 * mb).await);
    // What is promised to the one is not there for the other, and counts once when it asks again.
    assert!(!room(&claims[1], 401 * mb).await);
    assert!(room(&claims[1], 400 * mb).await);
    assert!(room(&claims[0], 600 * mb).await);
    // A snapshot that the node keeps takes its part.
    sqlx::query(
        "insert into devices.snapshots (id, device_id, user_id, created_by, name, status, size, taken_at, created_at, updated_at)
        values ('kept', $1, 'alice', 'alice', 'kept', 'ready', 10 * 1048576, now(), now(), now())",
    )
    .bind(text(&there, "id"))
    .execute(&app.platform.db)
    .await
    .unwrap();
    assert!(!room(&claims[1], 400 * mb).await);
    assert!(room(&claims[1], 390 * mb).await);

    // What is over gives it back.
    sql(
        &app,
        "update devices.operations set state = 'failed', finished_at = now(), lease_until = null where state = 'running'",
    )
    .await;
    look(&app.devices).await.unwrap();
    assert!(is(&app, "select count(*) = 0 from devices.reservations").await);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_was_promised_to_a_small_device_is_not_enough_when_it_has_become_large(db: PgPool) {
    let app = simulated_nodes(db, 1).await;
    let alice = app.user("alice", &[]).await;
    let device = id(&alice.create(small()).await);
    let claimed: Claimed = sqlx::query_as(
        "update devices.operations set state = 'running', fencing_token = nextval('devices.fencing_tokens'), attempts = 1,
            lease_until = now() + interval '1 hour'
        where device_id = $1 returning id, device_id, kind, fencing_token, attempts, snapshot_id",
    )
    .bind(&device)
    .fetch_one(&app.platform.db)
    .await
    .unwrap();
    act(&app, "b", "uncordon").await;
    sql(
        &app,
        "update devices.nodes set memory_mb = 2048 where name = 'b'",
    )
    .await;
    let size = |memory_mb| Demand::new(ProviderType::Simulated, (1, memory_mb), Labels::new());
    let place = ("b", RuntimeKind::Simulated);
    let mut tx = app.platform.db.begin().await.unwrap();
    assert!(hold(&mut tx, &claimed, place, &size(512)).await.unwrap());
    tx.commit().await.unwrap();

    // What it has is not counted against it, nor is its place among the devices.
    sql(
        &app,
        "update devices.nodes set most_devices = 1 where name = 'b'",
    )
    .await;
    let cases = [
        (4096, false),
        (2049, false),
        (2048, true),
        (1024, true),
        (512, true),
    ];
    for (memory_mb, fits) in cases {
        let mut tx = app.platform.db.begin().await.unwrap();
        let redeemed = redeem(&mut tx, &claimed, place, &size(memory_mb)).await;
        assert_eq!(redeemed.unwrap(), fits, "{memory_mb}");
        tx.rollback().await.unwrap();
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_was_promised_to_a_device_that_is_deleted_on_its_way_is_given_back(db: PgPool) {
    let app = simulated_nodes(db, 2).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    drain(&app).await;
    let claimed: Claimed = sqlx::query_as(
        "update devices.operations set state = 'running', fencing_token = nextval('devices.fencing_tokens'), attempts = 1,
            lease_until = now() + interval '1 hour'
        where kind = 'move' returning id, device_id, kind, fencing_token, attempts, snapshot_id",
    )
    .fetch_one(&app.platform.db)
    .await
    .unwrap();
    let demand = Demand::new(ProviderType::Simulated, (1, 512), Labels::new());
    let place = ("b", RuntimeKind::Simulated);
    let mut tx = app.platform.db.begin().await.unwrap();
    assert!(hold(&mut tx, &claimed, place, &demand).await.unwrap());
    tx.commit().await.unwrap();
    assert_eq!(node(&app, "b").await["used"]["devices"], 1);

    // Its worker dies, and the next one finds that it is to be deleted.
    alice.delete(&device).await.expect(StatusCode::OK);
    sql(
        &app,
        "update devices.operations set lease_until = now() - interval '1 second' where kind = 'move'",
    )
    .await;
    settle(&app).await;

    assert_eq!(node(&app, "b").await["used"]["devices"], 0);
    assert_eq!(node(&app, "a").await["used"]["devices"], 0);
    // The worker that did not know of it gets nothing any more.
    let mut tx = app.platform.db.begin().await.unwrap();
    assert!(!begin_transfer(&mut tx, &claimed, "b", 9).await.unwrap());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_asked_of_a_device_comes_before_its_move(db: PgPool) {
    let app = simulated_nodes(db, 2).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    drain(&app).await;

    alice.act(&device, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;

    assert_eq!(alice.status(&device).await, "stopped");
    assert_eq!(node(&app, "a").await["devices"], 1);
    let failed = &node(&app, "a").await["drain"]["failed"];
    assert_eq!(failed, &json!([]));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_in_a_container_comes_to_the_other_engine_with_its_files_and_snapshots(
    db: PgPool,
) {
    let (Some(first), Some(second)) = (engine(), engine()) else {
        return;
    };
    let app = engines(db, &first, second.endpoint()).await;
    let alice = app.user("alice", &[]).await;
    let (running, stopped) = (alice.create(small()).await, alice.create(small()).await);
    app.run_operations().await;
    let name = format!("cp-{}", id(&running));
    put(&first, &name, "before");
    let taken = snapshot(&app, &alice, &running).await;
    put(&first, &name, "after");
    alice.act(&stopped, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;

    drain(&app).await;
    settle(&app).await;

    let moved = alice.device(&running).await;
    assert_eq!(moved["status"], "running");
    assert_eq!(
        greeting(beside(&app, 2), ports(&moved).adb).await,
        "port 5555"
    );
    assert!(has(&second, &name, "before") && has(&second, &name, "after"));
    assert_eq!(alice.status(&stopped).await, "stopped");
    assert_eq!(containers(&first), [""; 0]);
    assert_eq!(kept(&first), [""; 0]);
    assert_eq!(containers(&second).len(), 2);
    ports_agree(&app).await;
    let list = alice
        .get(&format!("/devices/{}/snapshots", id(&running)))
        .await;
    let list = list.expect(StatusCode::OK).body;
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");

    // Its snapshot is restored there, and what only the move needed goes.
    let restored = alice
        .post(&format!("/snapshots/{taken}/restore"), Value::Null)
        .await;
    restored.expect(StatusCode::OK);
    settle(&app).await;
    assert_eq!(alice.status(&running).await, "running");
    assert!(has(&second, &name, "before") && !has(&second, &name, "after"));

    // And back again, and then there is nothing left of them anywhere.
    act(&app, "a", "uncordon").await;
    act(&app, "b", "drain").await;
    settle(&app).await;
    assert!(has(&first, &name, "before"));
    for device in [&running, &stopped] {
        alice.delete(device).await.expect(StatusCode::OK);
    }
    settle(&app).await;
    for engine in [&first, &second] {
        assert_eq!((containers(engine), kept(engine)), (vec![], vec![]));
    }
    let rows: i64 = sqlx::query_scalar("select count(*) from devices.snapshots")
        .fetch_one(&app.platform.db)
        .await
        .unwrap();
    assert_eq!(rows, 0);
}

/// A device with a file on `a`, on its way to `b`, where its image is held up.
async fn held_up(
    app: &TestApp,
    alice: &User,
    first: &Engine,
    passage: &Passage,
) -> (Value, String) {
    let device = alice.create(small()).await;
    app.run_operations().await;
    let name = format!("cp-{}", id(&device));
    put(first, &name, "something");
    drain(app).await;
    let holding = async {
        passage.holds().await;
        // Its ports are leased there before its image comes.
        assert_eq!(leased(app, "b").await, [id(&device).to_string()]);
    };
    tokio::select! {
        () = holding => {}
        () = app.run_operations() => panic!("nothing was held up"),
    }
    (device, name)
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn another_worker_goes_on_with_a_move_whose_worker_died_in_the_middle(db: PgPool) {
    let (Some(first), Some(second)) = (engine(), engine()) else {
        return;
    };
    let passage = Passage::closed(&second);
    let app = engines(db, &first, passage.endpoint()).await;
    let alice = app.user("alice", &[]).await;

    // The worker is gone with the connections that it had.
    let (device, name) = held_up(&app, &alice, &first, &passage).await;
    assert_eq!(alice.status(&device).await, "rebooting");
    passage.open();
    settle(&app.another().await).await;

    assert_eq!(alice.status(&device).await, "running");
    assert!(has(&second, &name, "something"));
    assert_eq!((containers(&first), kept(&first)), (vec![], vec![]));
    assert_eq!(containers(&second), [name]);
    assert_eq!(kept(&second).len(), 1);
    ports_agree(&app).await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn where_the_other_engine_dies_in_the_middle_the_device_goes_on_where_it_was(db: PgPool) {
    let (Some(first), Some(second)) = (engine(), engine()) else {
        return;
    };
    let passage = Passage::closed(&second);
    let app = engines(db, &first, passage.endpoint()).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(small()).await;
    app.run_operations().await;
    let name = format!("cp-{}", id(&device));
    put(&first, &name, "something");
    drain(&app).await;

    tokio::join!(app.run_operations(), async {
        passage.holds().await;
        second.kill();
    });

    let stays = alice.device(&device).await;
    assert_eq!(stays["status"], "running");
    assert_eq!(
        greeting(beside(&app, 1), ports(&stays).adb).await,
        "port 5555"
    );
    assert!(has(&first, &name, "something"));
    let failed = node(&app, "a").await["drain"]["failed"].clone();
    assert_eq!(failed[0]["deviceId"], device["id"], "{failed}");
    assert_eq!(events(&app, "device.move_failed").await.len(), 1);

    passage.open();
    second.start_again().unwrap();
    act(&app, "a", "uncordon").await;
    settle(&app).await;
    assert_eq!(kept(&first), [""; 0]);
    assert_eq!((containers(&second), kept(&second)), (vec![], vec![]));
    act(&app, "a", "drain").await;
    settle(&app).await;
    assert_eq!(alice.status(&device).await, "running");
    assert!(has(&second, &name, "something"));
    assert_eq!((containers(&first), kept(&first)), (vec![], vec![]));
    ports_agree(&app).await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_a_node_gave_away_stays_there_while_it_is_in_error_and_keeps_no_node_down(db: PgPool) {
    let (Some(first), Some(second)) = (engine(), engine()) else {
        return;
    };
    let app = engines(db, &first, second.endpoint()).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(small()).await;
    app.run_operations().await;
    let name = format!("cp-{}", id(&device));
    put(&first, &name, "something");
    drain(&app).await;
    app.run_operations().await;
    assert_eq!(containers(&second), std::slice::from_ref(&name));
    sql(
        &app,
        "update devices.devices set status = 'error', error = 'it does not boot'",
    )
    .await;

    for _ in 0..3 {
        tend(&app.devices).await.unwrap();
    }
    assert_eq!(containers(&first), std::slice::from_ref(&name));
    sql(
        &app,
        "update devices.nodes set down_since = now(), down_reason = 'it was' where name = 'a'",
    )
    .await;
    tend(&app.devices).await.unwrap();
    assert!(
        is(
            &app,
            "select down_since is null from devices.nodes where name = 'a'"
        )
        .await
    );
    assert!(has(&first, &name, "something"));

    alice.delete(&device).await.expect(StatusCode::OK);
    settle(&app).await;
    for engine in [&first, &second] {
        assert_eq!((containers(engine), kept(engine)), (vec![], vec![]));
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_whose_new_node_dies_at_once_goes_back_to_what_it_left_and_never_starts_empty(
    db: PgPool,
) {
    let (Some(first), Some(second)) = (engine(), engine()) else {
        return;
    };
    let app = failing(db, &first, &second, Failover::Restart).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(small()).await;
    app.run_operations().await;
    let name = format!("cp-{}", id(&device));
    put(&first, &name, "something");
    // Whoever would make it on the other node comes too late.
    sql(
        &app,
        "create function devices.late() returns trigger language plpgsql as
            'begin new.due_at := clock_timestamp() + interval ''1 hour''; return new; end';
        create trigger late before update on devices.operations for each row
            when (new.kind = 'move' and old.state = 'running' and new.state = 'queued') execute function devices.late()",
    )
    .await;
    drain(&app).await;
    app.run_operations().await;
    let given = alice.device(&device).await;
    assert_eq!(text(&given, "adbHost"), beside(&app, 2).to_string());
    assert_eq!(containers(&second), [""; 0]);

    // Both are away: it waits for what has its data.
    first.freeze();
    second.freeze();
    for node in ["a", "b"] {
        until_node(&app, node, "down").await;
    }
    until("it waits", async || {
        app.run_operations().await;
        let error = text(&alice.device(&device).await, "error");
        error.contains("is kept on node a alone")
    })
    .await;
    assert_eq!(alice.status(&device).await, "error");
    sql(
        &app,
        "update devices.operations set finished_at = finished_at - interval '1 hour'",
    )
    .await;
    first.thaw();

    until("it runs where it was", async || {
        tend(&app.devices).await.unwrap();
        app.run_operations().await;
        alice.status(&device).await == "running"
    })
    .await;
    let back = alice.device(&device).await;
    assert_eq!(text(&back, "adbHost"), beside(&app, 1).to_string());
    let said = greeting(beside(&app, 1), ports(&back).adb).await;
    assert_eq!(said, "port 5555");
    assert!(has(&first, &name, "something"));

    second.thaw();
    act(&app, "a", "uncordon").await;
    settle(&app).await;
    assert_eq!((containers(&second), kept(&second)), (vec![], vec![]));
    assert!(has(&first, &name, "something"));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_that_has_run_on_its_new_node_does_not_go_back_to_what_it_left(db: PgPool) {
    let (Some(first), Some(second)) = (engine(), engine()) else {
        return;
    };
    let app = failing(db, &first, &second, Failover::Snapshot).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(small()).await;
    app.run_operations().await;
    let name = format!("cp-{}", id(&device));
    drain(&app).await;
    app.run_operations().await;
    assert_eq!(alice.status(&device).await, "running");
    put(&second, &name, "newer");
    // Nobody has removed what it left when both go, and the one that it left comes back first.
    first.freeze();
    second.freeze();
    for node in ["a", "b"] {
        until_node(&app, node, "down").await;
    }
    first.thaw();
    until("node a is there again", async || {
        tend(&app.devices).await.unwrap();
        node(&app, "a").await["status"] != "down"
    })
    .await;
    sql(
        &app,
        "update devices.operations set finished_at = finished_at - interval '1 hour'",
    )
    .await;

    for _ in 0..3 {
        tend(&app.devices).await.unwrap();
        app.run_operations().await;
    }

    let waits = alice.device(&device).await;
    assert_eq!(text(&waits, "adbHost"), beside(&app, 2).to_string());
    second.thaw();
    until("it runs where it was", async || {
        tend(&app.devices).await.unwrap();
        app.run_operations().await;
        alice.status(&device).await == "running"
    })
    .await;
    assert!(has(&second, &name, "newer"));
}

async fn is(app: &TestApp, question: &'static str) -> bool {
    let asked = sqlx::query_scalar(question);
    asked.fetch_one(&app.platform.db).await.unwrap()
}

async fn sql(app: &TestApp, statement: &'static str) {
    let done = sqlx::raw_sql(statement).execute(&app.platform.db).await;
    done.unwrap();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_that_is_deleted_on_its_way_leaves_nothing(db: PgPool) {
    let (Some(first), Some(second)) = (engine(), engine()) else {
        return;
    };
    let passage = Passage::closed(&second);
    let app = engines(db, &first, passage.endpoint()).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(small()).await;
    app.run_operations().await;
    drain(&app).await;

    tokio::join!(app.run_operations(), async {
        passage.holds().await;
        alice.delete(&device).await.expect(StatusCode::OK);
    });
    passage.open();
    settle(&app).await;

    for engine in [&first, &second] {
        assert_eq!((containers(engine), kept(engine)), (vec![], vec![]));
    }
    ports_agree(&app).await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_image_that_gets_stuck_is_given_up_and_what_a_node_keeps_of_others_goes(db: PgPool) {
    let (Some(first), Some(second)) = (engine(), engine()) else {
        return;
    };
    let passage = Passage::closed(&second);
    let mut app = engines(db, &first, passage.endpoint()).await;
    app.config.move_stall = Duration::from_secs(1);
    let app = app.another().await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(small()).await;
    app.run_operations().await;
    fill(&first, &format!("cp-{}", id(&device)));
    let taken = snapshot(&app, &alice, &device).await;
    drain(&app).await;

    app.run_operations().await;

    assert_eq!(alice.status(&device).await, "running");
    let drain = node(&app, "a").await["drain"].clone();
    let reason = text(&drain["failed"][0], "reason");
    assert!(reason.contains("within 1s"), "{reason}");
    act(&app, "a", "uncordon").await;
    settle(&app).await;

    // As a worker brings it that was frozen until the move was over.
    let image = format!("cloudphone-snapshot:{taken}");
    let tar = tempfile::tempdir().unwrap();
    let tar = tar.path().join("image.tar").display().to_string();
    first.docker(&["save", "-o", &tar, &image]).unwrap();
    second.docker(&["load", "-i", &tar]).unwrap();
    sweep(&app.devices).await.unwrap();
    settle(&app).await;
    assert_eq!(kept(&second), [""; 0]);
    assert_eq!(kept(&first).len(), 1);
}
