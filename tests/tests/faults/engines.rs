//! Two real engines and replicas that are killed: what engines have, what the database says and what Redis leases are the
//! same in the end. Skipped where no engine can be started.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cluster_tests::operator::{administrator, bearing};
use cluster_tests::{GATEWAY, register, text};
use futures::StreamExt as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use sqlx::PgPool;
use testkit::{Cluster, Engine, IMAGE, eventually};
use tokio::time::sleep;

const CLIENTS: usize = 6;
/// Devices of each client, of which every third is deleted and every third stopped in the end.
const DEVICES: usize = 10;
const KILLS: usize = 10;
/// How long anything may take on a machine that has more to do.
const STUBBORN: Duration = Duration::from_secs(240);
const ANSWER: Duration = Duration::from_secs(8);

/// A device as one of the three sides has it: its node, its ADB, WebRTC and scrcpy port.
type Held = BTreeMap<String, (String, [u64; 3])>;

#[tokio::test]
async fn engines_database_and_redis_agree_whoever_is_killed() -> anyhow::Result<()> {
    let engines = match (Engine::start(), Engine::start()) {
        (Ok(a), Ok(b)) => BTreeMap::from([("a", a), ("b", b)]),
        (Err(reason), _) | (_, Err(reason)) => {
            eprintln!("skipped: no engine could be started: {reason:#}");
            return Ok(());
        }
    };
    let nodes: Vec<Value> = engines
        .iter()
        .zip(1..)
        .map(|((name, engine), number)| {
            let pid = std::process::id();
            let address = format!("127.{}.{}.{}", 100 + number, pid / 250 % 250, pid % 250 + 1);
            json!({ "name": name, "endpoint": engine.endpoint(), "address": address, "devices": 45 })
        })
        .collect();
    let cluster = Cluster::builder(3)
        .env("DEVICE_NODES", json!(nodes))
        .env("DEVICE_IMAGE", IMAGE)
        .env("DEVICE_OPERATION_LEASE_SECONDS", 4)
        .env("DEVICE_OPERATION_ATTEMPTS", 50)
        .env("DEVICE_PORT_LEASE_SECONDS", 6)
        .env("DEVICE_PORT_QUARANTINE_SECONDS", 0.5)
        .env("DEVICE_RECONCILE_SCHEDULE", "*/5 * * * * *")
        .env("NODE_DOWN_AFTER_SECONDS", 4)
        .start()
        .await?;
    let seed: u64 = match std::env::var("FAULTS_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => rand::random(),
    };
    eprintln!("FAULTS_SEED={seed} repeats the moments of this run");

    // Signing in may not be repeated, so that it is not for the time of the kills.
    let mut tokens = Vec::new();
    for number in 0..CLIENTS {
        tokens.push(register(&cluster, &format!("renter{number}")).await?);
    }
    let clients = (tokens.iter().enumerate()).map(|(number, token)| rent(&cluster, number, token));
    let (clients, killed) = tokio::join!(
        futures::future::join_all(clients),
        kill_often(&cluster, seed)
    );
    killed?;
    for client in clients {
        client?;
    }

    let admin = administrator(&cluster).await?;
    let db = cluster.database().await?;
    agree(&cluster, &engines, &admin, &db).await;
    never_twice(&db).await?;

    // An engine that dies and comes back: its devices are found again.
    engines["a"].kill();
    eventually(STUBBORN, "node a is down", async || {
        let node = get(&admin, &cluster, "/api/nodes/a").await?;
        ensure!(node["status"] == "down", "{node}");
        let running: i64 = sqlx::query_scalar(
            "select count(*) from devices.devices where node = 'a' and status = 'running'",
        )
        .fetch_one(&db)
        .await?;
        ensure!(running == 0, "{running} devices of it still run");
        Ok(())
    })
    .await;
    engines["a"].start_again()?;
    agree(&cluster, &engines, &admin, &db).await;

    // A container killed, and one removed, behind our back.
    let victims: Vec<String> = sqlx::query_scalar(
        "select id from devices.devices where node = 'b' and status = 'running' order by id limit 2",
    )
    .fetch_all(&db)
    .await?;
    ensure!(victims.len() == 2, "two devices run on node b: {victims:?}");
    engines["b"].docker(&["kill", &format!("cp-{}", victims[0])])?;
    engines["b"].docker(&["rm", "-f", &format!("cp-{}", victims[1])])?;
    eventually(STUBBORN, "both are put right", async || {
        let trail = get(&admin, &cluster, "/api/nodes/b/reconciliation").await?;
        for victim in &victims {
            let repaired =
                |entry: &Value| entry["deviceId"] == victim.as_str() && entry["action"] == "repair";
            let entries = trail["data"].as_array().context("no page")?;
            ensure!(entries.iter().any(repaired), "{victim} is not in {trail}");
        }
        Ok(())
    })
    .await;
    agree(&cluster, &engines, &admin, &db).await;
    Ok(())
}

