//! Socket.IO, spoken frame by frame: Engine.IO 4 over a WebSocket, and by polling.

use std::time::Duration;

use axum::http::Request;
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{Cluster, Instance, SOON, Socket, id, until, with_sweep, without_sweep};

/// A Socket.IO client in one namespace.
struct Client {
    socket: Socket,
    namespace: &'static str,
}

impl Client {
    async fn open(instance: &Instance, path: &str, namespace: &'static str, auth: Value) -> Self {
        let mut socket = instance
            .connect(&format!("{path}EIO=4&transport=websocket"))
            .await;
        let hello = socket.text().await;
        assert!(
            hello.starts_with('0') && hello.contains(r#""pingInterval":25000"#),
            "{hello}"
        );
        let mut client = Self { socket, namespace };
        client
            .socket
            .say(format!("40{}{auth}", client.prefix()))
            .await;
        client
    }

    async fn connect(instance: &Instance, namespace: &'static str, auth: Value) -> Self {
        let mut client = Self::open(instance, "/socket.io/?", namespace, auth).await;
        let connected = client.packet().await;
        assert!(connected.starts_with("40"), "{connected}");
        client
    }

    fn prefix(&self) -> String {
        if self.namespace == "/" {
            String::new()
        } else {
            format!("{},", self.namespace)
        }
    }

    /// The next packet that is no ping.
    async fn packet(&mut self) -> String {
        loop {
            match self.socket.text().await.as_str() {
                "2" => self.socket.say("3").await,
                packet => return packet.to_owned(),
            }
        }
    }

    async fn emit(&mut self, event: &str, data: Value, ack: &str) {
        self.socket
            .say(format!("42{}{ack}{}", self.prefix(), json!([event, data])))
            .await;
    }

    async fn event(&mut self, name: &str) -> Value {
        let start = format!("42{}", self.prefix());
        loop {
            let packet = self.packet().await;
            let Some(array) = packet.strip_prefix(&start) else {
                continue;
            };
            let mut array: Value = serde_json::from_str(array).unwrap();
            if array[0] == name {
                return array[1].take();
            }
        }
    }

    async fn ack(&mut self, number: &str) -> Value {
        let start = format!("43{}{number}", self.prefix());
        loop {
            let packet = self.packet().await;
            if let Some(array) = packet.strip_prefix(&start) {
                return serde_json::from_str::<Value>(array).unwrap()[0].take();
            }
        }
    }
}

/// A session by polling.
struct Polling<'a> {
    instance: &'a Instance,
    uri: String,
}

impl<'a> Polling<'a> {
    async fn open(instance: &'a Instance) -> Self {
        let uri = format!(
            "http://{}/socket.io/?EIO=4&transport=polling",
            instance.address
        );
        let mut polling = Self { instance, uri };
        let hello: Value = serde_json::from_str(&polling.poll().await[1..]).unwrap();
        polling.uri += &format!("&sid={}", hello["sid"].as_str().unwrap());
        polling
    }

    async fn poll(&self) -> String {
        self.ask("GET", "").await
    }

    async fn say(&self, packet: &str) -> String {
        self.ask("POST", packet).await
    }

