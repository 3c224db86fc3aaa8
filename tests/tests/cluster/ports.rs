//! Ports: never two devices with one, whoever asks, whatever is lost.

use std::collections::BTreeSet;
use std::sync::Arc;

use cluster_tests::{GATEWAY, PATIENCE, all_instances, call};
use fred::interfaces::{ClientLike as _, SortedSetsInterface as _};
use futures::StreamExt;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use testkit::{Cluster, eventually};

/// What the keys of the index begin with, for the ranges that are the default.
const INDEX: &str =
    "cloudphone:port:{local}:index:3;adb=5555-6554;webrtc=8080-9079;scrcpy=27183-28182";
const KINDS: [&str; 3] = ["adbPort", "webrtcPort", "scrcpyPort"];

/// Creates devices by concurrent clients, each at an instance of its own choice; an instance that is gone is left
/// for another, with the same idempotency key.
pub async fn create_devices(
    cluster: &Cluster,
    addresses: Vec<String>,
    count: usize,
    clients: usize,
) -> Vec<Value> {
    let addresses = Arc::new(addresses);
    let gateway = cluster.url(GATEWAY, "/api/devices");
    futures::stream::iter(0..count)
        .map(|number| {
            let (addresses, gateway) = (addresses.clone(), gateway.clone());
            async move {
                let ask = json!({ "userId": format!("user{}", number % 7), "name": format!("device{number}") });
                let key = format!("create-{number}");
                let own = format!("http://{}/devices", addresses[number % addresses.len()]);
                let mut urls = std::iter::once(own).chain(std::iter::repeat(gateway));
                eventually(PATIENCE, "a device is created", async || {
                    let url = urls.next().unwrap_or_default();
                    let request = testkit::fresh().post(&url).header("idempotency-key", &key).json(&ask);
                    let response = request.send().await?;
                    let (status, body) = (response.status(), response.text().await?);
                    anyhow::ensure!(status == StatusCode::CREATED, "{status} {body}");
                    Ok(serde_json::from_str(&body)?)
                })
                .await
            }
        })
        .buffer_unordered(clients)
        .collect()
        .await
}

/// Fails where any number was given twice.
pub fn assert_distinct(devices: &[Value]) {
    for kind in KINDS {
        let ports: BTreeSet<u64> = devices
            .iter()
            .filter_map(|device| device[kind].as_u64())
            .collect();
        assert_eq!(ports.len(), devices.len(), "{kind} was given twice");
    }
}

#[tokio::test]
async fn sixty_devices_by_thirty_clients_get_a_hundred_and_eighty_ports() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let addresses = all_instances(&cluster, "devices", 3).await;

    let devices = create_devices(&cluster, addresses, 60, 30).await;

    assert_distinct(&devices);
    let stored: i64 = sqlx::query_scalar(
        "select count(distinct adb_port) + count(distinct webrtc_port) + count(distinct scrcpy_port) from devices.devices",
    )
    .fetch_one(&cluster.database().await?)
    .await?;
    assert_eq!(stored, 180);
    Ok(())
}

#[tokio::test]
async fn a_device_runs_and_answers_on_its_three_ports() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;

    let device = create_devices(&cluster, all_instances(&cluster, "devices", 3).await, 1, 1)
        .await
        .remove(0);

    for kind in KINDS {
        let address = format!("{}:{}", cluster.address(), device[kind]);
        eventually(
            PATIENCE,
            &format!("{kind} answers at {address}"),
            async || {
                tokio::net::TcpStream::connect(&address).await?;
                Ok(())
            },
        )
        .await;
    }
    Ok(())
}

#[tokio::test]
async fn a_redis_that_lost_everything_gives_no_port_twice_and_loses_none() -> anyhow::Result<()> {
    let cluster = Cluster::builder(3)
        .env("DEVICE_PORT_LEASE_SECONDS", 3)
        .env("DEVICE_PORT_QUARANTINE_SECONDS", 0.1)
        .start()
        .await?;
    let addresses = all_instances(&cluster, "devices", 3).await;
    let redis = cluster.redis().await?;

    let creating = create_devices(&cluster, addresses, 60, 30);
    let flushing = async {
        for wanted in [10, 25, 40] {
            eventually(PATIENCE, "some devices are created", async || {
                let count = count_devices(&cluster).await?;
                anyhow::ensure!(count >= wanted, "{count}");
                Ok(())
            })
            .await;
            redis.flushall::<()>(false).await.unwrap();
        }
    };
    let (devices, ()) = tokio::join!(creating, flushing);

    assert_distinct(&devices);
    assert_eq!(count_devices(&cluster).await?, 60);
    // What was leased in vain comes back, so that in the end Redis and the database agree on every port.
    for (kind, device_port) in ["adb", "webrtc", "scrcpy"].into_iter().zip(KINDS) {
        let what = format!("every {kind} port is free but those of devices");
        eventually(PATIENCE, &what, async || {
            let free: Vec<u64> = redis
                .zrange(
                    format!("{INDEX}:free:{kind}"),
                    0,
                    -1,
                    None,
                    false,
                    None,
                    false,
                )
                .await?;
            let held = devices
                .iter()
                .filter_map(|device| device[device_port].as_u64());
            let held: BTreeSet<u64> = held.collect();
            anyhow::ensure!(free.len() == 940, "{} are free", free.len());
            anyhow::ensure!(free.iter().all(|port| !held.contains(port)), "one is held");
            Ok(())
        })
        .await;
    }
    Ok(())
}

#[tokio::test]
async fn a_deleted_device_is_gone_on_every_replica() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let addresses = all_instances(&cluster, "devices", 3).await;
    let ask = json!({ "name": "phone" });
    let token = cluster_tests::register(&cluster, "alice").await?;
    let client = testkit::fresh();
    let created = client
        .post(cluster.url(GATEWAY, "/api/devices"))
        .bearer_auth(&token)
        .json(&ask)
        .send()
        .await?;
    let id = cluster_tests::text(&created.json().await?, "id");

    let deleted = client
        .delete(cluster.url(GATEWAY, &format!("/api/devices/{id}")))
        .bearer_auth(&token)
        .send()
        .await?;

    assert_eq!(deleted.status(), StatusCode::OK);
    for address in addresses {
        let url = format!("http://{address}/devices/{id}");
        assert_eq!(
            client.get(url).bearer_auth(&token).send().await?.status(),
            StatusCode::NOT_FOUND
        );
    }
    assert_eq!(
        call(
            Method::GET,
            cluster.url(GATEWAY, &format!("/api/devices/{id}")),
            None
        )
        .await?
        .status,
        StatusCode::UNAUTHORIZED
    );
    Ok(())
}

pub async fn count_devices(cluster: &Cluster) -> anyhow::Result<i64> {
    let db = cluster.database().await?;
    Ok(sqlx::query_scalar("select count(*) from devices.devices")
        .fetch_one(&db)
        .await?)
}
