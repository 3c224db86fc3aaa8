//! What engines have beside what the database says; skipped where no engines are wanted.

use std::time::Duration;

use devices::config::RuntimeChoice;
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use testkit::Engine;
use tokio_util::sync::CancellationToken;

use crate::app::{TestApp, id, ports, text, until};
use crate::docker::{engine, greeting};

async fn app(db: PgPool, engine: &Engine) -> TestApp {
    TestApp::with(db, |config| {
        config.runtime = RuntimeChoice::Docker;
        config.docker_host = engine.endpoint();
        config.image = testkit::IMAGE.into();
    })
    .await
}

fn small() -> Value {
    json!({ "name": "n", "cpuCores": 1, "memoryMB": 512 })
}

async fn reconcile(app: &TestApp) {
    let never = CancellationToken::new();
    let round = devices::reconcile::job::run(&app.devices, &never).await;
    round.unwrap();
    app.run_operations().await;
}

/// What the reconciler did so far, newest first.
async fn trail(app: &TestApp) -> Vec<String> {
    let admin = app.user("root", &["admin"]).await;
    let page = admin.get("/nodes/local/reconciliation").await;
    let page = page.expect(StatusCode::OK).body;
    let entries = page["data"].as_array().unwrap();
    entries.iter().map(|entry| text(entry, "action")).collect()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_whose_container_was_hurt_is_put_right(db: PgPool) {
    let Some(engine) = engine() else {
        return;
    };
    let app = app(db.clone(), &engine).await;
    let alice = app.user("alice", &[]).await;
    let (killed, removed, started) = (
        alice.create(small()).await,
        alice.create(small()).await,
        alice.create(small()).await,
    );
    app.run_operations().await;
    alice.act(&started, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;
    reconcile(&app).await;
    assert!(trail(&app).await.is_empty());

    let name = |device: &Value| format!("cp-{}", id(device));
    engine.docker(&["kill", &name(&killed)]).unwrap();
    engine.docker(&["rm", "-f", &name(&removed)]).unwrap();
    engine.docker(&["start", &name(&started)]).unwrap();
    reconcile(&app).await;

    let address = app.config.node_address;
    for device in [&killed, &removed] {
        assert_eq!(alice.status(device).await, "running");
        assert_eq!(greeting(address, ports(device).adb).await, "port 5555");
    }
    assert_eq!(alice.status(&started).await, "stopped");
    assert_eq!(greeting(address, ports(&started).adb).await, "");
    assert_eq!(trail(&app).await, ["repair"; 3]);

    // One that dies again and again is given up.
    for _ in 0..4 {
        engine.docker(&["kill", &name(&killed)]).unwrap();
        reconcile(&app).await;
        assert_eq!(alice.status(&killed).await, "running");
    }
    engine.docker(&["kill", &name(&killed)]).unwrap();
    reconcile(&app).await;
    let device = alice.device(&killed).await;
    assert_eq!(device["status"], "error");
    assert!(text(&device, "error").contains("5 times"));
    assert_eq!(trail(&app).await[0], "given-up");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn only_containers_of_this_cluster_that_no_device_has_are_removed(db: PgPool) {
    let Some(engine) = engine() else {
        return;
    };
    let mut app = app(db.clone(), &engine).await;
    app.config.orphan_grace = Duration::from_secs(3600);
    let patient = TestApp::on(&app.platform, app.config.clone()).await;
    app.config.orphan_grace = Duration::from_millis(1);
    let app = TestApp::on(&app.platform, app.config.clone()).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(small()).await;
    app.run_operations().await;
    let cluster = format!("cloudphone.cluster={}", app.cluster().await);
    let run = |name: &str, labels: &[&str]| {
        let mut arguments = vec!["run", "-d", "--name", name];
        for label in labels {
            arguments.extend(["--label", label]);
        }
        arguments.push(testkit::IMAGE);
        engine.docker(&arguments).unwrap();
    };
    run("foreign", &[]);
    run(
        "neighbour",
        &["cloudphone.cluster=another", "cloudphone.device=x"],
    );
    run("orphan", &[&cluster, "cloudphone.device=nobody"]);

    // What is seen once may be on its way.
    reconcile(&patient).await;
    assert_eq!(trail(&app).await, Vec::<String>::new());
    reconcile(&patient).await;
    assert_eq!(trail(&app).await, ["orphan-found"]);
    until("the orphan is removed", async || {
        reconcile(&app).await;
        trail(&app).await == ["orphan-removed", "orphan-found"]
    })
    .await;

    let left = engine.docker(&["ps", "--format", "{{.Names}}"]).unwrap();
    let mut left: Vec<&str> = left.lines().collect();
    left.sort_unstable();
    let own = format!("cp-{}", id(&device));
    assert_eq!(left, [own.as_str(), "foreign", "neighbour"]);
    assert_eq!(alice.status(&device).await, "running");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn leases_that_redis_lost_are_restored_and_told(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let ports = ports(&device);
    app.devices.ports().release(&id(&device), ports).await;

    reconcile(&app).await;

    assert_eq!(trail(&app).await, ["lease-restored"]);
    let leases = app.devices.ports().leases().await.unwrap();
    assert_eq!(leases.len(), 1);
    assert_eq!(
        (leases[0].owner.as_str(), leases[0].ports),
        (id(&device).as_str(), ports)
    );
    reconcile(&app).await;
    assert_eq!(trail(&app).await.len(), 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_report_tells_what_a_node_needs(db: PgPool) {
    let Some(engine) = engine() else {
        return;
    };
    let app = app(db, &engine).await;
    let admin = app.user("root", &["admin"]).await;

    let report = admin
        .get("/nodes/local/check")
        .await
        .expect(StatusCode::OK)
        .body;

    let checks = report["checks"].as_array().unwrap();
    for name in [
        "engine",
        "cgroups",
        "limits",
        "memory",
        "cores",
        "binder",
        "inotify instances",
        "open files",
        "disk",
    ] {
        let check = checks.iter().find(|check| check["name"] == name);
        let check = check.unwrap_or_else(|| panic!("{name} is not told in {report}"));
        assert!(!text(check, "found").is_empty(), "{check}");
        assert!(
            check["status"] == "ok" || check["advice"].is_string(),
            "{check}"
        );
    }
}