    async fn ask(&self, method: &str, body: &str) -> String {
        let request = Request::builder()
            .method(method)
            .uri(&self.uri)
            .body(body.to_owned());
        text_of(self.instance, request.unwrap()).await
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn both_namespaces_on_every_path_get_what_the_other_instance_sends(db: PgPool) {
    let cluster = Cluster::new(db, without_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let by_query = format!("/?token={alice}&");
    let mut clients = Vec::new();
    for (path, namespace, auth) in [
        ("/socket.io/?", "/", json!({ "token": alice })),
        ("/socket.io/?", "/notifications", json!({ "token": alice })),
        ("/ws/?", "/notifications", json!({ "token": alice })),
        (by_query.as_str(), "/", json!({})),
    ] {
        let mut client = Client::open(&cluster.second, path, namespace, auth).await;
        let welcome = client.event("welcome").await;
        assert_eq!(welcome["instance"], "instance-1");
        client.event("unread-count").await;
        clients.push(client);
    }

    let sent = cluster.first.send("alice", "Hello").await;
    cluster.first.send("bob", "not hers").await;
    let second = cluster.first.send("alice", "again").await;

    for client in &mut clients {
        assert_eq!(client.event("notification").await, sent);
        assert_eq!(client.event("notification").await, second);
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_client_that_comes_back_gets_exactly_what_it_missed(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    for n in 1..=320 {
        cluster.first.send("alice", &format!("{n}")).await;
    }

    let auth = json!({ "token": alice, "lastSeq": 10 });
    let mut client = Client::connect(&cluster.second, "/notifications", auth).await;
    for n in 11..=320 {
        assert_eq!(client.event("notification").await["seq"], n);
    }
    cluster.first.send("alice", "live").await;

    assert_eq!(client.event("notification").await["seq"], 321);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn messages_are_answered_and_acknowledged(db: PgPool) {
    let cluster = Cluster::closed_sandbox(db).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let admin = cluster.sign_in("root", &["admin"]).await;
    let mut client =
        Client::connect(&cluster.first, "/notifications", json!({ "token": alice })).await;

    for (number, event, data, answer, member, value) in [
        (
            "1",
            "subscribe",
            json!({ "userId": "alice" }),
            "subscribed",
            "userId",
            "alice",
        ),
        (
            "2",
            "subscribe",
            json!({ "userId": "bob" }),
            "error",
            "code",
            "FORBIDDEN",
        ),
        (
            "3",
            "subscribe",
            json!("alice"),
            "error",
            "code",
            "VALIDATION_FAILED",
        ),
        (
            "4",
            "join_room",
            json!({ "room": "user:alice" }),
            "room_joined",
            "room",
            "user:alice",
        ),
        (
            "5",
            "join_room",
            json!({ "room": "user:bob" }),
            "error",
            "code",
            "FORBIDDEN",
        ),
        (
            "6",
            "join_room",
            json!({ "room": "admin" }),
            "error",
            "code",
            "FORBIDDEN",
        ),
        (
            "7",
            "leave_room",
            json!({ "room": "user:alice" }),
            "room_left",
            "room",
            "user:alice",
        ),
        (
            "8",
            "join_room",
            json!({}),
            "error",
            "code",
            "VALIDATION_FAILED",
        ),
        (
            "9",
            "unsubscribe",
            json!({ "userId": "alice" }),
            "unsubscribed",
            "userId",
            "alice",
        ),
    ] {
        client.emit(event, data, number).await;
        let answered = client.event(answer).await;
        assert_eq!(answered[member], value, "{event} {number}");
        assert!(answered["message"].is_string());
        assert_eq!(client.ack(number).await, answered);
    }
    let mut root = Client::connect(&cluster.first, "/", json!({ "token": admin })).await;
    root.emit("join_room", json!({ "room": "admin" }), "").await;
    assert_eq!(root.event("room_joined").await["room"], "admin");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn without_the_sandbox_only_a_token_connects(db: PgPool) {
    let cluster = Cluster::closed_sandbox(db).await;
    for auth in [
        json!({}),
        json!({ "token": "x" }),
        json!({ "userId": "alice" }),
    ] {
        let mut client = Client::open(
            &cluster.first,
            "/socket.io/?userId=alice&",
            "/notifications",
            auth,
        )
        .await;

        let refused = client.packet().await;

        assert_eq!(refused, r#"44/notifications,{"message":"unauthorized"}"#);
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn in_the_sandbox_nobody_gets_everything_and_a_name_is_believed(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let mut anybody = Client::connect(&cluster.first, "/notifications", json!({})).await;
    let mut alice = Client::open(&cluster.first, "/socket.io/?userId=alice&", "/", json!({})).await;
    anybody.event("welcome").await;
    alice.event("unread-count").await;

    cluster.second.send("bob", "for bob").await;
    cluster.second.send("alice", "for alice").await;

    // An order is promised to each user, not among them.
    let mut heard = Vec::new();
    for _ in 0..2 {
        heard.push(anybody.event("notification").await["userId"].to_string());
    }
    heard.sort();
    assert_eq!(heard, [r#""alice""#, r#""bob""#]);
    assert_eq!(alice.event("notification").await["message"], "for alice");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_room_reaches_over_instances(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let mut here = Client::connect(&cluster.first, "/", json!({})).await;
    let mut there = Client::connect(&cluster.second, "/notifications", json!({})).await;
    for client in [&mut here, &mut there] {
        client
            .emit("join_room", json!({ "room": "lobby" }), "")
            .await;
        client.event("room_joined").await;
    }

    cluster
        .first
        .state
        .send_to_room("lobby", &json!({ "text": "hi" }))
        .await;

    assert_eq!(here.event("message").await["text"], "hi");
    assert_eq!(there.event("message").await["text"], "hi");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn rooms_and_subscriptions_are_bounded(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let mut client =
        Client::open(&cluster.first, "/socket.io/?userId=alice&", "/", json!({})).await;
    client.event("unread-count").await;

    // The own room counts, and so does following oneself.
    for n in 1..100 {
        client
            .emit("join_room", json!({ "room": format!("r{n}") }), "")
            .await;
        client.event("room_joined").await;
        client
            .emit("subscribe", json!({ "userId": format!("u{n}") }), "")
            .await;
        client.event("subscribed").await;
    }
    client
        .emit("join_room", json!({ "room": "one more" }), "")
        .await;
    assert_eq!(client.event("error").await["code"], "TOO_MANY");
    client
        .emit("subscribe", json!({ "userId": "one-more" }), "")
        .await;
    assert_eq!(client.event("error").await["code"], "TOO_MANY");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn polling_works_too(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let polling = Polling::open(&cluster.first).await;

    assert_eq!(
        polling
            .say(&format!("40{}", json!({ "token": alice })))
            .await,
        "ok"
    );
    let mut seen = String::new();
    while !seen.contains("unread-count") {
        seen += &polling.poll().await;
    }
    assert!(seen.contains("welcome"));
    cluster.second.send("alice", "Hello").await;

    assert!(polling.poll().await.contains(r#""message":"Hello""#));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn one_that_polls_hears_of_the_restart_before_its_session_is_gone(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let polling = Polling::open(&cluster.first).await;
    let mut seen = polling.say("40").await;
    while !seen.contains("welcome") {
        seen += &polling.poll().await;
    }

    // It is between two polls: the notice waits for the next one.
    cluster.first.state.announce_restart();
    let told = polling.poll().await;
    assert!(told.contains(r#"42["server:restarting",{"#), "{told}");
    assert!(told.contains(r#""retryAfterMs":"#), "{told}");

    cluster.first.state.close_sockets().await;
    let again = Request::builder().uri(&polling.uri).body(String::new());
    assert_eq!(cluster.first.raw(again.unwrap()).await.0, 503);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_sent_right_after_the_welcome_is_heard(db: PgPool) {
    let cluster = Cluster::new(db, without_sweep()).await;
    for n in 0..20 {
        let path = "/socket.io/?userId=alice&";
        let mut client = Client::open(&cluster.second, path, "/", json!({})).await;
        // A client may speak as soon as it is connected, before it is greeted.
        assert!(client.packet().await.starts_with("40"));
        client
            .emit("subscribe", json!({ "userId": "alice" }), "")
            .await;
        client.event("welcome").await;
        let text = format!("{n}");

        cluster.first.send("alice", &text).await;

        assert_eq!(client.event("notification").await["message"], text);
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn malformed_handshakes_and_messages_too_long_are_refused(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    for auth in [json!({ "lastSeq": "x" }), json!({ "token": 7 }), json!("x")] {
        let mut client = Client::open(&cluster.first, "/socket.io/?", "/", auth.clone()).await;
        assert_eq!(
            client.packet().await,
            r#"44{"message":"malformed"}"#,
            "{auth}"
        );
    }
    let mut client = Client::connect(&cluster.first, "/", json!({})).await;
    client
        .emit("subscribe", json!("x".repeat(65 * 1024)), "")
        .await;
    client.socket.closed().await;

    let poll = "/socket.io/?EIO=4&transport=polling";
    let open = Request::builder().uri(poll).body(String::new()).unwrap();
    let hello: Value = serde_json::from_str(&cluster.first.raw(open).await.1[1..]).unwrap();
    let uri = format!("{poll}&sid={}", hello["sid"].as_str().unwrap());
    let long = Request::builder()
        .method("POST")
        .uri(uri)
        .body(format!("4{}", "x".repeat(65 * 1024)))
        .unwrap();
    assert_ne!(cluster.first.raw(long).await.0, StatusCode::OK);
}

/// Asks the wrapped router itself, as a connection from this machine would.
async fn text_of(instance: &Instance, request: Request<String>) -> String {
    let path = request.uri().path_and_query().unwrap().to_string();
    let request = Request::builder()
        .method(request.method().clone())
        .uri(path)
        .body(request.into_body())
        .unwrap();
    let (status, text) = tokio::time::timeout(SOON, instance.raw(request))
        .await
        .unwrap();
    assert_eq!(status, StatusCode::OK, "{text}");
    text
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_socket_ends_with_its_session_and_is_told_why(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let mut client =
        Client::connect(&cluster.first, "/notifications", json!({ "token": alice })).await;
    client.event("welcome").await;
    let platform = &cluster.first.platform;

    platform
        .auth
        .sessions()
        .end_others(&id("alice"), None, platform.clock.now())
        .await
        .unwrap();

    assert_eq!(client.event("error").await["code"], "UNAUTHENTICATED");
    assert_eq!(client.packet().await, "41/notifications,");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_instance_that_leaves_closes_the_transport(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let mut client = Client::connect(&cluster.first, "/notifications", json!({})).await;
    client.event("welcome").await;

    tokio::time::timeout(Duration::from_secs(5), cluster.first.state.close_sockets())
        .await
        .unwrap();

    let notice = client.event("server:restarting").await;
    assert!((500..=5_500).contains(&notice["retryAfterMs"].as_u64().unwrap()));
    client.socket.closed().await;
    let late = cluster
        .first
        .try_connect("/socket.io/?EIO=4&transport=websocket")
        .await;
    assert!(
        matches!(late.err(), Some(tokio_tungstenite::tungstenite::Error::Http(response)) if response.status() == 503)
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn nothing_is_left_of_a_client_that_is_gone(db: PgPool) {
    platform::telemetry::start_metrics().unwrap();
    let open = || {
        let figures = platform::telemetry::render_metrics();
        let line = figures
            .lines()
            .find(|line| line.starts_with("cloudphone_sockets_open{"));
        line.and_then(|line| line.rsplit_once(' '))
            .map_or_else(String::new, |(_, value)| value.to_owned())
    };
    let cluster = Cluster::new(db, with_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let mut clients = Vec::new();
    for namespace in ["/", "/notifications", "/"] {
        let auth = json!({ "token": alice });
        let mut client = Client::connect(&cluster.first, namespace, auth).await;
        client.event("welcome").await;
        clients.push(client);
    }
    assert_eq!(open(), "3");

    // One says goodbye, the others are cut off.
    clients[0].socket.say("41").await;
    drop(clients);

    until("nothing is left of them", async || open() == "0").await;
}
