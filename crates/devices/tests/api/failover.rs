//! Snapshots that more than one node keeps, and devices that are made of them when their own node is gone; skipped where no
//! engines are wanted.

use devices::config::Failover;
use devices::node::health::tend;
use devices::snapshot::{copies, jobs::sweep};
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use testkit::Engine;
use tokio_util::sync::CancellationToken;

use crate::app::{TestApp, User, id, ports, text, until};
use crate::docker::{engine, greeting, has, kept, put};
use crate::down::{app, small, until_node};
use crate::moves::simulated_nodes;
use crate::nodes::beside;

/// Makes copies of all snapshots.
async fn copy(app: &TestApp) {
    copies::keep(&app.devices, &CancellationToken::new())
        .await
        .unwrap();
}

/// Two devices on `a`, with `b` open for others.
async fn two_on_a(app: &TestApp, alice: &User) -> [Value; 2] {
    let admin = app.user("root", &["admin"]).await;
    let closed = admin.post("/nodes/b/cordon", json!({})).await;
    closed.expect(StatusCode::OK);
    let devices = [alice.create(small()).await, alice.create(small()).await];
    app.run_operations().await;
    let opened = admin.post("/nodes/b/uncordon", json!({})).await;
    opened.expect(StatusCode::OK);
    devices
}

async fn snapshot(app: &TestApp, alice: &User, device: &Value) -> String {
    let path = format!("/devices/{}/snapshots", id(device));
    let taken = alice.post(&path, json!({ "name": "s" })).await;
    app.run_operations().await;
    text(&taken.expect(StatusCode::CREATED).body, "id")
}

async fn status_of(alice: &User, snapshot: &str) -> String {
    let found = alice.get(&format!("/snapshots/{snapshot}")).await;
    text(&found.expect(StatusCode::OK).body, "status")
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_whose_node_is_gone_runs_on_what_its_last_copied_snapshot_kept(db: PgPool) {
    let (Some(first), Some(second)) = (engine(), engine()) else {
        return;
    };
    let app = app(db, &[&first, &second], Failover::Snapshot).await;
    let alice = app.user("alice", &[]).await;
    let [kept_one, other] = two_on_a(&app, &alice).await;
    let (name, other_name) = (
        format!("cp-{}", id(&kept_one)),
        format!("cp-{}", id(&other)),
    );
    put(&first, &name, "kept");
    let taken = snapshot(&app, &alice, &kept_one).await;
    copy(&app).await;
    assert_eq!(kept(&second).len(), 1);
    put(&first, &name, "later");
    put(&first, &other_name, "its-own");
    let uncopied = snapshot(&app, &alice, &kept_one).await;

    first.freeze();
    until_node(&app, "a", "down").await;
    until("the device runs elsewhere", async || {
        tend(&app.devices).await.unwrap();
        app.run_operations().await;
        alice.status(&kept_one).await == "running"
    })
    .await;

    let moved = alice.device(&kept_one).await;
    assert_eq!(moved["adbHost"], beside(&app, 2).to_string());
    assert_eq!(
        greeting(beside(&app, 2), ports(&moved).adb).await,
        "port 5555"
    );
    assert!(has(&second, &name, "kept") && !has(&second, &name, "later"));
    assert_eq!(status_of(&alice, &taken).await, "ready");
    assert_eq!(status_of(&alice, &uncopied).await, "error");
    let events = app.events().await;
    let told: Vec<_> = (events.iter())
        .filter(|event| event["type"] == "device.moved")
        .collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["data"]["snapshotId"], taken);

    // What no other node keeps is not made anew empty.
    let waits = alice.device(&other).await;
    assert_eq!(waits["status"], "error");
    assert!(
        text(&waits, "error").contains("no other node keeps a snapshot of the device"),
        "{waits}"
    );
    first.thaw();
    until_node(&app, "a", "ready").await;
    until("it is found again", async || {
        tend(&app.devices).await.unwrap();
        app.run_operations().await;
        alice.status(&other).await == "running"
    })
    .await;
    assert!(has(&first, &other_name, "its-own"));

    // Each device is on one node alone, and is gone from all of them when it is deleted.
    let left = first
        .docker(&["ps", "-a", "--format", "{{.Names}}"])
        .unwrap();
    assert_eq!(left.trim(), other_name);
    assert_eq!(kept(&first), [""; 0]);
    alice.delete(&kept_one).await.expect(StatusCode::OK);
    app.run_operations().await;
    assert_eq!(kept(&second), [""; 0]);
}

