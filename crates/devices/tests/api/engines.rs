//! Which engine is a node's, and what becomes of containers that are not as their rows say; skipped where no engines are
//! wanted.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use devices::Config;
use devices::node::health::tend;
use devices::node::settings::parse;
use devices::operation::overdue;
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use testkit::{Authority, Engine};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::app::{TestApp, id, ports, text, until};
use crate::docker::{engine, greeting};

/// A replica with one node, `a`, whose engine is at this endpoint.
async fn app(db: PgPool, endpoint: &str) -> TestApp {
    with(db, endpoint, Value::Null, |_| {}).await
}

/// The same with certificates, and with other settings.
async fn with(db: PgPool, endpoint: &str, tls: Value, change: impl FnOnce(&mut Config)) -> TestApp {
    let probe = TestApp::new(db.clone()).await;
    sqlx::query("delete from devices.nodes")
        .execute(&db)
        .await
        .unwrap();
    let address = probe.config.node_address.to_string();
    let node = json!([{ "name": "a", "endpoint": endpoint, "tls": tls, "address": address, "devices": 10 }]);
    let mut config = probe.config.clone();
    config.nodes = parse(&node.to_string()).unwrap();
    config.image = testkit::IMAGE.into();
    config.node_down_after = Duration::from_millis(500);
    change(&mut config);
    TestApp::on(&probe.platform, config).await
}

fn small() -> Value {
    json!({ "name": "n", "cpuCores": 1, "memoryMB": 512 })
}

/// Lets an address lead to an engine, as that of another machine leads to another one.
fn lead(address: &Path, to: &Engine) {
    let _ = std::fs::remove_file(address);
    symlink(to.endpoint().trim_start_matches("unix://"), address).unwrap();
}

