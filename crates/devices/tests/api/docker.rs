//! Devices in containers of a real engine, started for the test alone; skipped where no engines are wanted.

use std::net::IpAddr;

use bollard::query_parameters::InspectContainerOptions;
use devices::config::RuntimeChoice;
use devices::device::RuntimeKind;
use devices::runtime::{RuntimeError, Seen, Spec};
use http::StatusCode;
use serde_json::Value;
use sqlx::PgPool;
use testkit::Engine;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::app::{TestApp, id, ports, text};

/// An engine of the test's own, unless no engines are wanted.
pub fn engine() -> Option<Engine> {
    Engine::for_test(Engine::start)
}

/// What a container says on a port of its node; nothing where nobody listens.
pub async fn greeting(address: IpAddr, port: u16) -> String {
    let mut text = String::new();
    if let Ok(mut stream) = TcpStream::connect((address, port)).await {
        let _ = stream.read_to_string(&mut text).await;
    }
    text
}

/// Puts a file of this name into the root of a container.
pub fn put(engine: &Engine, container: &str, file: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(file);
    std::fs::write(&path, "something").unwrap();
    let (from, to) = (path.display().to_string(), format!("{container}:/{file}"));
    engine.docker(&["cp", &from, &to]).unwrap();
}

/// Whether a container has a file of this name.
pub fn has(engine: &Engine, container: &str, file: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (
        format!("{container}:/{file}"),
        folder.path().display().to_string(),
    );
    engine.docker(&["cp", &from, &to]).is_ok()
}

