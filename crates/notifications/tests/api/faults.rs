//! What users still get when Redis is away, forgets, or comes back, and when they do not read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use platform::lifecycle::Tasks;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::app::{Cluster, Instance, SOON, Socket, beside, until, with_sweep, without_sweep};

/// The way to Redis, which can be cut.
struct Wire {
    /// `user:password@`, or nothing.
    login: String,
    address: SocketAddr,
    open: watch::Sender<bool>,
}

impl Wire {
    async fn new(target: &str, tasks: &Tasks) -> Arc<Self> {
        let target = target.trim_start_matches("redis://").trim_end_matches('/');
        let at = target.rfind('@').map_or(0, |at| at + 1);
        let (login, target) = (target[..at].to_owned(), target[at..].to_owned());
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let (open, is_open) = watch::channel(true);
        let carriers = tasks.clone();
        tasks.spawn("tests.wire", async move {
            loop {
                let (mut near, _) = listener.accept().await?;
                let (target, mut is_open) = (target.clone(), is_open.clone());
                carriers.spawn("tests.wire", async move {
                    if *is_open.borrow_and_update() {
                        let mut far = TcpStream::connect(&target).await?;
                        tokio::select! {
                            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                            _ = is_open.changed() => {}
                        }
                    }
                    Ok(())
                });
            }
        });
        Arc::new(Self {
            login,
            address,
            open,
        })
    }

    fn url(&self) -> String {
        format!("redis://{}{}", self.login, self.address)
    }
}

/// A cluster whose second instance reaches Redis by a wire.
async fn wired(db: PgPool, config: notifications::Config, tasks: &Tasks) -> (Cluster, Arc<Wire>) {
    let platform = platform::testing::platform(db).await;
    let wire = Wire::new(&platform.redis_url, tasks).await;
    let other = beside(&platform, &wire.url()).await;
    (Cluster::of(platform, other, config).await, wire)
}

