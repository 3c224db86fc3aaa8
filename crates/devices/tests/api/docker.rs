//! Devices in containers of a real engine, started for the test alone; skipped, with the reason, where none can be.

use std::net::IpAddr;

use bollard::query_parameters::InspectContainerOptions;
use devices::config::RuntimeChoice;
use devices::device::RuntimeKind;
use devices::runtime::{RuntimeError, Seen, Spec};
use http::StatusCode;
use sqlx::PgPool;
use testkit::Engine;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::app::{TestApp, id, ports};

/// An engine of the test's own, unless none can be started here; that is said.
pub fn engine() -> Option<Engine> {
    Engine::start()
        .inspect_err(|reason| eprintln!("skipped: no engine could be started: {reason:#}"))
        .ok()
}

/// What a container says on a port of its node; nothing where nobody listens.
pub async fn greeting(address: IpAddr, port: u16) -> String {
    let mut text = String::new();
    if let Ok(mut stream) = TcpStream::connect((address, port)).await {
        let _ = stream.read_to_string(&mut text).await;
    }
    text
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