/// Creates devices, waits until they run, and stops, starts and deletes them, whatever the answers: each wish is uttered
/// until it is fulfilled.
async fn rent(cluster: &Cluster, number: usize, token: &str) -> anyhow::Result<()> {
    let client = &bearing(token)?;
    let devices = futures::stream::iter(0..DEVICES).map(|device| async move {
        let key = format!("device-{number}-{device}");
        let ask = json!({ "name": key, "cpuCores": 1, "memoryMB": 512 });
        let id = eventually(STUBBORN, "a device is created", async || {
            let url = cluster.url(GATEWAY, "/api/devices");
            let request = client.post(&url).header("idempotency-key", &key).json(&ask);
            let reply = request.timeout(ANSWER).send().await?;
            let (status, body) = (reply.status(), reply.text().await?);
            ensure!(status == 201, "{status} {body}");
            let device: Value = serde_json::from_str(&body)?;
            Ok(text(&device, "id"))
        })
        .await;
        until_status(cluster, client, &id, "running").await;
        match device % 3 {
            0 => {
                eventually(STUBBORN, "a device is deleted", async || {
                    let path = format!("/api/devices/{id}");
                    let status = send(client, cluster, Method::DELETE, &path).await?.0;
                    ensure!(status == 200 || status == 404, "{status}");
                    Ok(())
                })
                .await;
            }
            1 => wish(cluster, client, &id, "stop", "stopped").await,
            _ => {
                wish(cluster, client, &id, "stop", "stopped").await;
                wish(cluster, client, &id, "start", "running").await;
            }
        }
    });
    devices.buffer_unordered(3).collect::<Vec<()>>().await;
    Ok(())
}

/// Asks for something until the device is in the status that it leads to.
async fn wish(cluster: &Cluster, client: &Client, id: &str, action: &str, status: &str) {
    eventually(STUBBORN, &format!("device {id} is {status}"), async || {
        let path = format!("/api/devices/{id}");
        let device = get(client, cluster, &path).await?;
        if device["status"] == status {
            return Ok(());
        }
        send(client, cluster, Method::POST, &format!("{path}/{action}")).await?;
        anyhow::bail!("{device}")
    })
    .await;
}

async fn until_status(cluster: &Cluster, client: &Client, id: &str, status: &str) {
    eventually(STUBBORN, &format!("device {id} is {status}"), async || {
        let device = get(client, cluster, &format!("/api/devices/{id}")).await?;
        ensure!(device["status"] == status, "{device}");
        Ok(())
    })
    .await;
}

async fn get(client: &Client, cluster: &Cluster, path: &str) -> anyhow::Result<Value> {
    let (status, body) = send(client, cluster, Method::GET, path).await?;
    ensure!(status == 200, "{path} answered {status} {body}");
    Ok(body)
}

async fn send(
    client: &Client,
    cluster: &Cluster,
    method: Method,
    path: &str,
) -> anyhow::Result<(u16, Value)> {
    let request = client.request(method, cluster.url(GATEWAY, path));
    let reply = request.timeout(ANSWER).send().await?;
    let status = reply.status().as_u16();
    let body = reply.text().await?;
    Ok((status, serde_json::from_str(&body).unwrap_or_default()))
}

/// Kills one replica after the other, and starts it again.
async fn kill_often(cluster: &Cluster, seed: u64) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..KILLS {
        sleep(Duration::from_millis(random.random_range(0..2500))).await;
        let replica = cluster.replica(random.random_range(0..3));
        replica.kill9();
        replica.restart().await?;
    }
    Ok(())
}