async fn ready(socket: &mut Socket) {
    socket.event("unread-count").await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn without_redis_sockets_stay_new_ones_connect_and_nothing_is_lost(db: PgPool) {
    let tasks = Tasks::new();
    let (cluster, wire) = wired(db, with_sweep(), &tasks).await;
    let mut old = cluster.second.connect("/notifications?userId=alice").await;
    ready(&mut old).await;

    wire.open.send_replace(false);
    let mut new = cluster.second.connect("/notifications?userId=alice").await;
    ready(&mut new).await;
    cluster.first.send("alice", "from the other side").await;
    cluster.second.send("alice", "from here").await;

    for socket in [&mut old, &mut new] {
        assert_eq!(socket.event("notification").await["seq"], 1);
        assert_eq!(socket.event("notification").await["seq"], 2);
    }
    wire.open.send_replace(true);
    cluster.first.send("alice", "afterwards").await;
    assert_eq!(old.event("notification").await["seq"], 3);
    assert!(old.is_quiet().await && new.event("notification").await["seq"] == 3);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn when_redis_is_back_its_news_are_heard_again(db: PgPool) {
    let tasks = Tasks::new();
    let (cluster, wire) = wired(db, without_sweep(), &tasks).await;
    let mut socket = cluster.second.connect("/notifications?userId=alice").await;
    ready(&mut socket).await;

    wire.open.send_replace(false);
    cluster.first.send("alice", "missed").await;
    assert!(socket.is_quiet().await);
    wire.open.send_replace(true);

    // No sweep by the clock here: the reconnection itself makes it good, and after it news come as before.
    assert_eq!(socket.event("notification").await["message"], "missed");
    cluster.first.send("alice", "heard").await;
    assert_eq!(socket.event("notification").await["message"], "heard");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn rooms_reach_over_instances_again_when_redis_is_back(db: PgPool) {
    let tasks = Tasks::new();
    let (cluster, wire) = wired(db, with_sweep(), &tasks).await;
    let mut socket = cluster
        .second
        .connect("/socket.io/?EIO=4&transport=websocket")
        .await;
    socket.text().await;
    socket.say("40{}").await;
    while !socket.text().await.contains("welcome") {}
    socket.say(r#"42["join_room",{"room":"lobby"}]"#).await;
    while !socket.text().await.contains("room_joined") {}

    wire.open.send_replace(false);
    tokio::time::sleep(Duration::from_millis(200)).await;
    wire.open.send_replace(true);

    let heard = tokio::sync::Mutex::new(socket);
    until("a message to the room", async || {
        cluster
            .first
            .state
            .send_to_room("lobby", &json!({ "text": "hi" }))
            .await;
        let mut socket = heard.lock().await;
        let text = tokio::time::timeout(Duration::from_millis(200), socket.text()).await;
        text.is_ok_and(|text| text.contains(r#"["message",{"text":"hi"}]"#))
    })
    .await;
}

/// Stores so much at once that no kernel takes it all; the sweep finds it.
async fn flood(cluster: &Cluster, user: &str, count: i64) {
    let platform = &cluster.first.platform;
    let mut tx = platform.db.begin().await.unwrap();
    sqlx::query("insert into notifications.inboxes (user_id, last_seq, unread, updated_at) values ($1, $2, $2, $3)")
        .bind(user)
        .bind(count)
        .bind(platform.clock.now())
        .execute(&mut *tx)
        .await
        .unwrap();
    sqlx::query(
        "insert into notifications.notifications
            (id, user_id, seq, kind, title, message, priority, status, delivery_status, channels, data, created_at)
        select 'n' || seq, $1, seq, 'system', 't', 'm', 'normal', 'unread', 'sent', '[]',
            jsonb_build_object('text', repeat('x', 16000)), $3
        from generate_series(1, $2) as seq",
    )
    .bind(user)
    .bind(count)
    .bind(platform.clock.now())
    .execute(&mut *tx)
    .await
    .unwrap();
    tx.commit().await.unwrap();
}

/// Reads to the end; the last number, and the code of the reason if there was one.
async fn read_out(
    socket: &mut Socket,
    event_of: impl Fn(&str) -> Option<(String, Value)>,
) -> (i64, Option<Value>) {
    let (mut last, mut reason) = (0, None);
    while let Some(Ok(message)) = tokio::time::timeout(SOON, socket.0.next()).await.unwrap() {
        match message.to_text().ok().and_then(&event_of) {
            Some((name, data)) if name == "notification" => {
                assert_eq!(data["seq"], last + 1);
                last += 1;
            }
            Some((name, data)) if name == "error" => reason = Some(data["code"].clone()),
            _ => {}
        }
    }
    (last, reason)
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn who_does_not_read_is_cut_and_gets_the_rest_later(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let mut slow = cluster.second.connect("/notifications?userId=alice").await;
    ready(&mut slow).await;

    flood(&cluster, "alice", 1_000).await;
    until("the cut", async || cluster.second.state.open_sockets() == 0).await;

    let (last, reason) = read_out(&mut slow, |text| {
        let mut frame: Value = serde_json::from_str(text).ok()?;
        Some((frame["event"].as_str()?.to_owned(), frame["data"].take()))
    })
    .await;
    assert!(last < 1_000 && reason.is_none_or(|code| code == "SLOW_CONSUMER"));
    let mut again = cluster
        .first
        .connect(&format!("/notifications?userId=alice&lastSeq={last}"))
        .await;
    for seq in last + 1..=1_000 {
        assert_eq!(again.event("notification").await["seq"], seq);
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_socketio_client_that_does_not_read_loses_its_connection_and_nothing_else(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let event_of = |text: &str| {
        let mut array: Value = serde_json::from_str(text.strip_prefix("42")?).ok()?;
        Some((array[0].as_str()?.to_owned(), array[1].take()))
    };
    let connect = async |instance: &Instance, last_seq: i64| {
        let mut socket = instance
            .connect("/socket.io/?EIO=4&transport=websocket&userId=alice")
            .await;
        socket.text().await;
        socket
            .say(format!("40{}", json!({ "lastSeq": last_seq })))
            .await;
        while !socket.text().await.contains("welcome") {}
        socket
    };
    let mut slow = connect(&cluster.second, 0).await;
    while !slow.text().await.contains("unread-count") {}

    flood(&cluster, "alice", 1_000).await;
    until("the cut", async || cluster.second.state.open_sockets() == 0).await;
    let (last, _) = read_out(&mut slow, event_of).await;
    assert!(last < 1_000);
    let mut again = connect(&cluster.first, last).await;
    let mut seq = last;
    while seq < 1_000 {
        match again.text().await.as_str() {
            "2" => again.say("3").await,
            text => {
                if let Some((name, data)) = event_of(text)
                    && name == "notification"
                {
                    seq += 1;
                    assert_eq!(data["seq"], seq);
                }
            }
        }
    }
}
