//! The plain WebSocket.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::SinkExt;
use serde_json::json;
use sqlx::PgPool;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::app::{Cluster, id, with_sweep, without_sweep};

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_socket_on_one_instance_gets_what_is_sent_through_the_other(db: PgPool) {
    let cluster = Cluster::new(db, without_sweep()).await;
    let mut socket = cluster.second.connect("/notifications").await;
    let welcome = socket.event("welcome").await;
    assert_eq!(welcome["instance"], "instance-1");
    assert!(
        welcome["clientId"].is_string()
            && welcome["timestamp"].is_string()
            && welcome["message"].is_string()
    );
    let sent = cluster.first.send("test", "Hello").await;

    assert_eq!(socket.event("notification").await, sent);
    assert_eq!(socket.event("unread-count").await["count"], 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_client_that_says_goodbye_is_answered_in_kind(db: PgPool) {
    let cluster = Cluster::new(db, without_sweep()).await;
    let mut socket = cluster.first.connect("/notifications").await;
    socket.event("welcome").await;
    let goodbye = CloseFrame {
        code: CloseCode::Normal,
        reason: "bye".into(),
    };

    socket
        .0
        .send(Message::Close(Some(goodbye.clone())))
        .await
        .unwrap();

    assert_eq!(socket.closed().await, Some(goodbye));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_user_gets_only_their_own_in_order(db: PgPool) {
    let cluster = Cluster::new(db, without_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let mut socket = cluster
        .second
        .connect(&format!("/ws/notifications?token={alice}"))
        .await;
    socket.event("unread-count").await;

    for n in 1..=30 {
        let instance = if n % 2 == 0 {
            &cluster.first
        } else {
            &cluster.second
        };
        instance.send("bob", "for bob").await;
        instance.send("alice", &format!("{n}")).await;
    }

    for n in 1..=30 {
        let notification = socket.event("notification").await;
        assert_eq!(
            (&notification["seq"], &notification["message"]),
            (&json!(n), &json!(format!("{n}")))
        );
    }
    assert!(socket.is_quiet().await);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_client_that_comes_back_gets_exactly_what_it_missed(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    // More than a page, more than a queue holds.
    for n in 1..=450 {
        cluster.first.send("alice", &format!("{n}")).await;
    }
    let gone = cluster
        .first
        .get("/notifications?pageSize=1", &alice)
        .await
        .body["data"][0]["id"]
        .clone();
    cluster
        .first
        .ask(
            "DELETE",
            &format!("/notifications/{}", gone.as_str().unwrap()),
            &alice,
            json!(null),
        )
        .await;

    let mut socket = cluster
        .second
        .connect(&format!("/notifications?token={alice}&lastSeq=20"))
        .await;
    cluster.first.send("alice", "live").await;

    for n in (21..=449).chain([451]) {
        assert_eq!(socket.event("notification").await["seq"], n);
    }
    cluster.first.send("alice", "later").await;
    assert_eq!(socket.event("notification").await["seq"], 452);
    assert!(socket.is_quiet().await);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn clients_that_come_while_it_rains_miss_nothing(db: PgPool) {
    let cluster = Cluster::new(db, without_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let rain = async {
        for n in 1..=150 {
            cluster.first.send("alice", &format!("{n}")).await;
        }
    };
    let comers = async {
        for n in 0..10 {
            let instance = if n % 2 == 0 {
                &cluster.first
            } else {
                &cluster.second
            };
            let mut socket = instance
                .connect(&format!("/notifications?token={alice}&lastSeq=0"))
                .await;
            for expected in 1..=(n * 10 + 1) {
                assert_eq!(socket.event("notification").await["seq"], expected);
            }
        }
    };

    tokio::join!(rain, comers);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn reading_on_one_instance_shows_on_the_other(db: PgPool) {
    let cluster = Cluster::new(db, without_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let mut socket = cluster
        .second
        .connect(&format!("/notifications?token={alice}"))
        .await;
    assert_eq!(socket.event("unread-count").await["count"], 0);
    cluster.first.send("alice", "m").await;
    assert_eq!(socket.event("unread-count").await["count"], 1);

    cluster
        .first
        .ask("POST", "/notifications/read-all", &alice, json!({}))
        .await;

    assert_eq!(socket.event("unread-count").await["count"], 0);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_a_client_says_is_answered(db: PgPool) {
    let cluster = Cluster::closed_sandbox(db).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let mut socket = cluster
        .first
        .connect(&format!("/notifications?token={alice}"))
        .await;
    socket.event("welcome").await;

    for (said, event, member, value) in [
        (
            json!({ "event": "ping" }).to_string(),
            "pong",
            "",
            json!(null),
        ),
        (
            json!({ "event": "subscribe", "data": { "userId": "alice" } }).to_string(),
            "subscribed",
            "userId",
            json!("alice"),
        ),
        (
            json!({ "event": "subscribe", "data": { "userId": "bob" } }).to_string(),
            "error",
            "code",
            json!("FORBIDDEN"),
        ),
        (
            json!({ "event": "subscribe", "data": {} }).to_string(),
            "error",
            "code",
            json!("VALIDATION_FAILED"),
        ),
        (
            json!({ "event": "unsubscribe", "data": { "userId": "alice" } }).to_string(),
            "unsubscribed",
            "userId",
            json!("alice"),
        ),
        (
            json!({ "event": "shout" }).to_string(),
            "error",
            "code",
            json!("UNKNOWN_EVENT"),
        ),
        ("{".to_owned(), "error", "code", json!("VALIDATION_FAILED")),
    ] {
        socket.say(said.clone()).await;
        assert_eq!(socket.event(event).await[member], value, "{said}");
    }
    cluster
        .first
        .ask(
            "POST",
            "/notifications",
            &alice,
            json!({ "userId": "alice", "message": "m" }),
        )
        .await;
    assert!(socket.is_quiet().await);

    socket.say("x".repeat(65 * 1024)).await;
    socket.closed().await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn without_the_sandbox_only_a_token_opens(db: PgPool) {
    let cluster = Cluster::closed_sandbox(db).await;
    let alice = cluster.sign_in("alice", &["user"]).await;

    for (path, status) in [
        ("/notifications", 401),
        ("/notifications?userId=alice", 401),
        ("/ws/notifications?token=x", 401),
        (&format!("/notifications?token={alice}&lastSeq=x"), 400),
    ] {
        match cluster.first.try_connect(path).await {
            Err(Error::Http(response)) => assert_eq!(response.status(), status, "{path}"),
            other => panic!("{path}: {:?}", other.err()),
        }
    }
    cluster
        .first
        .connect(&format!("/notifications?token={alice}"))
        .await
        .event("welcome")
        .await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn in_the_sandbox_a_name_is_believed(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let mut socket = cluster
        .first
        .connect("/notifications?userId=alice&lastSeq=0")
        .await;

    cluster.first.send("bob", "not hers").await;
    cluster.second.send("alice", "hers").await;

    assert_eq!(socket.event("notification").await["message"], "hers");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_socket_ends_with_its_session(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let mut socket = cluster
        .first
        .connect(&format!("/notifications?token={alice}"))
        .await;
    let mut other = cluster.second.connect("/notifications?userId=alice").await;
    socket.event("welcome").await;
    other.event("welcome").await;
    let platform = &cluster.first.platform;

    platform
        .auth
        .sessions()
        .end_others(&id("alice"), None, platform.clock.now())
        .await
        .unwrap();

    assert_eq!(socket.event("error").await["code"], "UNAUTHENTICATED");
    assert_eq!(u16::from(socket.closed().await.unwrap().code), 1008);
    cluster.first.send("alice", "m").await;
    other.event("notification").await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_socket_ends_with_its_token(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let mut socket = cluster
        .first
        .connect(&format!("/notifications?token={alice}"))
        .await;
    socket.event("welcome").await;

    cluster
        .first
        .platform
        .clock
        .advance(chrono::TimeDelta::days(2));

    assert_eq!(u16::from(socket.closed().await.unwrap().code), 1008);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_instance_that_leaves_says_so_and_lets_nobody_in(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let mut socket = cluster.first.connect("/notifications?userId=alice").await;
    socket.event("welcome").await;

    cluster.first.state.announce_restart();
    let notice = socket.event("server:restarting").await;
    cluster.first.state.close_sockets().await;

    let close = socket.closed().await.unwrap();
    assert_eq!(u16::from(close.code), 1012);
    let reason: serde_json::Value = serde_json::from_str(&close.reason).unwrap();
    assert_eq!(reason["retryAfterMs"], notice["retryAfterMs"]);
    let mut late = cluster.first.connect("/notifications?userId=alice").await;
    assert_eq!(u16::from(late.closed().await.unwrap().code), 1012);
    cluster
        .second
        .connect("/notifications?userId=alice")
        .await
        .event("welcome")
        .await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn clients_of_an_instance_that_leaves_are_asked_to_come_back_at_different_times(db: PgPool) {
    const SPREAD: u64 = 20_000;
    let cluster = Cluster::with(db, with_sweep(), |settings| {
        settings.reconnect_spread = Duration::from_millis(SPREAD);
    })
    .await;
    let mut sockets = Vec::new();
    for _ in 0..30 {
        sockets.push(cluster.first.connect("/notifications?userId=alice").await);
    }

    cluster.first.state.close_sockets().await;

    let mut hints = BTreeSet::new();
    for mut socket in sockets {
        let close = socket.closed().await.unwrap();
        let reason: serde_json::Value = serde_json::from_str(&close.reason).unwrap();
        hints.insert(reason["retryAfterMs"].as_u64().unwrap());
    }
    // Each half is missed by chance once in a billion times.
    // Nobody is asked back so soon that it meets the one that leaves.
    assert!(
        hints.iter().all(|hint| (500..=500 + SPREAD).contains(hint)),
        "{hints:?}"
    );
    let half = 500 + SPREAD / 2;
    assert!(hints.iter().any(|hint| *hint < half), "{hints:?}");
    assert!(hints.iter().any(|hint| *hint > half), "{hints:?}");
}