/// Waits until the engines, the database and Redis say the same about every device and every port.
async fn agree(cluster: &Cluster, engines: &BTreeMap<&str, Engine>, admin: &Client, db: &PgPool) {
    eventually(STUBBORN, "all three sides agree", async || {
        let open: i64 = sqlx::query_scalar(
            "select count(*) from devices.operations where state in ('queued', 'running')",
        )
        .fetch_one(db)
        .await?;
        ensure!(open == 0, "{open} operations are open");
        let rows: Vec<(String, String, String, i32, i32, i32)> = sqlx::query_as(
            "select id, node, status, adb_port, webrtc_port, scrcpy_port from devices.devices where released_at is null",
        )
        .fetch_all(db)
        .await?;
        let (mut all, mut running) = (Held::new(), Held::new());
        for (id, node, status, adb, webrtc, scrcpy) in rows {
            let ports = [adb, webrtc, scrcpy].map(|port| port.unsigned_abs().into());
            ensure!(
                status == "running" || status == "stopped",
                "{id} is {status}"
            );
            if status == "running" {
                running.insert(id.clone(), (node.clone(), ports));
            }
            all.insert(id, (node, ports));
        }
        ensure!(!running.is_empty() && running.len() < all.len());
        let (mut made, mut bound, mut leased) = (BTreeMap::new(), Held::new(), Held::new());
        for (node, engine) in engines {
            for (id, ports) in containers(engine)? {
                let before = made.insert(id.clone(), (*node).to_owned());
                ensure!(before.is_none(), "{id} has two containers");
                if let Some(ports) = ports {
                    bound.insert(id, ((*node).to_owned(), ports));
                }
            }
            let path = format!("/api/ports/leases?node={node}&pageSize=100");
            let page = get(admin, cluster, &path).await?;
            for lease in page["data"].as_array().context("no page")? {
                let port = |name: &str| lease[name].as_u64().unwrap_or_default();
                let ports = ["adbPort", "webrtcPort", "scrcpyPort"].map(port);
                leased.insert(text(lease, "deviceId"), ((*node).to_owned(), ports));
            }
        }
        let placed: BTreeMap<String, String> =
            (all.iter().map(|(id, (node, _))| (id.clone(), node.clone()))).collect();
        ensure!(made == placed, "containers {made:?}, rows {placed:?}");
        ensure!(bound == running, "bound {bound:?}, rows {running:?}");
        ensure!(leased == all, "leased {leased:?}, rows {all:?}");
        let overbooked: i64 = sqlx::query_scalar(
            "select count(*) from devices.nodes n where used_devices <> (
                select count(*) from devices.devices d where d.node = n.name and d.released_at is null)",
        )
        .fetch_one(db)
        .await?;
        ensure!(overbooked == 0, "a node does not know how many devices it has");
        Ok(())
    })
    .await;
}

/// Every container of an engine: its device and, where it runs, the ports it is bound to.
fn containers(engine: &Engine) -> anyhow::Result<Vec<(String, Option<[u64; 3]>)>> {
    let format = "{{.Label \"cloudphone.device\"}};{{.State}};{{.Ports}}";
    let list = engine.docker(&["ps", "-a", "--format", format])?;
    let mut seen = BTreeSet::new();
    let mut containers = Vec::new();
    for line in list.lines() {
        let mut parts = line.split(';');
        let (id, state) = (parts.next().unwrap_or_default(), parts.next());
        let ports = parts.next().unwrap_or_default();
        let port = |inside: &str| -> anyhow::Result<u64> {
            let bound = ports
                .split(", ")
                .find_map(|bound| bound.strip_suffix(inside));
            let (_, port) = bound
                .and_then(|bound| bound.rsplit_once(':'))
                .with_context(|| format!("{line} has no {inside}"))?;
            ensure!(seen.insert(port.to_owned()), "{port} is bound twice");
            Ok(port.parse()?)
        };
        let ports = match state {
            Some("running") => {
                let inside = ["->5555/tcp", "->8080/tcp", "->27183/tcp"];
                let ports: Vec<u64> = inside.into_iter().map(port).collect::<Result<_, _>>()?;
                Some([ports[0], ports[1], ports[2]])
            }
            _ => None,
        };
        containers.push((id.to_owned(), ports));
    }
    Ok(containers)
}

/// No finding says that a port was in two hands at any time.
async fn never_twice(db: &PgPool) -> anyhow::Result<()> {
    let twice: i64 = sqlx::query_scalar(
        "select count(*) from (
            select node, adb_port from devices.devices where released_at is null group by 1, 2 having count(*) > 1) twice",
    )
    .fetch_one(db)
    .await?;
    ensure!(twice == 0, "{twice} ports are in two hands");
    Ok(())
}
