//! Devices are reached through gateways, by Debian's adb and `gateway tunnel`, and by nobody but who may.

use std::process::Stdio;

use anyhow::{Context, ensure};
use cluster_tests::adb::Adb;
use cluster_tests::operator::bearing;
use cluster_tests::{GATEWAY, PATIENCE, Reply, all_instances, call_with, register, text};
use futures::StreamExt;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use testkit::{Cluster, eventually};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

const MODEL: [&str; 3] = ["shell", "getprop", "ro.product.model"];

/// A signed-in user.
struct User {
    token: String,
    client: Client,
}

impl User {
    async fn new(cluster: &Cluster, name: &str) -> anyhow::Result<Self> {
        let token = register(cluster, name).await?;
        let client = bearing(&token)?;
        Ok(Self { token, client })
    }

    async fn ask(
        &self,
        cluster: &Cluster,
        method: Method,
        path: &str,
        body: Value,
    ) -> anyhow::Result<Reply> {
        let url = cluster.url(GATEWAY, &format!("/api{path}"));
        call_with(
            &self.client,
            method,
            url,
            Some(body).filter(|body| !body.is_null()),
        )
        .await
    }

    /// Creates a device and waits until it runs.
    async fn running(&self, cluster: &Cluster) -> anyhow::Result<Value> {
        let created = self
            .ask(
                cluster,
                Method::POST,
                "/devices",
                json!({ "name": "phone" }),
            )
            .await?;
        let path = format!("/devices/{}", text(&created.expect(201), "id"));
        let device = eventually(PATIENCE, "the device runs", async || {
            let device = self
                .ask(cluster, Method::GET, &path, Value::Null)
                .await?
                .expect(200);
            ensure!(device["status"] == "running", "{device}");
            Ok(device)
        });
        Ok(device.await)
    }

    async fn ticket(&self, cluster: &Cluster, device: &Value) -> anyhow::Result<String> {
        let path = format!("/devices/{}/adb/ticket", text(device, "id"));
        let given = self.ask(cluster, Method::POST, &path, Value::Null).await?;
        Ok(text(&given.expect(201), "ticket"))
    }
}

/// `gateway tunnel --json`, and the events it tells.
struct Tunnel {
    child: Child,
    events: Lines<BufReader<ChildStdout>>,
    /// Where it listens, as adb names it.
    serial: String,
    _token: tempfile::NamedTempFile,
}