/// Has everything be as if it was long ago.
async fn age(app: &TestApp) {
    for statement in [
        "update devices.devices set updated_at = updated_at - interval '1 hour'",
        "update devices.snapshots set taken_at = taken_at - interval '1 hour'",
        "update devices.snapshot_copies set created_at = created_at - interval '1 hour'",
    ] {
        sqlx::query(statement)
            .execute(&app.platform.db)
            .await
            .unwrap();
    }
}

async fn copies_of(app: &TestApp) -> Vec<(String, String)> {
    sqlx::query_as("select node, state from devices.snapshot_copies order by node, snapshot_id")
        .fetch_all(&app.platform.db)
        .await
        .unwrap()
}

async fn reconcile(app: &TestApp) {
    devices::reconcile::job::run(&app.devices, &CancellationToken::new())
        .await
        .unwrap();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn rows_of_copies_follow_what_the_engines_keep(db: PgPool) {
    let (Some(first), Some(second)) = (engine(), engine()) else {
        return;
    };
    let app = app(db, &[&first, &second], Failover::Snapshot).await;
    let alice = app.user("alice", &[]).await;
    let [device, _] = two_on_a(&app, &alice).await;
    let taken = snapshot(&app, &alice, &device).await;
    copy(&app).await;
    let ready = |node: &str| (node.to_owned(), "ready".to_owned());
    let copying = |node: &str| (node.to_owned(), "copying".to_owned());
    let image = format!("cloudphone-snapshot:{taken}");
    age(&app).await;
    reconcile(&app).await;
    assert_eq!(copies_of(&app).await, [ready("b")]);

    // A copy that is gone is made anew.
    second.docker(&["rmi", &image]).unwrap();
    reconcile(&app).await;
    assert_eq!(copies_of(&app).await, [copying("b")]);
    copy(&app).await;
    assert_eq!(copies_of(&app).await, [ready("b")]);
    assert_eq!(kept(&second).len(), 1);

    // And so is what the node of the device has lost; until then nobody takes the other node away.
    first.docker(&["rmi", &image]).unwrap();
    age(&app).await;
    reconcile(&app).await;
    assert_eq!(copies_of(&app).await, [copying("a"), ready("b")]);
    let admin = app.user("root", &["admin"]).await;
    let refused = admin.send("DELETE", "/nodes/b", Value::Null).await;
    let refused = refused.refused(StatusCode::CONFLICT, "CONFLICT").body;
    assert!(
        text(&refused, "message").contains("keeps 1 snapshots"),
        "{refused}"
    );
    copy(&app).await;
    copy(&app).await;
    assert_eq!(copies_of(&app).await, [ready("b")]);
    assert_eq!(kept(&first).len(), 1);
    let removed = admin.send("DELETE", "/nodes/b", Value::Null).await;
    removed.expect(StatusCode::OK);

    // What no node keeps is told after a while.
    copy(&app).await;
    first.docker(&["rmi", &image]).unwrap();
    reconcile(&app).await;
    copy(&app).await;
    assert_eq!(status_of(&alice, &taken).await, "ready");
    age(&app).await;
    copy(&app).await;
    assert_eq!(status_of(&alice, &taken).await, "error");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn after_a_failover_the_new_node_gets_the_snapshots_that_only_a_third_one_keeps(db: PgPool) {
    let (Some(first), Some(second), Some(third)) = (engine(), engine(), engine()) else {
        return;
    };
    let app = app(db, &[&first, &second, &third], Failover::Snapshot).await;
    set_node(&app, "c", "cordoned").await;
    let alice = app.user("alice", &[]).await;
    let [device, _] = two_on_a(&app, &alice).await;
    set_node(&app, "b", "cordoned").await;
    set_node(&app, "c", "ready").await;
    let early = snapshot(&app, &alice, &device).await;
    copy(&app).await;
    set_node(&app, "c", "cordoned").await;
    set_node(&app, "b", "ready").await;
    let late = snapshot(&app, &alice, &device).await;
    copy(&app).await;
    let keeps = |engine: &Engine, snapshot: &str| {
        let image = format!("cloudphone-snapshot:{snapshot}");
        engine.docker(&["image", "inspect", &image]).is_ok()
    };
    assert!(keeps(&third, &early) && !keeps(&third, &late));
    assert!(keeps(&second, &late) && !keeps(&second, &early));

    first.freeze();
    until_node(&app, "a", "down").await;
    until("the device runs elsewhere", async || {
        tend(&app.devices).await.unwrap();
        app.run_operations().await;
        alice.status(&device).await == "running"
    })
    .await;

    let rows: Vec<(String, String, String)> = sqlx::query_as(
        "select snapshot_id, node, state from devices.snapshot_copies where node = 'b'",
    )
    .fetch_all(&app.platform.db)
    .await
    .unwrap();
    let row = |snapshot: &str, state: &str| (snapshot.to_owned(), "b".into(), state.to_owned());
    assert!(rows.contains(&row(&early, "copying")), "{rows:?}");
    assert!(rows.contains(&row(&late, "ready")), "{rows:?}");
    // Once it is copied the node keeps it as it does all others.
    copy(&app).await;
    assert!(keeps(&second, &early));
    copy(&app).await;
    let left: i64 =
        sqlx::query_scalar("select count(*) from devices.snapshot_copies where node = 'b'")
            .fetch_one(&app.platform.db)
            .await
            .unwrap();
    assert_eq!(left, 0);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_runs_elsewhere_once_the_node_that_keeps_its_snapshot_is_back(db: PgPool) {
    let (Some(first), Some(second)) = (engine(), engine()) else {
        return;
    };
    let app = app(db, &[&first, &second], Failover::Snapshot).await;
    let alice = app.user("alice", &[]).await;
    let [device, _] = two_on_a(&app, &alice).await;
    let name = format!("cp-{}", id(&device));
    put(&first, &name, "kept");
    snapshot(&app, &alice, &device).await;
    copy(&app).await;
    second.freeze();
    until_node(&app, "b", "down").await;
    first.freeze();
    until_node(&app, "a", "down").await;
    until("it waits", async || {
        tend(&app.devices).await.unwrap();
        app.run_operations().await;
        let error = text(&alice.device(&device).await, "error");
        error.contains("no other node keeps a snapshot of the device")
    })
    .await;
    sqlx::query("update devices.operations set finished_at = finished_at - interval '1 hour'")
        .execute(&app.platform.db)
        .await
        .unwrap();

    second.thaw();

    until("it runs elsewhere", async || {
        tend(&app.devices).await.unwrap();
        app.run_operations().await;
        alice.status(&device).await == "running"
    })
    .await;
    let moved = alice.device(&device).await;
    assert_eq!(text(&moved, "adbHost"), beside(&app, 2).to_string());
    assert!(has(&second, &name, "kept"));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_deleted_snapshot_goes_from_every_node_also_from_one_that_was_away(db: PgPool) {
    let (Some(first), Some(second)) = (engine(), engine()) else {
        return;
    };
    let app = app(db.clone(), &[&first, &second], Failover::Snapshot).await;
    let alice = app.user("alice", &[]).await;
    let [device, _] = two_on_a(&app, &alice).await;
    let (early, late) = (
        snapshot(&app, &alice, &device).await,
        snapshot(&app, &alice, &device).await,
    );
    let replicas = [app.another().await, app.another().await];
    futures::future::join_all(replicas.iter().map(copy)).await;
    assert_eq!((kept(&first).len(), kept(&second).len()), (2, 2));
    let remove = async |snapshot: &str| {
        let path = format!("/snapshots/{snapshot}");
        let removed = alice.send("DELETE", &path, Value::Null).await;
        removed.expect(StatusCode::OK);
        app.run_operations().await;
    };

    remove(&early).await;
    assert_eq!((kept(&first).len(), kept(&second).len()), (1, 1));

    second.freeze();
    until_node(&app, "b", "down").await;
    remove(&late).await;
    assert_eq!(kept(&first), [""; 0]);
    second.thaw();
    until_node(&app, "b", "ready").await;
    sweep(&app.devices).await.unwrap();
    assert_eq!(kept(&second), [""; 0]);
    let rows: i64 = sqlx::query_scalar("select count(*) from devices.snapshot_copies")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(rows, 0);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_node_that_is_down_for_good_is_removed_with_the_only_copies_when_an_admin_says_so(
    db: PgPool,
) {
    let app = simulated_nodes(db, 1).await;
    let (alice, admin) = (
        app.user("alice", &[]).await,
        app.user("root", &["admin"]).await,
    );
    let device = alice.running().await;
    let taken = snapshot(&app, &alice, &device).await;
    // Its own node does not have it.
    sqlx::query(
        "insert into devices.snapshot_copies (snapshot_id, node, state, tried_at, created_at)
        values ($1, 'a', 'copying', now(), now() - interval '1 day'), ($1, 'b', 'ready', null, now())",
    )
    .bind(&taken)
    .execute(&app.platform.db)
    .await
    .unwrap();

    // While it is there, its copy can be copied.
    let refused = admin
        .send("DELETE", "/nodes/b?force=true", Value::Null)
        .await;
    refused.expect(StatusCode::CONFLICT);
    sqlx::query(
        "update devices.nodes set down_since = now(), down_reason = 'burnt' where name = 'b'",
    )
    .execute(&app.platform.db)
    .await
    .unwrap();
    let refused = admin
        .send("DELETE", "/nodes/b", Value::Null)
        .await
        .expect(StatusCode::CONFLICT);
    let why = refused.body.to_string();
    assert!(
        why.contains("1 snapshots") && why.contains("?force=true"),
        "{why}"
    );
    copy(&app).await;
    assert_eq!(status_of(&alice, &taken).await, "ready");

    let removed = admin
        .send("DELETE", "/nodes/b?force=true", Value::Null)
        .await;
    removed.expect(StatusCode::OK);
    copy(&app).await;

    assert_eq!(status_of(&alice, &taken).await, "error");
}

/// Writes that these nodes are to get a snapshot, since so many minutes; who was tried already failed.
async fn expected(app: &TestApp, snapshot: &str, rows: [(&str, bool, i32); 2]) {
    for (node, tried, minutes) in rows {
        sqlx::query(
            "insert into devices.snapshot_copies (snapshot_id, node, state, tried_at, created_at)
            values ($1, $2, 'copying', case when $3 then now() end, now() - make_interval(mins => $4))",
        )
        .bind(snapshot)
        .bind(node)
        .bind(tried)
        .bind(minutes)
        .execute(&app.platform.db)
        .await
        .unwrap();
    }
}

async fn set_node(app: &TestApp, node: &str, state: &str) {
    let update = sqlx::query("update devices.nodes set state = $2 where name = $1");
    let update = update.bind(node).bind(state);
    update.execute(&app.platform.db).await.unwrap();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_copy_doubted_of_late_is_looked_for_before_its_snapshot_is_given_up(db: PgPool) {
    let app = simulated_nodes(db, 1).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let taken = snapshot(&app, &alice, &device).await;
    set_node(&app, "b", "ready").await;
    // Nobody has looked for it on `b` yet, although long ago it was to be there.
    expected(&app, &taken, [("a", true, 60), ("b", false, 60)]).await;

    copy(&app).await;
    assert_eq!(status_of(&alice, &taken).await, "ready");

    // Somebody has by now, but the first doubt is young.
    let update = "update devices.snapshot_copies set created_at = now() where node = 'b' and tried_at is not null";
    let looked = sqlx::query(update).execute(&app.platform.db).await.unwrap();
    assert_eq!(looked.rows_affected(), 1);
    copy(&app).await;
    assert_eq!(status_of(&alice, &taken).await, "ready");

    age(&app).await;
    copy(&app).await;
    assert_eq!(status_of(&alice, &taken).await, "error");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_node_that_is_drained_does_not_keep_hope_for_a_copy_that_it_never_gets(db: PgPool) {
    let app = simulated_nodes(db, 1).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let taken = snapshot(&app, &alice, &device).await;
    set_node(&app, "b", "draining").await;
    expected(&app, &taken, [("a", true, 60), ("b", false, 1)]).await;

    copy(&app).await;
    assert_eq!(status_of(&alice, &taken).await, "ready");

    age(&app).await;
    copy(&app).await;
    assert_eq!(status_of(&alice, &taken).await, "error");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_node_that_is_down_and_keeps_all_that_there_is_of_a_device_is_removed_by_force_alone(
    db: PgPool,
) {
    let app = simulated_nodes(db, 1).await;
    let (alice, admin) = (
        app.user("alice", &[]).await,
        app.user("root", &["admin"]).await,
    );
    alice.running().await;
    // It was given away by `b`, and never came to run on `a`.
    for statement in [
        "update devices.devices set status = 'error'",
        "insert into devices.operations (saga_id, device_id, kind, state, begun, step, created_at, finished_at, snapshot_id)
            select 'gone', id, 'move', 'failed', true, 'start-container', now(), now(), 'hidden' from devices.devices",
        "insert into devices.moves (operation_id, device_id, source, target, handed_over_at, settled_at)
            select id, device_id, 'b', 'a', now(), now() from devices.operations where kind = 'move'",
        "insert into devices.leftovers (node, device_id, adb_port, webrtc_port, scrcpy_port)
            select 'b', id, adb_port, webrtc_port, scrcpy_port from devices.devices",
        "update devices.nodes set down_since = now(), down_reason = 'burnt' where name = 'b'",
    ] {
        sqlx::query(statement).execute(&app.platform.db).await.unwrap();
    }

    let refused = admin.send("DELETE", "/nodes/b", Value::Null).await;
    let refused = refused.refused(StatusCode::CONFLICT, "CONFLICT").body;
    assert!(refused.to_string().contains("on 1 devices"), "{refused}");

    let path = "/nodes/b?force=true";
    let removed = admin.send("DELETE", path, Value::Null).await;
    removed.expect(StatusCode::OK);
}