/// The images that keep anything of a device.
pub fn kept(engine: &Engine) -> Vec<String> {
    let filter = "label=cloudphone.device";
    let list = [
        "images",
        "--all",
        "--quiet",
        "--no-trunc",
        "--filter",
        filter,
    ];
    let listed = engine.docker(&list).unwrap();
    listed.lines().map(str::to_owned).collect()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_lives_and_dies_in_a_container(db: PgPool) {
    let Some(engine) = engine() else {
        return;
    };
    let app = TestApp::with(db, |config| {
        config.runtime = RuntimeChoice::Auto;
        config.docker_host = engine.endpoint();
        config.image = testkit::IMAGE.into();
    })
    .await;
    let alice = app.user("alice", &[]).await;
    let runtime = app
        .devices
        .runtimes()
        .of(RuntimeKind::Docker, "local")
        .unwrap();

    let body = serde_json::json!({ "name": "n", "cpuCores": 1, "memoryMB": 512 });
    let device = alice.create(body).await;
    app.run_operations().await;

    assert_eq!(alice.status(&device).await, "running");
    let (id, set) = (id(&device), ports(&device));
    assert_eq!(
        greeting(app.config.node_address, set.adb).await,
        "port 5555"
    );
    assert_eq!(
        greeting(app.config.node_address, set.webrtc).await,
        "port 8080"
    );
    assert_eq!(
        greeting(app.config.node_address, set.scrcpy).await,
        "port 27183"
    );
    let endpoint = engine.endpoint();
    let docker = bollard::Docker::connect_with_unix(&endpoint, 30, bollard::API_DEFAULT_VERSION);
    let seen = docker
        .unwrap()
        .inspect_container(&format!("cp-{id}"), None::<InspectContainerOptions>)
        .await
        .unwrap();
    let labels = seen.config.unwrap().labels.unwrap();
    assert_eq!(labels["cloudphone.device"], id.to_string());
    assert_eq!(labels["cloudphone.cluster"], app.cluster().await);
    assert!(labels["cloudphone.fence"].parse::<i64>().unwrap() > 0);
    let limits = seen.host_config.unwrap();
    assert_eq!(
        (limits.memory, limits.nano_cpus),
        (Some(512 * 1024 * 1024), Some(1_000_000_000))
    );

    alice.act(&device, "restart").await.expect(StatusCode::OK);
    app.run_operations().await;
    assert_eq!(alice.status(&device).await, "running");
    assert_eq!(
        greeting(app.config.node_address, set.adb).await,
        "port 5555"
    );

    alice.act(&device, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;
    assert_eq!(runtime.inspect(&id).await.unwrap(), Seen::Stopped);
    assert_eq!(greeting(app.config.node_address, set.adb).await, "");

    // Every call may be repeated.
    let stored = {
        let mut conn = app.platform.db.acquire().await.unwrap();
        devices::device::db::find(&mut conn, &id)
            .await
            .unwrap()
            .unwrap()
    };
    let spec = Spec::of(&stored, 1);
    runtime.stop(&spec).await.unwrap();
    runtime.create(&spec).await.unwrap();
    for _ in 0..2 {
        runtime.start(&spec).await.unwrap();
    }
    assert_eq!(runtime.inspect(&id).await.unwrap(), Seen::Running);

    alice.delete(&device).await.expect(StatusCode::OK);
    app.run_operations().await;
    assert_eq!(runtime.inspect(&id).await.unwrap(), Seen::Absent);
    runtime.remove(&id).await.unwrap();
    runtime.stop(&spec).await.unwrap();
    assert_eq!(greeting(app.config.node_address, set.adb).await, "");

    // A port that another program took between the creation and the start.
    let mut foreign = spec.clone();
    foreign.id = contracts::DeviceId::new();
    let _listener = tokio::net::TcpListener::bind((app.config.node_address, set.webrtc))
        .await
        .unwrap();
    runtime.create(&foreign).await.unwrap();
    let error = runtime.start(&foreign).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "port {} of the device is occupied by another program",
            set.webrtc
        )
    );
    // The device gets others, which a worker that comes late does not undo.
    let mut changed = foreign.clone();
    (changed.fence, changed.ports.webrtc) = (foreign.fence + 1, set.webrtc + 1);
    runtime.create(&changed).await.unwrap();
    runtime.start(&changed).await.unwrap();
    let late = runtime.create(&foreign).await.unwrap_err();
    assert!(matches!(late, RuntimeError::Fenced), "{late}");
    assert_eq!(
        greeting(app.config.node_address, changed.ports.webrtc).await,
        "port 8080"
    );
    runtime.remove(&foreign.id).await.unwrap();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_storage_of_a_container_is_counted_once_for_all_replicas_and_stays_known(db: PgPool) {
    let Some(engine) = engine() else {
        return;
    };
    let app = TestApp::with(db, |config| {
        config.runtime = RuntimeChoice::Docker;
        config.docker_host = engine.endpoint();
        config.image = testkit::IMAGE.into();
    })
    .await;
    let alice = app.user("alice", &[]).await;
    let body =
        serde_json::json!({ "name": "n", "cpuCores": 1, "memoryMB": 512, "storageMB": 1024 });
    let device = alice.create(body).await;
    app.run_operations().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("large");
    std::fs::write(&file, vec![1; 8 << 20]).unwrap();
    let fill = |name: &str| {
        let (from, to) = (file.display(), format!("cp-{}:/{name}", id(&device)));
        engine.docker(&["cp", &from.to_string(), &to]).unwrap();
    };
    fill("large");
    let used = async || {
        let path = format!("/devices/{}/metrics", id(&device));
        let shown = alice.get(&path).await.expect(StatusCode::OK).body;
        (
            shown["storageUsed"].as_f64().unwrap(),
            shown["storageUsage"].as_f64().unwrap(),
        )
    };
    assert_eq!(used().await, (0.0, 0.0));

    let other = app.another().await;
    // A replica that has not looked for its nodes yet asks no engine.
    devices::node::health::tend(&other.devices).await.unwrap();
    let (one, two) = tokio::join!(
        devices::measure::storage::step(&app.devices),
        devices::measure::storage::step(&other.devices)
    );
    one.unwrap();
    two.unwrap();

    let (megabytes, percent) = used().await;
    assert!((8.0..12.0).contains(&megabytes), "{megabytes}");
    assert!((0.7..1.3).contains(&percent), "{percent}");
    // What is measured each few seconds leaves it alone, and so does a further look before it is due.
    devices::measure::collect::step(&app.devices).await.unwrap();
    fill("another");
    devices::measure::storage::step(&app.devices).await.unwrap();
    assert_eq!(used().await, (megabytes, percent));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn without_an_engine_devices_are_simulated_unless_docker_is_demanded(db: PgPool) {
    let app = TestApp::with(db, |config| {
        config.runtime = RuntimeChoice::Auto;
        config.docker_host = "unix:///nowhere/docker.sock".into();
    })
    .await;
    let admin = app.user("root", &["admin"]).await;
    let node = admin.get("/nodes/local").await.expect(StatusCode::OK).body;
    assert_eq!(node["runtime"], "simulated");

    let mut config = app.config.clone();
    config.runtime = RuntimeChoice::Docker;
    let error = devices::Devices::new(&app.platform, config)
        .await
        .unwrap_err();

    assert!(format!("{error:#}").contains("unix:///nowhere/docker.sock"));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_snapshot_brings_back_what_was_in_the_container_and_no_image_is_left(db: PgPool) {
    let Some(engine) = engine() else {
        return;
    };
    let app = TestApp::with(db, |config| {
        config.runtime = RuntimeChoice::Docker;
        config.docker_host = engine.endpoint();
        config.image = testkit::IMAGE.into();
    })
    .await;
    let alice = app.user("alice", &[]).await;
    let body = serde_json::json!({ "name": "n", "cpuCores": 1, "memoryMB": 512 });
    let device = alice.create(body).await;
    app.run_operations().await;
    let (container, adb) = (format!("cp-{}", id(&device)), ports(&device).adb);
    let runtime = app
        .devices
        .runtimes()
        .of(RuntimeKind::Docker, "local")
        .unwrap();
    let take = async |name: &str| {
        let path = format!("/devices/{}/snapshots", id(&device));
        let taken = alice.post(&path, serde_json::json!({ "name": name })).await;
        let taken = taken.expect(StatusCode::CREATED).body;
        app.run_operations().await;
        let path = format!("/snapshots/{}", text(&taken, "id"));
        let taken = alice.get(&path).await.expect(StatusCode::OK).body;
        assert_eq!(taken["status"], "ready", "{taken}");
        taken
    };
    let restore = async |taken: &Value| {
        let path = format!("/snapshots/{}/restore", text(taken, "id"));
        alice.post(&path, Value::Null).await.expect(StatusCode::OK);
        app.run_operations().await;
        assert_eq!(alice.status(&device).await, "running");
        assert_eq!(greeting(app.config.node_address, adb).await, "port 5555");
    };

    put(&engine, &container, "first");
    let first = take("first").await;
    assert!(first["size"].as_i64().unwrap() > 0, "{first}");
    put(&engine, &container, "second");
    let second = take("second").await;
    assert_eq!(kept(&engine).len(), 2);

    restore(&first).await;
    assert!(has(&engine, &container, "first"));
    assert!(!has(&engine, &container, "second"));
    restore(&second).await;
    assert!(has(&engine, &container, "second"));

    // The commit may be repeated: what is there is not made twice.
    let spec = {
        let mut conn = app.platform.db.acquire().await.unwrap();
        let stored = devices::device::db::find(&mut conn, &id(&device)).await;
        Spec::of(&stored.unwrap().unwrap(), i64::MAX)
    };
    let snapshot = text(&second, "id").parse().unwrap();
    runtime.snapshot(&spec, &snapshot).await.unwrap();
    assert_eq!(kept(&engine).len(), 2);

    // The container lives on what its snapshot kept, also when that is deleted.
    for taken in [&first, &second] {
        let path = format!("/snapshots/{}", text(taken, "id"));
        alice
            .send("DELETE", &path, Value::Null)
            .await
            .expect(StatusCode::OK);
    }
    app.run_operations().await;
    alice.act(&device, "restart").await.expect(StatusCode::OK);
    app.run_operations().await;
    assert!(has(&engine, &container, "second"));
    assert_eq!(greeting(app.config.node_address, adb).await, "port 5555");

    // What a worker left that came late is found, and goes.
    let late = contracts::SnapshotId::new();
    runtime.snapshot(&spec, &late).await.unwrap();
    assert!(runtime.snapshots().await.unwrap().contains(&late));
    devices::snapshot::jobs::sweep(&app.devices).await.unwrap();
    assert!(!runtime.snapshots().await.unwrap().contains(&late));

    take("third").await;
    alice.delete(&device).await.expect(StatusCode::OK);
    app.run_operations().await;
    assert_eq!(kept(&engine), Vec::<String>::new());
    let rows: i64 = sqlx::query_scalar("select count(*) from devices.snapshots")
        .fetch_one(&app.platform.db)
        .await
        .unwrap();
    assert_eq!(rows, 0);
}