fn containers(engine: &Engine) -> String {
    engine.docker(&["ps", "-aq"]).unwrap()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn another_engine_at_the_same_address_is_not_the_node(db: PgPool) {
    let (Some(first), Some(second)) = (engine(), engine()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let address = folder.path().join("docker.sock");
    lead(&address, &first);
    let here = app(db.clone(), &format!("unix://{}", address.display())).await;
    let admin = here.user("root", &["admin"]).await;
    let alice = here.user("alice", &[]).await;
    let node = async || {
        let node = admin.get("/nodes/a").await;
        node.expect(StatusCode::OK).body
    };
    let calls_itself = |engine: &Engine| {
        let id = engine
            .docker(&["info", "--format", "{{.ID}}@{{.DockerRootDir}}"])
            .unwrap();
        id.trim().to_owned()
    };
    let device = alice.create(small()).await;
    here.run_operations().await;
    assert_eq!(alice.status(&device).await, "running");
    assert_eq!(text(&node().await, "engineId"), calls_itself(&first));

    // A replica on a machine with an engine of its own: it does nothing with that, whatever waits.
    lead(&address, &second);
    let there = here.another().await;
    alice.act(&device, "restart").await.expect(StatusCode::OK);
    tend(&there.devices).await.unwrap();
    there.run_operations().await;
    let never = CancellationToken::new();
    let round = devices::reconcile::job::run(&there.devices, &never).await;
    round.unwrap();
    assert_eq!(alice.status(&device).await, "rebooting");
    assert_eq!(containers(&second), "");
    assert!(there.devices.runtimes().engines.answering().is_empty());

    // Where nobody reaches the node's own, it is down, and it is told why.
    until("the node is down", async || {
        tend(&there.devices).await.unwrap();
        node().await["status"] == "down"
    })
    .await;
    let reason = text(&node().await, "reason");
    assert!(reason.contains(&calls_itself(&second)), "{reason}");
    lead(&address, &first);
    until("the node is back, and the device runs", async || {
        tend(&there.devices).await.unwrap();
        there.run_operations().await;
        alice.status(&device).await == "running"
    })
    .await;

    // An operator may say that an engine has taken the place of the other.
    lead(&address, &second);
    let endpoint = json!({ "endpoint": format!("unix://{}", address.display()) });
    let patched = admin.send("PATCH", "/nodes/a", endpoint).await;
    assert!(patched.expect(StatusCode::OK).body["engineId"].is_null());
    until("the other engine is the node's", async || {
        tend(&there.devices).await.unwrap();
        text(&node().await, "engineId") == calls_itself(&second)
    })
    .await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn one_engine_is_one_node(db: PgPool) {
    let Some(engine) = engine() else {
        return;
    };
    let app = app(db.clone(), &engine.endpoint()).await;
    let admin = app.user("root", &["admin"]).await;

    let twin = json!({ "name": "b", "endpoint": engine.endpoint(), "address": "127.0.0.1" });
    admin.post("/nodes", twin).await.expect(StatusCode::CREATED);

    tend(&app.devices).await.unwrap();
    assert_eq!(app.devices.runtimes().engines.answering(), ["a"]);
    let check = admin.get("/nodes/b/check").await.expect(StatusCode::OK);
    let found = text(&check.body["checks"][0], "found");
    assert!(found.contains("the engine of another node"), "{found}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_container_with_other_ports_than_its_row_is_made_anew(db: PgPool) {
    let Some(engine) = engine() else {
        return;
    };
    let app = app(db.clone(), &engine.endpoint()).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(small()).await;
    app.run_operations().await;
    let (name, set) = (format!("cp-{}", id(&device)), ports(&device));
    let address = app.config.node_address;
    engine.docker(&["rm", "-f", &name]).unwrap();
    let labels = [
        format!("cloudphone.cluster={}", app.cluster().await),
        format!("cloudphone.device={}", id(&device)),
    ];
    let published = [(set.adb, 5555), (set.webrtc, 8080), (set.scrcpy, 27183)]
        .map(|(outside, inside)| format!("{address}:{}:{inside}", outside + 100));
    let mut run = vec!["run", "-d", "--name", name.as_str()];
    for label in &labels {
        run.extend(["--label", label]);
    }
    for port in &published {
        run.extend(["--publish", port]);
    }
    run.push(testkit::IMAGE);
    engine.docker(&run).unwrap();
    assert_eq!(greeting(address, set.adb).await, "");

    let never = CancellationToken::new();
    let round = devices::reconcile::job::run(&app.devices, &never).await;
    round.unwrap();
    app.run_operations().await;

    assert_eq!(alice.status(&device).await, "running");
    assert_eq!(greeting(address, set.adb).await, "port 5555");
    assert_eq!(greeting(address, set.adb + 100).await, "");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_whose_container_is_made_anew_may_get_other_ports(db: PgPool) {
    let Some(engine) = engine() else {
        return;
    };
    let app = app(db.clone(), &engine.endpoint()).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(small()).await;
    app.run_operations().await;
    alice.act(&device, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;
    let name = format!("cp-{}", id(&device));
    engine.docker(&["rm", "-f", &name]).unwrap();
    let occupied = (app.config.node_address, ports(&device).adb);
    let _foreign = TcpListener::bind(occupied).await.unwrap();

    alice.act(&device, "start").await.expect(StatusCode::OK);
    app.run_operations().await;

    let now = alice.device(&device).await;
    assert_eq!(now["status"], "running", "{now}");
    assert_ne!(ports(&now).adb, ports(&device).adb);
    let address = app.config.node_address;
    assert_eq!(greeting(address, ports(&now).adb).await, "port 5555");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_waited_for_a_node_has_its_whole_deadline_when_it_is_back(db: PgPool) {
    let Some(engine) = engine() else {
        return;
    };
    let app = app(db.clone(), &engine.endpoint()).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(small()).await;
    app.run_operations().await;
    engine.kill();
    until("the device is in error", async || {
        tend(&app.devices).await.unwrap();
        alice.status(&device).await == "error"
    })
    .await;
    engine.start_again().unwrap();
    let queued = async || -> i64 {
        let count =
            "select count(*) from devices.operations where kind = 'repair' and state = 'queued'";
        sqlx::query_scalar(count).fetch_one(&db).await.unwrap()
    };
    until("it is to be found again", async || {
        tend(&app.devices).await.unwrap();
        queued().await == 1
    })
    .await;

    // The node goes down once more, for long.
    sqlx::raw_sql(
        "update devices.nodes set down_since = clock_timestamp(), down_reason = 'no route';
        update devices.operations set begun_at = clock_timestamp() - interval '1 day' where state = 'queued'",
    )
    .execute(&db)
    .await
    .unwrap();
    app.run_operations().await;
    overdue::end(&app.devices).await.unwrap();
    assert_eq!(queued().await, 1);
    until("the node is back", async || {
        tend(&app.devices).await.unwrap();
        let down = "select down_since is not null from devices.nodes";
        let down: bool = sqlx::query_scalar(down).fetch_one(&db).await.unwrap();
        !down
    })
    .await;
    overdue::end(&app.devices).await.unwrap();
    app.run_operations().await;

    let device = alice.device(&device).await;
    assert_eq!(device["status"], "running", "{device}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_engine_is_reached_by_tls_and_by_other_certificates_after_a_change_of_them(db: PgPool) {
    let authority = Authority::new().unwrap();
    let Some(engine) = Engine::for_test(|| Engine::secured(&authority)) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let certify = |authority: &Authority| {
        let issued = authority.issue(&["replica"]).unwrap();
        issued.write(folder.path()).unwrap();
        std::fs::write(path("ca.pem"), authority.certificate()).unwrap();
    };
    certify(&authority);
    let tls = json!({ "ca": path("ca.pem"), "cert": path("tls.crt"), "key": path("tls.key") });
    let app = with(db, &engine.secure_endpoint(), tls, |_| {}).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(small()).await;
    app.run_operations().await;
    assert_eq!(alice.status(&device).await, "running");
    let (address, adb) = (app.config.node_address, ports(&device).adb);
    assert_eq!(greeting(address, adb).await, "port 5555");

    // The engine trusts another authority by now, and is known to a replica that was there all the time.
    engine.kill();
    until("the device is in error", async || {
        tend(&app.devices).await.unwrap();
        alice.status(&device).await == "error"
    })
    .await;
    let other = Authority::new().unwrap();
    engine.certify(&other).unwrap();
    engine.start_again().unwrap();
    tend(&app.devices).await.unwrap();
    assert!(app.devices.runtimes().engines.answering().is_empty());
    certify(&other);

    until("the device is found again", async || {
        tend(&app.devices).await.unwrap();
        app.run_operations().await;
        alice.status(&device).await == "running"
    })
    .await;
    assert_eq!(greeting(address, adb).await, "port 5555");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn android_that_does_not_boot_is_no_running_device(db: PgPool) {
    let Some(engine) = engine() else {
        return;
    };
    // It accepts connections, as Android does, and never says that it has booted.
    let entry = r#"ENTRYPOINT ["/device"]"#;
    for arguments in [
        ["create", "--name", "model", testkit::IMAGE].as_slice(),
        &["commit", "--change", entry, "model", "redroid:1"],
        &["rm", "model"],
    ] {
        engine.docker(arguments).unwrap();
    }
    let app = with(db, &engine.endpoint(), Value::Null, |config| {
        config.image = "redroid:1".into();
        config.boot = Duration::from_secs(1);
        config.operation_attempts = 1;
    })
    .await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(small()).await;

    app.run_operations().await;

    let device = alice.device(&device).await;
    assert_eq!(device["status"], "error");
    assert_eq!(device["error"], "the device did not boot within 1s");
}
