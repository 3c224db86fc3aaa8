//! Snapshots: taken, restored, deleted, and nothing left of them.

use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::adb::{install, packages};
use crate::app::{TestApp, User, id, ports, text, until};

async fn take(user: &User, device: &Value, name: &str) -> Value {
    let path = format!("/devices/{}/snapshots", id(device));
    let answer = user.post(&path, json!({ "name": name })).await;
    answer.expect(StatusCode::CREATED).body
}

async fn snapshot(user: &User, snapshot: &Value) -> Value {
    let path = format!("/snapshots/{}", text(snapshot, "id"));
    user.get(&path).await.expect(StatusCode::OK).body
}

async fn restore(user: &User, snapshot: &Value) -> Value {
    let path = format!("/snapshots/{}/restore", text(snapshot, "id"));
    user.post(&path, Value::Null)
        .await
        .expect(StatusCode::OK)
        .body
}

async fn remove(user: &User, snapshot: &Value) -> crate::app::Answer {
    let path = format!("/snapshots/{}", text(snapshot, "id"));
    user.send("DELETE", &path, Value::Null).await
}

async fn rows(app: &TestApp, table: &str) -> i64 {
    let query = match table {
        "snapshots" => "select count(*) from devices.snapshots",
        "stub_snapshots" => "select count(*) from devices.stub_snapshots",
        "stub_contents" => "select count(*) from devices.stub_contents",
        _ => unreachable!("{table}"),
    };
    sqlx::query_scalar(query)
        .fetch_one(&app.platform.db)
        .await
        .unwrap()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_was_on_a_device_comes_back_and_the_device_is_as_it_was(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let (address, adb) = (app.config.node_address, ports(&device).adb);
    install(address, adb, "com.example.before").await;

    let taken = take(&alice, &device, "before").await;
    assert_eq!(
        (&taken["status"], &taken["size"], &taken["tags"]),
        (&json!("creating"), &json!(0), &json!([]))
    );
    assert_eq!(alice.device(&device).await["operation"], "snapshotting");
    app.run_operations().await;
    let ready = snapshot(&alice, &taken).await;
    assert_eq!(ready["status"], "ready");
    assert!(ready["size"].as_i64().unwrap() > 0, "{ready}");
    assert_eq!(alice.status(&device).await, "running");
    install(address, adb, "com.example.after").await;

    let answer = restore(&alice, &taken).await;
    assert_eq!(
        (
            &answer["status"],
            &answer["snapshotId"],
            &answer["deviceId"]
        ),
        (&json!("restoring"), &taken["id"], &device["id"])
    );
    let on_its_way = alice.device(&device).await;
    assert_eq!(
        (&on_its_way["status"], &on_its_way["operation"]),
        (&json!("rebooting"), &json!("restoring"))
    );
    assert_eq!(snapshot(&alice, &taken).await["status"], "restoring");
    app.run_operations().await;

    assert_eq!(alice.status(&device).await, "running");
    assert_eq!(snapshot(&alice, &taken).await["status"], "ready");
    assert_eq!(packages(address, adb).await, ["com.example.before"]);

    // A device that was stopped is stopped again, with what the snapshot kept.
    install(address, adb, "com.example.after").await;
    alice.act(&device, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;
    restore(&alice, &taken).await;
    app.run_operations().await;
    assert_eq!(alice.status(&device).await, "stopped");
    alice.act(&device, "start").await.expect(StatusCode::OK);
    app.run_operations().await;
    assert_eq!(packages(address, adb).await, ["com.example.before"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_restore_asked_for_at_once_waits_for_its_snapshot(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let (address, adb) = (app.config.node_address, ports(&device).adb);
    install(address, adb, "com.example.app").await;

    let taken = take(&alice, &device, "quick").await;
    let path = format!("/devices/{}/snapshots/restore", id(&device));
    let body = json!({ "snapshotId": taken["id"] });
    alice.post(&path, body).await.expect(StatusCode::OK);
    app.run_operations().await;

    assert_eq!(snapshot(&alice, &taken).await["status"], "ready");
    assert_eq!(alice.status(&device).await, "running");
    assert_eq!(packages(address, adb).await, ["com.example.app"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_snapshot_of_a_device_that_another_replica_hosts_holds_the_latest(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let (address, adb) = (app.config.node_address, ports(&device).adb);
    let worker = app.another().await;
    install(address, adb, "com.example.app").await;

    let taken = take(&alice, &device, "from elsewhere").await;
    worker.run_operations_beside(&app).await;

    assert_eq!(snapshot(&alice, &taken).await["status"], "ready");
    // The host dies, and with it what it has in memory.
    app.devices.runtimes().simulated.vanish().await;
    restore(&alice, &taken).await;
    until("the device runs on the other replica", async || {
        worker.run_operations().await;
        worker.host().await;
        alice.status(&device).await == "running"
    })
    .await;
    assert_eq!(packages(address, adb).await, ["com.example.app"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_on_a_device_outlives_its_restart(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let (address, adb) = (app.config.node_address, ports(&device).adb);
    install(address, adb, "com.example.app").await;

    alice.act(&device, "restart").await.expect(StatusCode::OK);
    app.run_operations().await;

    assert_eq!(packages(address, adb).await, ["com.example.app"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_deleted_snapshot_is_gone_at_once_and_nothing_is_left_of_it(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let taken = take(&alice, &device, "s").await;
    app.run_operations().await;
    assert_eq!(rows(&app, "stub_snapshots").await, 1);
    restore(&alice, &taken).await;
    app.run_operations().await;

    remove(&alice, &taken).await.expect(StatusCode::OK);

    remove(&alice, &taken)
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    for path in [
        "/snapshots".to_owned(),
        format!("/snapshots/device/{}", id(&device)),
        format!("/devices/{}/snapshots", id(&device)),
    ] {
        assert_eq!(
            alice.get(&path).await.expect(StatusCode::OK).body,
            json!([])
        );
    }
    let path = format!("/snapshots/{}/restore", text(&taken, "id"));
    alice
        .post(&path, Value::Null)
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    app.run_operations().await;
    assert_eq!(alice.status(&device).await, "running");
    alice.act(&device, "restart").await.expect(StatusCode::OK);
    app.run_operations().await;
    assert_eq!(alice.status(&device).await, "running");

    // The device is made of it, until it is made of another one.
    assert_eq!(rows(&app, "stub_snapshots").await, 1);
    let other = take(&alice, &device, "other").await;
    restore(&alice, &other).await;
    app.run_operations().await;
    let left: Vec<String> = sqlx::query_scalar("select snapshot_id from devices.stub_snapshots")
        .fetch_all(&app.platform.db)
        .await
        .unwrap();
    assert_eq!(left, [text(&other, "id")]);
    assert_eq!(rows(&app, "snapshots").await, 1);
    alice.delete(&device).await.expect(StatusCode::OK);
    app.run_operations().await;
    assert_eq!(rows(&app, "snapshots").await, 0);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_a_device_is_made_of_counts_also_when_it_is_deleted(db: PgPool) {
    let app = TestApp::with(db, |config| config.snapshots_per_device = 2).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let first = take(&alice, &device, "first").await;
    restore(&alice, &first).await;
    app.run_operations().await;
    remove(&alice, &first).await.expect(StatusCode::OK);
    app.run_operations().await;

    take(&alice, &device, "second").await;

    let path = format!("/devices/{}/snapshots", id(&device));
    let full = alice.post(&path, json!({ "name": "third" })).await;
    let full = full.refused(StatusCode::FORBIDDEN, "QUOTA_EXCEEDED");
    assert!(text(&full.body, "message").contains("2 used, 2 allowed"));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_was_deleted_is_told_also_where_the_next_one_fails(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        ids.push(text(&take(&alice, &device, name).await, "id"));
        app.run_operations().await;
    }
    ids.sort();
    sqlx::raw_sql(
        "create function refuse() returns trigger language plpgsql as $$ begin
            if new.name = 'b' then raise exception 'the disk is full'; end if; return new; end $$;
        create trigger refuse before update on devices.snapshots for each row execute function refuse();",
    )
    .execute(&app.platform.db)
    .await
    .unwrap();

    let report = alice
        .post("/snapshots/batch-delete", json!({ "ids": ids }))
        .await;
    let report = report.expect(StatusCode::OK).body;

    assert_eq!(
        (&report["succeeded"], &report["failed"]),
        (&json!(2), &json!(1)),
        "{report}"
    );
    let left = alice.get("/snapshots").await.body;
    assert_eq!(
        (left.as_array().unwrap().len(), &left[0]["name"]),
        (1, &json!("b"))
    );
    assert!(!report.to_string().contains("the disk"), "{report}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn old_snapshots_go_though_older_ones_cannot(db: PgPool) {
    let app = TestApp::with(db, |config| config.snapshot_days = 30).await;
    let alice = app.user("alice", &[]).await;
    let (gone, device) = (alice.running().await, alice.running().await);
    take(&alice, &device, "old").await;
    app.run_operations().await;
    // Of a device that is deleted, as many as are looked at together.
    sqlx::query(
        "insert into devices.snapshots (id, device_id, user_id, name, status, created_by, created_at, updated_at)
        select 'left-' || n, $1, 'alice', 'left', 'ready', 'alice', now() - interval '90 days', now() from generate_series(1, 100) n",
    )
    .bind(id(&gone))
    .execute(&app.platform.db)
    .await
    .unwrap();
    sqlx::query("update devices.devices set status = 'deleted', deleted_at = now(), released_at = now() where id = $1")
        .bind(id(&gone))
        .execute(&app.platform.db)
        .await
        .unwrap();
    sqlx::query(
        "update devices.snapshots set created_at = now() - interval '31 days' where name = 'old'",
    )
    .execute(&app.platform.db)
    .await
    .unwrap();

    let stop = tokio_util::sync::CancellationToken::new();
    devices::snapshot::jobs::retire_aged(&app.devices, &stop)
        .await
        .unwrap();
    app.run_operations().await;

    assert_eq!(rows(&app, "snapshots").await, 100);
    assert_eq!(rows(&app, "stub_snapshots").await, 0);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_snapshot_that_is_deleted_before_its_turn_is_never_taken(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;

    let taken = take(&alice, &device, "s").await;
    remove(&alice, &taken).await.expect(StatusCode::OK);
    app.run_operations().await;

    assert_eq!(
        (
            rows(&app, "snapshots").await,
            rows(&app, "stub_snapshots").await
        ),
        (0, 0)
    );
    assert_eq!(alice.status(&device).await, "running");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_restore_of_what_was_never_taken_leaves_the_device_as_it_is(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let (address, adb) = (app.config.node_address, ports(&device).adb);
    install(address, adb, "com.example.app").await;

    let taken = take(&alice, &device, "s").await;
    restore(&alice, &taken).await;
    remove(&alice, &taken).await.expect(StatusCode::OK);
    app.run_operations().await;

    assert_eq!(alice.status(&device).await, "running");
    assert_eq!(packages(address, adb).await, ["com.example.app"]);
    let restored: Option<String> = sqlx::query_scalar("select restored_from from devices.devices")
        .fetch_one(&app.platform.db)
        .await
        .unwrap();
    assert_eq!((restored, rows(&app, "snapshots").await), (None, 0));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn deleting_a_device_frees_its_snapshots(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let (address, adb) = (app.config.node_address, ports(&device).adb);
    install(address, adb, "com.example.app").await;
    take(&alice, &device, "one").await;
    app.run_operations().await;
    take(&alice, &device, "two").await;

    alice.delete(&device).await.expect(StatusCode::OK);

    assert_eq!(alice.get("/snapshots").await.body, json!([]));
    app.run_operations().await;
    for table in ["snapshots", "stub_snapshots", "stub_contents"] {
        assert_eq!(rows(&app, table).await, 0, "{table}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn snapshots_are_listed_counted_and_deleted_together(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob) = (app.user("alice", &[]).await, app.user("bob", &[]).await);
    let root = app.user("root", &["admin"]).await;
    let device = alice.running().await;
    let first = take(&alice, &device, "first").await;
    let second = take(&alice, &device, "second").await;
    app.run_operations().await;
    let foreign = take(&bob, &bob.running().await, "foreign").await;

    let page = alice.get("/snapshots?page=1&pageSize=1").await.body;
    assert_eq!(
        (&page["total"], &page["data"][0]["id"]),
        (&json!(2), &second["id"])
    );
    let ready = root.get("/snapshots?status=ready").await.body;
    assert_eq!(ready.as_array().unwrap().len(), 2, "{ready}");
    let unknown = alice.get("/snapshots?status=lost").await;
    unknown.refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
    let summary = alice
        .get("/snapshots/stats/summary")
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(
        (&summary["totalSnapshots"], &summary["byStatus"]["ready"]),
        (&json!(2), &json!(2))
    );
    assert!(summary["totalSize"].as_i64().unwrap() > 0, "{summary}");
    assert_eq!(
        root.get("/snapshots/stats/summary").await.body["totalSnapshots"],
        3
    );

    // What is another's is not there.
    let path = format!("/snapshots/{}", text(&foreign, "id"));
    alice
        .get(&path)
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    let path = format!("/devices/{}/snapshots", text(&foreign, "deviceId"));
    alice
        .get(&path)
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    // One of another device is not one of this device.
    let path = format!(
        "/devices/{}/snapshots/{}",
        id(&device),
        text(&foreign, "id")
    );
    root.send("DELETE", &path, Value::Null)
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");

    let ids = json!({ "ids": [first["id"], second["id"], foreign["id"]] });
    let deleted = alice
        .post("/snapshots/batch-delete", ids)
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(
        (&deleted["total"], &deleted["succeeded"], &deleted["failed"]),
        (&json!(3), &json!(2), &json!(1))
    );
    let outcome = |id: &Value| {
        let mut results = deleted["results"].as_array().unwrap().iter();
        results.find(|one| one["snapshotId"] == *id).unwrap()["success"].clone()
    };
    assert_eq!(
        (outcome(&first["id"]), outcome(&foreign["id"])),
        (json!(true), json!(false))
    );
    let none = alice
        .post("/snapshots/batch-delete", json!({ "ids": [] }))
        .await;
    none.refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn of_many_snapshots_at_once_as_many_are_taken_as_are_allowed(db: PgPool) {
    let app = TestApp::with(db, |config| {
        (config.snapshots_per_device, config.snapshots_per_user) = (3, 4);
    })
    .await;
    let alice = app.user("alice", &[]).await;
    let (one, other) = (alice.running().await, alice.running().await);
    let ask = |device: &Value| {
        let (alice, path) = (alice.clone(), format!("/devices/{}/snapshots", id(device)));
        async move { alice.post(&path, json!({ "name": "s" })).await }
    };

    let answers = futures::future::join_all((0..6).map(|_| ask(&one))).await;

    let (made, refused): (Vec<_>, Vec<_>) = answers
        .into_iter()
        .partition(|answer| answer.status == StatusCode::CREATED);
    assert_eq!((made.len(), refused.len()), (3, 3));
    for answer in refused {
        let body = answer.refused(StatusCode::FORBIDDEN, "QUOTA_EXCEEDED").body;
        let message = text(&body, "message");
        assert!(
            message.contains("quota") && message.contains("3 used, 3 allowed"),
            "{message}"
        );
    }
    ask(&other).await.expect(StatusCode::CREATED);
    let full = ask(&other)
        .await
        .refused(StatusCode::FORBIDDEN, "QUOTA_EXCEEDED");
    assert!(
        text(&full.body, "message").contains("4 used, 4 allowed"),
        "{}",
        full.body
    );
    // What is deleted makes room at once.
    remove(&alice, &made[0].body).await.expect(StatusCode::OK);
    ask(&other).await.expect(StatusCode::CREATED);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_worker_that_died_is_followed_by_one_that_takes_the_snapshot(db: PgPool) {
    let app = TestApp::with(db, |config| {
        config.operation_lease = std::time::Duration::from_millis(500);
    })
    .await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let taken = take(&alice, &device, "s").await;
    // As a worker leaves it that dies after its claim.
    sqlx::query(
        "update devices.operations set state = 'running', fencing_token = nextval('devices.fencing_tokens'),
            lease_until = clock_timestamp() - interval '1 second', attempts = 1 where kind = 'snapshot'",
    )
    .execute(&app.platform.db)
    .await
    .unwrap();

    app.another().await.run_operations_beside(&app).await;

    assert_eq!(snapshot(&alice, &taken).await["status"], "ready");
    assert_eq!(rows(&app, "stub_snapshots").await, 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_waits_behind_a_failure_is_cancelled_and_says_so(db: PgPool) {
    let app = TestApp::with(db, |config| config.operation_attempts = 1).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(json!({ "name": "n" })).await;
    let taken = take(&alice, &device, "s").await;
    // A program that is not ours holds the port, and there is no other.
    sqlx::query("update devices.devices set last_started_at = now()")
        .execute(&app.platform.db)
        .await
        .unwrap();
    let _foreign = tokio::net::TcpListener::bind((app.config.node_address, ports(&device).adb))
        .await
        .unwrap();

    app.run_operations().await;

    assert_eq!(alice.status(&device).await, "error");
    let failed = snapshot(&alice, &taken).await;
    assert_eq!(failed["status"], "error");
    assert!(
        text(&failed, "error").contains("operation before it failed"),
        "{failed}"
    );
    let path = format!("/snapshots/{}/restore", text(&taken, "id"));
    alice
        .post(&path, Value::Null)
        .await
        .refused(StatusCode::CONFLICT, "CONFLICT");
    let path = format!("/devices/{}/snapshots", id(&device));
    let answer = alice.post(&path, json!({ "name": "s" })).await;
    answer.refused(StatusCode::CONFLICT, "CONFLICT");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_snapshot_goes_when_it_is_too_old(db: PgPool) {
    let app = TestApp::with(db, |config| config.snapshot_days = 30).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let (old, young) = (
        take(&alice, &device, "old").await,
        take(&alice, &device, "young").await,
    );
    app.run_operations().await;
    sqlx::query(
        "update devices.snapshots set created_at = created_at - interval '31 days' where id = $1",
    )
    .bind(text(&old, "id"))
    .execute(&app.platform.db)
    .await
    .unwrap();

    for _ in 0..2 {
        let stop = tokio_util::sync::CancellationToken::new();
        devices::snapshot::jobs::retire_aged(&app.devices, &stop)
            .await
            .unwrap();
    }
    app.run_operations().await;

    let left = alice.get("/snapshots").await.body;
    assert_eq!(left.as_array().unwrap().len(), 1);
    assert_eq!(left[0]["id"], young["id"]);
    assert_eq!(rows(&app, "stub_snapshots").await, 1);
}