impl Tunnel {
    async fn start(cluster: &Cluster, token: &str, device: &str) -> anyhow::Result<Self> {
        let mut token_file = tempfile::NamedTempFile::new()?;
        std::io::Write::write_all(&mut token_file, token.as_bytes())?;
        let mut child = Command::new(testkit::gateway_program()?)
            .args([
                "tunnel",
                device,
                "--json",
                "--gateway",
                &cluster.url(GATEWAY, ""),
            ])
            .arg("--token-file")
            .arg(token_file.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = child.stdout.take().context("no standard output")?;
        let events = BufReader::new(output).lines();
        let mut tunnel = Self {
            child,
            events,
            serial: String::new(),
            _token: token_file,
        };
        let listening = tunnel.event("listening").await?;
        tunnel.serial = text(&listening, "address");
        ensure!(
            listening["command"] == format!("adb connect {}", tunnel.serial),
            "{listening}"
        );
        Ok(tunnel)
    }

    /// The next event of a name.
    async fn event(&mut self, name: &str) -> anyhow::Result<Value> {
        let heard = async {
            while let Some(line) = self.events.next_line().await? {
                let event: Value = serde_json::from_str(&line)?;
                if event["event"] == name {
                    return Ok(event);
                }
            }
            anyhow::bail!("the command ended before it told `{name}`")
        };
        timeout(PATIENCE, heard)
            .await
            .with_context(|| format!("no {name} is told"))?
    }
}

/// How a tunnel that is opened at a door is refused.
async fn refused(door: &str, device: &Value, ticket: &str) -> Option<u16> {
    let url = format!(
        "ws://{door}/api/devices/{}/adb?ticket={ticket}",
        text(device, "id")
    );
    match connect_async(url).await {
        Ok(_) => None,
        Err(WsError::Http(response)) => Some(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn adb_reaches_a_device_directly_and_through_a_tunnel_whichever_replica_restarts()
-> anyhow::Result<()> {
    let cluster = Cluster::builder(3).env("SANDBOX", "false").start().await?;
    let alice = User::new(&cluster, "alice").await?;
    let device = alice.running(&cluster).await?;
    let id = text(&device, "id");
    let adb = Adb::new()?;

    let command = text(&device["access"], "adb");
    let direct = command
        .strip_prefix("adb connect ")
        .context("no command for adb")?;
    let said = adb.run(&["connect", direct]).await?;
    assert!(said.text.contains("connected to"), "{said:?}");
    assert_eq!(adb.on(direct, &MODEL).await?.text.trim(), "Cloudphone Stub");

    let mut tunnel = Tunnel::start(&cluster, &alice.token, &id).await?;
    let serial = tunnel.serial.clone();
    let said = adb.run(&["connect", &serial]).await?;
    assert!(said.text.contains("connected to"), "{said:?}");
    assert_eq!(
        adb.on(&serial, &MODEL).await?.text.trim(),
        "Cloudphone Stub"
    );
    assert_eq!(
        adb.on(&serial, &["shell", "exit", "5"]).await?.code,
        Some(5)
    );

    // A file of some megabytes arrives whole, as the device's package manager tells.
    let folder = tempfile::tempdir()?;
    let app = folder.path().join("com.example.tunnelled.apk");
    std::fs::write(&app, [b"PK".to_vec(), vec![7; 5_000_000]].concat())?;
    let app = app.to_str().context("the path is no text")?;
    let said = adb.on(&serial, &["install", app]).await?;
    assert!(said.text.contains("Success"), "{said:?}");
    let path = format!("/devices/{id}/packages");
    let packages = alice
        .ask(&cluster, Method::GET, &path, Value::Null)
        .await?
        .expect(200);
    assert_eq!(packages["packages"], json!(["com.example.tunnelled"]));

    // A second adb has a connection of its own.
    let other = Adb::new()?;
    other.run(&["connect", &serial]).await?;
    assert_eq!(
        other.on(&serial, &MODEL).await?.text.trim(),
        "Cloudphone Stub"
    );

    for replica in cluster.replicas() {
        replica.restart().await?;
        eventually(PATIENCE, "adb gets through again", async || {
            adb.run(&["connect", &serial]).await?;
            let said = adb.on(&serial, &MODEL).await?;
            ensure!(said.text.trim() == "Cloudphone Stub", "{said:?}");
            Ok(())
        })
        .await;
    }

    alice
        .ask(
            &cluster,
            Method::DELETE,
            &format!("/devices/{id}"),
            Value::Null,
        )
        .await?
        .expect(200);
    let ended = tunnel.event("ended").await?;
    assert_eq!(ended["final"], true, "{ended}");
    assert_eq!(
        timeout(PATIENCE, tunnel.child.wait()).await??.code(),
        Some(1)
    );
    Ok(())
}

#[tokio::test]
async fn nobody_else_gets_through_and_no_ticket_opens_a_second_tunnel_at_any_door()
-> anyhow::Result<()> {
    let cluster = Cluster::builder(3)
        .env("SANDBOX", "false")
        .env("DEVICE_PORT_QUARANTINE_SECONDS", "0.1")
        .start()
        .await?;
    let doors = all_instances(&cluster, "gateway", 3).await;
    let (alice, bob) = (
        User::new(&cluster, "alice").await?,
        User::new(&cluster, "bob").await?,
    );
    let device = alice.running(&cluster).await?;
    let id = text(&device, "id");

    let path = format!("/devices/{id}/adb/ticket");
    bob.ask(&cluster, Method::POST, &path, Value::Null)
        .await?
        .expect(404);
    let told = Tunnel::start(&cluster, &bob.token, &id).await;
    assert!(told.is_err(), "the tunnel of a stranger");

    for _ in 0..5 {
        let ticket = alice.ticket(&cluster, &device).await?;
        let calls = (0..9).map(|n| refused(&doors[n % 3], &device, &ticket));
        let mut answers = futures::future::join_all(calls).await;
        answers.sort_unstable();
        assert_eq!(answers, [&[None][..], &[Some(401); 8]].concat());
    }

    let expired = alice.ticket(&cluster, &device).await?;
    let waiting = alice.ticket(&cluster, &device).await?;
    let db = cluster.database().await?;
    let expire = "update devices.access_tickets set expires_at = clock_timestamp() where id = (select min(id) from devices.access_tickets where used_at is null)";
    sqlx::query(expire).execute(&db).await?;
    assert_eq!(refused(&doors[0], &device, &expired).await, Some(401));

    // The port goes to bob; alice's ticket, and her connection that comes back, do not lead there.
    let mut tunnel = Tunnel::start(&cluster, &alice.token, &id).await?;
    let adb = Adb::new()?;
    adb.run(&["connect", &tunnel.serial]).await?;
    assert_eq!(
        adb.on(&tunnel.serial, &MODEL).await?.text.trim(),
        "Cloudphone Stub"
    );
    alice
        .ask(
            &cluster,
            Method::DELETE,
            &format!("/devices/{id}"),
            Value::Null,
        )
        .await?
        .expect(200);
    let of_bob = eventually(PATIENCE, "bob has the port", async || {
        let of_bob = bob.running(&cluster).await?;
        ensure!(of_bob["adbPort"] == device["adbPort"], "{of_bob}");
        Ok(of_bob)
    })
    .await;
    for door in &doors {
        assert_eq!(refused(door, &device, &waiting).await, Some(404));
        assert_eq!(refused(door, &of_bob, &waiting).await, Some(401));
    }
    assert_eq!(tunnel.event("ended").await?["final"], true);
    let said = adb.on(&tunnel.serial, &MODEL).await?;
    assert!(!said.text.contains("Stub"), "{said:?}");
    Ok(())
}

#[tokio::test]
async fn a_tunnel_ends_with_the_session_and_a_command_may_take_longer_than_a_request()
-> anyhow::Result<()> {
    let cluster = Cluster::builder(2).env("SANDBOX", "false").start().await?;
    let alice = User::new(&cluster, "alice").await?;
    let device = alice.running(&cluster).await?;
    let id = text(&device, "id");

    let ticket = alice.ticket(&cluster, &device).await?;
    let url = cluster.websocket_url(GATEWAY, &format!("/api/devices/{id}/adb?ticket={ticket}"));
    let (mut socket, _) = connect_async(url).await?;
    let shell = format!("/devices/{id}/shell");
    let slow = json!({ "command": "sleep infinity", "timeout": 11 });
    let slow = alice
        .ask(&cluster, Method::POST, &shell, slow)
        .await?
        .expect(200);
    assert_eq!(slow["timedOut"], true, "{slow}");
    let picture = alice
        .client
        .get(cluster.url(GATEWAY, &format!("/api/devices/{id}/screenshot")))
        .send()
        .await?;
    assert!(picture.bytes().await?.starts_with(b"\x89PNG"));

    alice
        .ask(&cluster, Method::POST, "/auth/logout", Value::Null)
        .await?
        .expect(200);

    let close = async {
        while let Some(message) = socket.next().await {
            if let Message::Close(Some(close)) = message? {
                return Ok(u16::from(close.code));
            }
        }
        anyhow::bail!("the tunnel ended without a word")
    };
    assert_eq!(timeout(PATIENCE, close).await??, 4401);
    Ok(())
}
