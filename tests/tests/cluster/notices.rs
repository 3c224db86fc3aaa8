//! Notifications of whole replicas: told to everybody, called out, and seen online, though replicas are killed.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::ensure;
use cluster_tests::operator::{administrator, bearing};
use cluster_tests::{
    GATEWAY, NOTIFICATIONS, PATIENCE, all_instances, call_with, register, sockets, text,
};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use testkit::{Cluster, eventually};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A server that takes its time for each call, and remembers their ids.
struct Receiver {
    address: SocketAddr,
    ids: Arc<Mutex<Vec<String>>>,
    _serving: JoinSet<()>,
}

impl Receiver {
    async fn open() -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let ids = Arc::new(Mutex::new(Vec::new()));
        let mut serving = JoinSet::new();
        let taken = ids.clone();
        serving.spawn(async move {
            let mut calls = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                calls.spawn(take(stream, taken.clone()));
            }
        });
        Ok(Self {
            address,
            ids,
            _serving: serving,
        })
    }

    fn ids(&self) -> Vec<String> {
        self.ids.lock().expect("nobody panics with it").clone()
    }
}

async fn take(stream: TcpStream, ids: Arc<Mutex<Vec<String>>>) -> anyhow::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut id, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        match line.trim_end().split_once(": ") {
            None if line.trim_end().is_empty() => break,
            Some((name, value)) if name.eq_ignore_ascii_case("webhook-id") => {
                value.clone_into(&mut id)
            }
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse()?
            }
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    ids.lock().expect("nobody panics with it").push(id);
    tokio::time::sleep(Duration::from_millis(100)).await;
    stream
        .write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
        .await?;
    Ok(())
}

async fn ask(
    who: &Client,
    cluster: &Cluster,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> anyhow::Result<Value> {
    let reply = call_with(who, method, cluster.url(GATEWAY, path), body).await?;
    ensure!(reply.status.is_success(), "{path}: {reply:?}");
    Ok(reply.body)
}

#[tokio::test]
async fn everybody_who_registered_is_told_and_seen_online_on_whichever_replica()
-> anyhow::Result<()> {
    let cluster = Cluster::start(2).await?;
    all_instances(&cluster, "users", 2).await;
    let (alice, bob) = (
        register(&cluster, "alice").await?,
        register(&cluster, "bob").await?,
    );
    let admin = administrator(&cluster).await?;
    let mut socket = sockets::connect(
        &cluster.websocket_url(NOTIFICATIONS, &format!("/notifications?token={alice}")),
    )
    .await?;
    sockets::next(&mut socket, "unread-count").await?;

    let body = json!({ "title": "News", "message": "Hello all" });
    let begun = ask(
        &admin,
        &cluster,
        Method::POST,
        "/api/notifications/broadcast",
        Some(body),
    )
    .await?;

    // Two who registered, and the administrator.
    ensure!(begun["recipients"] == 3, "{begun:#}");
    let path = format!("/api/notifications/broadcasts/{}", text(&begun, "id"));
    eventually(PATIENCE, "everybody is told", async || {
        let shown = ask(&admin, &cluster, Method::GET, &path, None).await?;
        ensure!(shown["state"] == "done" && shown["told"] == 3, "{shown:#}");
        Ok(())
    })
    .await;
    loop {
        let told = sockets::next(&mut socket, "notification").await?;
        if told["title"] == "News" {
            break;
        }
    }
    let list = ask(
        &bearing(&bob)?,
        &cluster,
        Method::GET,
        "/api/notifications",
        None,
    )
    .await?;
    ensure!(list.to_string().contains("Hello all"), "{list:#}");
    eventually(PATIENCE, "alice is online", async || {
        let online = ask(
            &admin,
            &cluster,
            Method::GET,
            "/api/notifications/presence",
            None,
        )
        .await?;
        ensure!(
            online["total"] == 1 && online["data"][0]["sockets"] == 1,
            "{online:#}"
        );
        Ok(())
    })
    .await;
    let dead = ask(
        &admin,
        &cluster,
        Method::GET,
        "/api/gateway/dead-letters",
        None,
    )
    .await?;
    ensure!(dead["total"] == 0, "{dead:#}");
    let replay = "/api/gateway/dead-letters/notifications/none/replay";
    let refused = call_with(&admin, Method::POST, cluster.url(GATEWAY, replay), None).await?;
    ensure!(refused.status == 404, "{refused:?}");
    for path in ["/api/gateway/dead-letters", "/api/notifications/deliveries"] {
        let refused = call_with(
            &bearing(&bob)?,
            Method::GET,
            cluster.url(GATEWAY, path),
            None,
        )
        .await?;
        ensure!(refused.status == 403, "{path}: {refused:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_a_killed_replica_was_delivering_the_other_one_delivers() -> anyhow::Result<()> {
    let cluster = Cluster::builder(2)
        .env("NOTIFICATIONS_WEBHOOK_LOOPBACK", "true")
        .env("NOTIFICATIONS_DELIVERY_LEASE_SECONDS", "3")
        .start()
        .await?;
    all_instances(&cluster, "notifications", 2).await;
    let receiver = Receiver::open().await?;
    let alice = bearing(&register(&cluster, "alice").await?)?;
    let me = ask(&alice, &cluster, Method::GET, "/api/auth/me", None).await?;
    let url = json!({ "url": format!("http://{}/hook", receiver.address) });
    ask(
        &alice,
        &cluster,
        Method::PUT,
        "/api/notifications/webhook",
        Some(url),
    )
    .await?;

    let mut sent = BTreeSet::new();
    for number in 0..30 {
        let body = json!({ "userId": text(&me, "id"), "message": format!("{number}") });
        let told = ask(
            &alice,
            &cluster,
            Method::POST,
            "/api/notifications",
            Some(body),
        )
        .await?;
        sent.insert(text(&told, "id"));
        if number == 15 {
            eventually(PATIENCE, "a call is under way", async || {
                ensure!(!receiver.ids().is_empty(), "none yet");
                Ok(())
            })
            .await;
            // One after the other: either may hold the call.
            for replica in cluster.replicas() {
                replica.kill9();
                replica.wait_exit().await?;
                replica.begin_again()?;
                cluster.ready().await?;
            }
        }
    }

    let db = cluster.database().await?;
    eventually(PATIENCE, "everything is delivered", async || {
        let open: i64 = sqlx::query_scalar("select count(*) from notifications.deliveries where channel = 'webhook' and state <> 'sent'")
            .fetch_one(&db)
            .await?;
        ensure!(open == 0, "{open} are not");
        Ok(())
    })
    .await;
    let delivered: BTreeSet<String> = receiver.ids().into_iter().collect();
    let wanted: Vec<(String, String)> = sqlx::query_as(
        "select id, notification_id from notifications.deliveries where channel = 'webhook'",
    )
    .fetch_all(&db)
    .await?;
    ensure!(
        sent.iter().all(|id| wanted.iter().any(|(_, of)| of == id)),
        "{wanted:?}"
    );
    ensure!(
        wanted.iter().all(|(id, _)| delivered.contains(id)),
        "{delivered:?}"
    );
    Ok(())
}
