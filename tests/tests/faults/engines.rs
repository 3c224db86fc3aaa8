//! Two real engines and replicas that are killed: what engines have, what the database says and what Redis leases are the
//! same in the end, and nothing was doubled meanwhile. Skipped where no engines are wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
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
use tokio_util::sync::CancellationToken;

const CLIENTS: usize = 20;
/// Devices of each client, of which two fifths are deleted and a fifth stopped in the end; `ENGINES_DEVICES` tells otherwise.
const DEVICES: usize = 5;
/// Most kills of replicas while the clients are at work.
const KILLS: usize = 40;
/// How long anything may take on a machine that has more to do.
const STUBBORN: Duration = Duration::from_secs(480);
const ANSWER: Duration = Duration::from_secs(8);

/// A device as one of the three sides has it: its node, its ADB, WebRTC and scrcpy port.
type Held = BTreeMap<String, (String, [u64; 3])>;

#[tokio::test]
async fn engines_database_and_redis_agree_whoever_is_killed() -> anyhow::Result<()> {
    let start = || Engine::for_test(Engine::start);
    let (Some(a), Some(b)) = (start(), start()) else {
        return Ok(());
    };
    let engines = BTreeMap::from([("a", Arc::new(a)), ("b", Arc::new(b))]);
    let nodes: Vec<Value> = engines
        .iter()
        .zip(1..)
        .map(|((name, engine), number)| {
            let pid = std::process::id();
            let address = format!("127.{}.{}.{}", 100 + number, pid / 250 % 250, pid % 250 + 1);
            json!({ "name": name, "endpoint": engine.endpoint(), "address": address, "devices": 120 })
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
        .env("NODE_PARALLEL_MOVES", 4)
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
    let done = CancellationToken::new();
    let at_work = async {
        let outcomes = futures::future::join_all(clients).await;
        done.cancel();
        outcomes
    };
    let (clients, killed, watched) = tokio::join!(
        at_work,
        kill_often(&cluster, seed, &done),
        watch(&engines, &done)
    );
    let (kills, looks) = (killed?, watched?);
    eprintln!("{kills} replicas were killed; the engines' lists were read {looks} times");
    for client in clients {
        client?;
    }

    let admin = administrator(&cluster).await?;
    let db = cluster.database().await?;
    agree(&cluster, &engines, &admin, &db).await;

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

    // A node that is drained while replicas die: all that it had is on the other one.
    let done = CancellationToken::new();
    let drained = async {
        let drained = drain(&cluster, &admin, "b").await;
        done.cancel();
        drained
    };
    let (drained, killed) = tokio::join!(drained, kill_often(&cluster, seed, &done));
    drained?;
    eprintln!("{} replicas were killed during the drain", killed?);
    agree(&cluster, &engines, &admin, &db).await;
    for command in [
        &["ps", "-aq"][..],
        &["images", "-q", "--filter", "label=cloudphone.device"],
    ] {
        let left = engines["b"].docker(command)?;
        ensure!(left.trim().is_empty(), "left on node b: {left}");
    }
    Ok(())
}

/// Has a node give its devices away, and waits until it has none.
async fn drain(cluster: &Cluster, admin: &Client, node: &str) -> anyhow::Result<()> {
    eventually(STUBBORN, "a drain is accepted", async || {
        let url = cluster.url(GATEWAY, &format!("/api/nodes/{node}/drain"));
        let reply = admin
            .post(url)
            .json(&json!({}))
            .timeout(ANSWER)
            .send()
            .await?;
        ensure!(reply.status() == 200, "{}", reply.status());
        Ok(())
    })
    .await;
    eventually(STUBBORN, "a node has given its devices away", async || {
        let node = get(admin, cluster, &format!("/api/nodes/{node}")).await?;
        ensure!(node["drain"]["left"] == 0, "{}", node["drain"]);
        Ok(())
    })
    .await;
    Ok(())
}

/// Creates devices, waits until they run, and stops, starts and deletes them, whatever the answers: each wish is uttered
/// until it is fulfilled.
async fn rent(cluster: &Cluster, number: usize, token: &str) -> anyhow::Result<()> {
    let client = &bearing(token)?;
    let count = match std::env::var("ENGINES_DEVICES") {
        Ok(count) => count.parse()?,
        Err(_) => DEVICES,
    };
    let devices = futures::stream::iter(0..count).map(|device| async move {
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
        match device % 5 {
            0 => delete(cluster, client, &id).await,
            1 => wish(cluster, client, &id, "stop", "stopped").await,
            2 => {
                wish(cluster, client, &id, "stop", "stopped").await;
                wish(cluster, client, &id, "start", "running").await;
            }
            3 => {
                let snapshot = snapshot(cluster, client, &id).await;
                restore(cluster, client, &id, &snapshot).await;
            }
            _ => {
                snapshot(cluster, client, &id).await;
                delete(cluster, client, &id).await;
            }
        }
    });
    devices.buffer_unordered(2).collect::<Vec<()>>().await;
    Ok(())
}

async fn delete(cluster: &Cluster, client: &Client, id: &str) {
    eventually(STUBBORN, "a device is deleted", async || {
        let path = format!("/api/devices/{id}");
        let (status, body) = send(client, cluster, Method::DELETE, &path).await?;
        ensure!(status == 200 || status == 404, "{status} {body}");
        Ok(())
    })
    .await;
}

/// Takes a snapshot, and waits until it is ready.
async fn snapshot(cluster: &Cluster, client: &Client, id: &str) -> String {
    let url = cluster.url(GATEWAY, &format!("/api/devices/{id}/snapshots"));
    let snapshot = eventually(STUBBORN, "a snapshot is taken", async || {
        let request = (client.post(&url)).header("idempotency-key", format!("snapshot-{id}"));
        let request = request.json(&json!({ "name": "as it was" }));
        let reply = request.timeout(ANSWER).send().await?;
        let (status, body) = (reply.status(), reply.text().await?);
        ensure!(status == 201, "{status} {body}");
        Ok(text(&serde_json::from_str(&body)?, "id"))
    })
    .await;
    eventually(STUBBORN, "the snapshot is ready", async || {
        let snapshot = get(client, cluster, &format!("/api/snapshots/{snapshot}")).await?;
        ensure!(snapshot["status"] == "ready", "{snapshot}");
        Ok(())
    })
    .await;
    snapshot
}

/// Restores a snapshot, and waits until the device runs on what it kept.
async fn restore(cluster: &Cluster, client: &Client, id: &str, snapshot: &str) {
    eventually(STUBBORN, "a restore is accepted", async || {
        let path = format!("/api/devices/{id}/snapshots/{snapshot}/restore");
        let (status, body) = send(client, cluster, Method::POST, &path).await?;
        ensure!((200..300).contains(&status), "{status} {body}");
        Ok(())
    })
    .await;
    eventually(STUBBORN, "the snapshot is restored", async || {
        let snapshot = get(client, cluster, &format!("/api/snapshots/{snapshot}")).await?;
        ensure!(snapshot["status"] == "ready", "{snapshot}");
        let device = get(client, cluster, &format!("/api/devices/{id}")).await?;
        ensure!(device["status"] == "running", "{device}");
        Ok(())
    })
    .await;
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

/// Kills one replica after the other, and starts it again, while the clients are at work; how many it were.
async fn kill_often(
    cluster: &Cluster,
    seed: u64,
    done: &CancellationToken,
) -> anyhow::Result<usize> {
    let mut random = StdRng::seed_from_u64(seed);
    for kills in 0..KILLS {
        let pause = sleep(Duration::from_millis(random.random_range(0..2500)));
        if done.run_until_cancelled(pause).await.is_none() {
            return Ok(kills);
        }
        let replica = cluster.replica(random.random_range(0..3));
        replica.kill9();
        // On a machine that has more to do it may give up on stores that are slow, as its supervisor would see.
        eventually(STUBBORN, "a killed replica is back", async || {
            replica.restart().await
        })
        .await;
    }
    Ok(KILLS)
}

/// Reads what the engines say of their containers again and again: no device has two, and no port is bound twice. How often
/// it looked.
async fn watch(
    engines: &BTreeMap<&'static str, Arc<Engine>>,
    done: &CancellationToken,
) -> anyhow::Result<usize> {
    let mut looks = 0;
    loop {
        let mut made = BTreeMap::new();
        for (node, engine) in engines {
            let engine = engine.clone();
            let containers = tokio::task::spawn_blocking(move || containers(&engine)).await??;
            for (id, _) in containers {
                let before = made.insert(id.clone(), node);
                ensure!(before.is_none(), "{id} is on {node} and on {before:?}");
            }
        }
        looks += 1;
        let pause = sleep(Duration::from_millis(300));
        if done.run_until_cancelled(pause).await.is_none() {
            return Ok(looks);
        }
    }
}

/// Waits until the engines, the database and Redis say the same about every device and every port.
async fn agree(
    cluster: &Cluster,
    engines: &BTreeMap<&'static str, Arc<Engine>>,
    admin: &Client,
    db: &PgPool,
) {
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
            let path = format!("/api/ports/leases?node={node}&pageSize=200");
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
        let snapshots: BTreeSet<String> = sqlx::query_scalar(
            "select id from devices.snapshots union select restored_from from devices.devices where released_at is null and restored_from is not null",
        )
        .fetch_all(db)
        .await?
        .into_iter()
        .collect();
        let mut images = BTreeSet::new();
        for engine in engines.values() {
            let filter = ["images", "--filter", "label=cloudphone.snapshot"];
            let list = engine.docker(&[&filter[..], &["--format", "{{.Tag}}"]].concat())?;
            images.extend(list.lines().map(str::to_owned));
        }
        ensure!(images == snapshots, "images {images:?}, snapshots {snapshots:?}");
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
        let bound = parts.next().unwrap_or_default();
        // One that has just begun to run may be listed without its ports.
        let port = |inside: &str| -> Option<u64> {
            let bound = bound
                .split(", ")
                .find_map(|bound| bound.strip_suffix(inside));
            bound?.rsplit_once(':')?.1.parse().ok()
        };
        let ports = ["->5555/tcp", "->8080/tcp", "->27183/tcp"].map(port);
        let ports = match (state, ports) {
            (Some("running"), [Some(adb), Some(webrtc), Some(scrcpy)]) => {
                Some([adb, webrtc, scrcpy])
            }
            _ => None,
        };
        for port in ports.into_iter().flatten() {
            ensure!(seen.insert(port), "{port} is bound twice: {list}");
        }
        containers.push((id.to_owned(), ports));
    }
    Ok(containers)
}
