//! Devices in containers of a real engine, started for the test alone; skipped, with the reason, where none can be.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bollard::query_parameters::{CreateImageOptionsBuilder, InspectContainerOptions};
use devices::config::RuntimeChoice;
use devices::device::RuntimeKind;
use devices::runtime::{RuntimeError, Seen, Spec};
use futures::StreamExt;
use http::StatusCode;
use sqlx::PgPool;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::app::{TestApp, id, ports};

/// Says on each port which one it is; all that a container of this test has to do.
const PROGRAM: &str = r#"
use std::{io::Write, net::TcpListener, thread};
fn main() {
    let ports = [5555, 8080, 27183].map(|port| thread::spawn(move || {
        let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
        for mut stream in listener.incoming().flatten() { let _ = write!(stream, "port {port}"); }
    }));
    for port in ports { port.join().unwrap(); }
}
"#;

struct Engine {
    folder: TempDir,
    process: Child,
    bridge: String,
    docker: bollard::Docker,
}

impl Drop for Engine {
    fn drop(&mut self) {
        let pid = self.process.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.process.wait();
        let _ = Command::new("ip")
            .args(["link", "delete", &self.bridge])
            .status();
    }
}

impl Engine {
    fn host(&self) -> String {
        format!("unix://{}/docker.sock", self.folder.path().display())
    }

    /// Starts an engine with its own socket, data, bridge and no say over the host's packet filter.
    async fn start() -> Result<Self, String> {
        let folder = TempDir::new().map_err(|error| error.to_string())?;
        let path = |name: &str| folder.path().join(name).display().to_string();
        let number = std::process::id() % 200;
        let bridge = format!("cptest{number}");
        run("ip", &["link", "add", &bridge, "type", "bridge"])?;
        let address = format!("10.213.{number}.1/24");
        run("ip", &["addr", "add", &address, "dev", &bridge])?;
        run("ip", &["link", "set", &bridge, "up"])?;
        let log = File::create(path("log")).map_err(|error| error.to_string())?;
        let process = Command::new("dockerd")
            .arg(format!("--host=unix://{}", path("docker.sock")))
            .arg(format!("--data-root={}", path("data")))
            .arg(format!("--exec-root={}", path("exec")))
            .arg(format!("--pidfile={}", path("pid")))
            .arg(format!("--bridge={bridge}"))
            .args(["--iptables=false", "--storage-driver=vfs"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("dockerd: {error}"));
        let process = process.inspect_err(|_| {
            let _ = run("ip", &["link", "delete", &bridge]);
        })?;
        let socket = format!("unix://{}", path("docker.sock"));
        let mut engine = Self {
            docker: bollard::Docker::connect_with_http(
                "http://127.0.0.1:1",
                30,
                bollard::API_DEFAULT_VERSION,
            )
            .map_err(|error| error.to_string())?,
            folder,
            process,
            bridge,
        };
        for _ in 0..300 {
            if let Ok(Some(status)) = engine.process.try_wait() {
                let log = fs::read_to_string(engine.folder.path().join("log")).unwrap_or_default();
                let last = log.lines().last().unwrap_or_default();
                return Err(format!("dockerd ended with {status}: {last}"));
            }
            let docker =
                bollard::Docker::connect_with_unix(&socket, 30, bollard::API_DEFAULT_VERSION);
            if let Ok(docker) = docker
                && let Ok(docker) = docker.negotiate_version().await
            {
                engine.docker = docker;
                return Ok(engine);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err("dockerd did not answer within 30 s".into())
    }

    /// Makes an image of a static program.
    async fn import(&self) -> Result<(), String> {
        let folder = self.folder.path();
        let (source, program, tar) = (
            folder.join("main.rs"),
            folder.join("device"),
            folder.join("root.tar"),
        );
        fs::write(&source, PROGRAM).map_err(|error| error.to_string())?;
        let text = |path: &Path| path.display().to_string();
        run(
            "rustc",
            &[
                "--edition=2024",
                "-Ctarget-feature=+crt-static",
                "-Cpanic=abort",
                "-o",
                &text(&program),
                &text(&source),
            ],
        )?;
        run("tar", &["-cf", &text(&tar), "-C", &text(folder), "device"])?;
        let bytes = fs::read(&tar).map_err(|error| error.to_string())?;
        let options = CreateImageOptionsBuilder::new()
            .from_src("-")
            .repo("cloudphone-test")
            .tag("1")
            .changes(vec!["CMD [\"/device\"]".to_owned()])
            .build();
        let mut import =
            self.docker
                .create_image(Some(options), Some(bollard::body_full(bytes.into())), None);
        while let Some(step) = import.next().await {
            step.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        let text = String::from_utf8_lossy(&output.stderr);
        Err(format!(
            "{program} {}: {}",
            arguments.join(" "),
            text.trim()
        ))
    }
}

async fn greeting(app: &TestApp, port: u16) -> String {
    let mut text = String::new();
    if let Ok(mut stream) = TcpStream::connect((app.config.node_address, port)).await {
        let _ = stream.read_to_string(&mut text).await;
    }
    text
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_lives_and_dies_in_a_container(db: PgPool) {
    let engine = match Engine::start().await {
        Ok(engine) => engine,
        Err(reason) => {
            eprintln!("skipped: no engine could be started: {reason}");
            return;
        }
    };
    if let Err(reason) = engine.import().await {
        eprintln!("skipped: no image could be made: {reason}");
        return;
    }
    let host = engine.host();
    let app = TestApp::with(db, |config| {
        config.runtime = RuntimeChoice::Auto;
        config.docker_host = host;
        config.image = "cloudphone-test:1".into();
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
    assert_eq!(greeting(&app, set.adb).await, "port 5555");
    assert_eq!(greeting(&app, set.webrtc).await, "port 8080");
    assert_eq!(greeting(&app, set.scrcpy).await, "port 27183");
    let seen = engine
        .docker
        .inspect_container(&format!("cp-{id}"), None::<InspectContainerOptions>)
        .await
        .unwrap();
    let labels = seen.config.unwrap().labels.unwrap();
    assert_eq!(labels["cloudphone.device"], id.to_string());
    assert_eq!(
        labels["cloudphone.cluster"],
        app.platform.settings.key_prefix
    );
    assert!(labels["cloudphone.fence"].parse::<i64>().unwrap() > 0);
    let limits = seen.host_config.unwrap();
    assert_eq!(
        (limits.memory, limits.nano_cpus),
        (Some(512 * 1024 * 1024), Some(1_000_000_000))
    );

    alice.act(&device, "restart").await.expect(StatusCode::OK);
    app.run_operations().await;
    assert_eq!(alice.status(&device).await, "running");
    assert_eq!(greeting(&app, set.adb).await, "port 5555");

    alice.act(&device, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;
    assert_eq!(runtime.inspect(&id).await.unwrap(), Seen::Stopped);
    assert_eq!(greeting(&app, set.adb).await, "");

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
    assert_eq!(greeting(&app, set.adb).await, "");

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
    assert_eq!(greeting(&app, changed.ports.webrtc).await, "port 8080");
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
