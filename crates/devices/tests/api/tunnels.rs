//! Tunnels: what goes through them, and what ends them.

use std::net::SocketAddr;
use std::time::Duration;

use contracts::DeviceId;
use device_stub::{Message as AdbMessage, command};
use futures::{SinkExt, StreamExt};
use http::StatusCode;
use platform::lifecycle::Tasks;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::app::{TestApp, User, id, text};

/// How long anything may take before a test says that it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

pub type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The secret of a new ticket for the ADB port.
pub async fn ticket(user: &User, device: &Value) -> String {
    let answer = user.act(device, "adb/ticket").await;
    text(&answer.expect(StatusCode::CREATED).body, "ticket")
}

/// Opens a tunnel; the status where it is refused.
pub async fn open(
    address: SocketAddr,
    device: &Value,
    path: &str,
    ticket: &str,
) -> Result<Socket, u16> {
    let url = format!(
        "ws://{address}/devices/{}/{path}?ticket={ticket}",
        id(device)
    );
    match connect_async(url).await {
        Ok((socket, _)) => Ok(socket),
        Err(WsError::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

/// Greets a device through a tunnel and gives its banner.
pub async fn greet(socket: &mut Socket) -> String {
    let mut bytes = Vec::new();
    let greeting = AdbMessage::new(command::CNXN, 0x0100_0001, 65_536, *b"host::");
    greeting.write(&mut bytes).await.unwrap();
    // However the client cuts the bytes into frames, the device gets them in their order.
    for piece in bytes.chunks(7) {
        socket
            .send(Message::Binary(piece.to_vec().into()))
            .await
            .unwrap();
    }
    let mut heard = Vec::new();
    loop {
        heard.extend(next(socket).await);
        if let Ok(answer) = AdbMessage::read(&mut heard.as_slice()).await {
            return String::from_utf8(answer.data).unwrap();
        }
    }
}

async fn next(socket: &mut Socket) -> Vec<u8> {
    loop {
        let message = timeout(PATIENCE, socket.next())
            .await
            .expect("a frame comes");
        match message.expect("the tunnel is open").unwrap() {
            Message::Binary(bytes) => return bytes.to_vec(),
            Message::Close(close) => panic!("closed: {close:?}"),
            _ => {}
        }
    }
}

/// How the service closes a tunnel.
pub async fn closed(socket: &mut Socket) -> (u16, String) {
    loop {
        let message = timeout(PATIENCE, socket.next())
            .await
            .expect("the end comes");
        match message {
            Some(Ok(Message::Close(Some(CloseFrame { code, reason })))) => {
                return (code.into(), reason.to_string());
            }
            Some(Ok(_)) => {}
            other => panic!("no close frame but {other:?}"),
        }
    }
}

/// A device that runs, and a replica that is served and looks after its tunnels.
pub struct Stage {
    pub app: TestApp,
    pub tasks: Tasks,
    pub address: SocketAddr,
    pub alice: User,
    pub device: Value,
}

impl Stage {
    pub async fn new(db: PgPool) -> Self {
        Self::of(TestApp::new(db).await).await
    }

    pub async fn of(app: TestApp) -> Self {
        let tasks = Tasks::new();
        let address = app.serve(&tasks).await;
        let alice = app.user("alice", &[]).await;
        let device = alice.running().await;
        Self {
            app,
            tasks,
            address,
            alice,
            device,
        }
    }

    /// An open tunnel to the ADB port, through which the device has answered.
    pub async fn tunnel(&self) -> Socket {
        let ticket = ticket(&self.alice, &self.device).await;
        let mut socket = open(self.address, &self.device, "adb", &ticket)
            .await
            .unwrap();
        assert!(greet(&mut socket).await.starts_with("device::"));
        socket
    }

    pub async fn look(&self) {
        self.app.devices.look_after_tunnels().await.unwrap();
    }

    pub async fn execute(&self, sql: &'static str) {
        let device = id(&self.device);
        let done = sqlx::query(sql)
            .bind(device)
            .execute(&self.app.platform.db)
            .await;
        assert_eq!(done.unwrap().rows_affected(), 1, "{sql}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn bytes_go_through_in_both_directions_until_the_client_leaves(db: PgPool) {
    let stage = Stage::new(db).await;
    let mut socket = stage.tunnel().await;
    assert_eq!(stage.app.devices.open_tunnels(), 1);

    // As much as does not fit into one frame, or into the buffers in between, comes back whole.
    let mut bytes = Vec::new();
    let open = AdbMessage::new(command::OPEN, 1, 0, *b"shell:seq 100000\0");
    open.write(&mut bytes).await.unwrap();
    socket.send(Message::Binary(bytes.into())).await.unwrap();
    let (mut heard, mut said) = (Vec::new(), Vec::new());
    'said: loop {
        heard.extend(next(&mut socket).await);
        loop {
            let mut rest = heard.as_slice();
            let Ok(message) = AdbMessage::read(&mut rest).await else {
                break;
            };
            heard = rest.to_vec();
            match message.command {
                command::WRTE => {
                    said.extend(message.data);
                    let mut bytes = Vec::new();
                    let okay = AdbMessage::new(command::OKAY, 1, message.arg0, []);
                    okay.write(&mut bytes).await.unwrap();
                    socket.send(Message::Binary(bytes.into())).await.unwrap();
                }
                command::CLSE => break 'said,
                _ => {}
            }
        }
    }
    let lines: Vec<u32> = String::from_utf8(said)
        .unwrap()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!(lines, (1..=100_000).collect::<Vec<_>>());

    socket.close(None).await.unwrap();
    crate::app::until("the tunnel is gone", async || {
        stage.app.devices.open_tunnels() == 0
    })
    .await;
    crate::app::until("the database knows it", async || {
        let open: i64 = sqlx::query_scalar(
            "select count(*) from devices.access_tickets where open_until is not null",
        )
        .fetch_one(&stage.app.platform.db)
        .await
        .unwrap();
        open == 0
    })
    .await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_stream_leads_to_the_port_that_its_ticket_names(db: PgPool) {
    let stage = Stage::new(db).await;

    let session = stage.alice.act(&stage.device, "scrcpy/session").await;
    let session = session.expect(StatusCode::CREATED).body;
    let mut scrcpy = open(
        stage.address,
        &stage.device,
        "stream",
        &text(&session, "sessionId"),
    )
    .await
    .unwrap();
    assert_eq!(&next(&mut scrcpy).await[..6], b"phone\0");
    assert_eq!(session["scrcpyPort"], stage.device["scrcpyPort"]);

    let token = stage.alice.act(&stage.device, "webrtc/token").await;
    let token = token.expect(StatusCode::OK).body;
    let mut webrtc = open(
        stage.address,
        &stage.device,
        "stream",
        &text(&token, "token"),
    )
    .await
    .unwrap();
    let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    webrtc.send(Message::Binary(request.into())).await.unwrap();
    let page = String::from_utf8(next(&mut webrtc).await).unwrap();
    assert!(page.contains(id(&stage.device).as_str()), "{page}");
    // The device closes what it was asked to close.
    assert_eq!(closed(&mut webrtc).await.0, 1000);
    assert_eq!(
        (&token["signaling"]["protocol"], &token["iceServers"]),
        (&json!("websocket"), &json!([]))
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn whatever_ends_access_ends_the_tunnel_and_says_why(db: PgPool) {
    let stage = Stage::new(db).await;

    for (sql, code, why) in [
        (
            "update devices.devices set user_id = 'bob' where id = $1",
            4403,
            "lease",
        ),
        (
            "update devices.devices set expires_at = clock_timestamp() where id = $1",
            4403,
            "lease",
        ),
        (
            "update devices.devices set adb_port = adb_port + 100 where id = $1",
            4409,
            "stopped",
        ),
        (
            "update platform.sessions set ended_at = clock_timestamp() where user_id = (select user_id from devices.devices where id = $1)",
            4401,
            "session",
        ),
    ] {
        let stage = Stage::of(stage.app.clone()).await;
        let mut socket = stage.tunnel().await;
        let mut other = stage.tunnel().await;
        stage.look().await;
        assert!(greet(&mut socket).await.starts_with("device::"));

        stage.execute(sql).await;
        stage.look().await;

        for socket in [&mut socket, &mut other] {
            let (told, reason) = closed(socket).await;
            assert_eq!(told, code, "{sql}: {reason}");
            assert!(reason.contains(why), "{sql}: {reason}");
        }
        sqlx::query("delete from platform.sessions")
            .execute(&stage.app.platform.db)
            .await
            .unwrap();
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_that_stops_or_goes_takes_its_tunnels_with_it(db: PgPool) {
    let stage = Stage::new(db).await;

    let mut socket = stage.tunnel().await;
    stage
        .alice
        .act(&stage.device, "stop")
        .await
        .expect(StatusCode::OK);
    stage.look().await;
    assert_eq!(closed(&mut socket).await.0, 4409);
    stage.app.run_operations().await;
    stage
        .alice
        .act(&stage.device, "start")
        .await
        .expect(StatusCode::OK);
    stage.app.run_operations().await;

    let mut socket = stage.tunnel().await;
    stage
        .alice
        .delete(&stage.device)
        .await
        .expect(StatusCode::OK);
    stage.look().await;
    assert_eq!(
        closed(&mut socket).await,
        (4404, "the device was deleted".to_owned())
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn adb_that_is_disabled_closes_its_tunnels_and_leaves_the_stream(db: PgPool) {
    let stage = Stage::new(db).await;
    let mut adb = stage.tunnel().await;
    let session = stage.alice.act(&stage.device, "scrcpy/session").await.body;
    let mut stream = open(
        stage.address,
        &stage.device,
        "stream",
        &text(&session, "sessionId"),
    )
    .await
    .unwrap();
    let waiting = ticket(&stage.alice, &stage.device).await;

    stage
        .alice
        .act(&stage.device, "adb/disable")
        .await
        .expect(StatusCode::OK);
    // Enabled again at once: what was given before stays void.
    stage
        .alice
        .act(&stage.device, "adb/enable")
        .await
        .expect(StatusCode::OK);
    stage.look().await;

    let (code, reason) = closed(&mut adb).await;
    assert_eq!(code, 4403, "{reason}");
    assert_eq!(
        open(stage.address, &stage.device, "adb", &waiting)
            .await
            .err(),
        Some(409)
    );
    assert!(!next(&mut stream).await.is_empty());
    stage.tunnel().await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_disabled_account_and_a_key_that_ended_lose_their_tunnels(db: PgPool) {
    let stage = Stage::new(db).await;
    let bob = platform::testing::account(&stage.app.platform, &["user"]).await;
    let (_, key) = platform::testing::api_key(&stage.app.platform, &bob, &["devices:*"]).await;
    let user = stage.app.user(bob.as_str(), &[]).await;
    let device = user.running().await;
    let path = format!("/devices/{}/adb/ticket", id(&device));
    let given = stage
        .app
        .post_with_key(&key, &path)
        .await
        .expect(StatusCode::CREATED)
        .body;
    let mut socket = open(stage.address, &device, "adb", &text(&given, "ticket"))
        .await
        .unwrap();
    // Whatever it may do from now on, it may be less.
    sqlx::query("update users.api_keys set scopes = '{billing:read}' where user_id = $1")
        .bind(&bob)
        .execute(&stage.app.platform.db)
        .await
        .unwrap();
    stage.look().await;
    assert_eq!(closed(&mut socket).await.0, 4401);

    let secret = ticket(&user, &device).await;
    let mut socket = open(stage.address, &device, "adb", &secret).await.unwrap();
    sqlx::query("update users.accounts set status = 'suspended' where id = $1")
        .bind(&bob)
        .execute(&stage.app.platform.db)
        .await
        .unwrap();
    stage.look().await;
    assert_eq!(closed(&mut socket).await.0, 4401);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_replica_that_leaves_says_when_to_come_back_and_takes_no_more(db: PgPool) {
    let stage = Stage::new(db).await;
    let mut socket = stage.tunnel().await;
    let waiting = ticket(&stage.alice, &stage.device).await;

    let leaving = stage.app.devices.close_tunnels();
    let ((), (code, reason)) = tokio::join!(leaving, closed(&mut socket));

    assert_eq!(code, 1012);
    let told: Value = serde_json::from_str(&reason).unwrap();
    assert!(
        told["retryAfterMs"].as_u64().is_some_and(|wait| wait > 0),
        "{reason}"
    );
    assert_eq!(stage.app.devices.open_tunnels(), 0);
    assert_eq!(
        open(stage.address, &stage.device, "adb", &waiting)
            .await
            .err(),
        Some(503)
    );
    let other = stage.app.another().await;
    let elsewhere = other.serve(&stage.tasks).await;
    // The ticket was not used up by the refusal.
    open(elsewhere, &stage.device, "adb", &waiting)
        .await
        .unwrap();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn text_and_idleness_end_a_tunnel(db: PgPool) {
    let app = TestApp::with(db, |config| {
        config.access.tunnel_idle = Duration::from_millis(400)
    })
    .await;
    let stage = Stage::of(app).await;

    let mut socket = stage.tunnel().await;
    assert_eq!(
        closed(&mut socket).await,
        (1001, "nothing was sent for too long".to_owned())
    );

    let mut socket = stage.tunnel().await;
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(closed(&mut socket).await.0, 1003);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn tunnels_are_bounded_for_a_device_over_all_replicas_and_on_each_replica(db: PgPool) {
    let app = TestApp::with(db, |config| {
        config.access.tunnels_per_device = 2;
        config.access.tunnels = 3;
    })
    .await;
    let stage = Stage::of(app).await;
    let other = stage.app.another().await;
    let elsewhere = other.serve(&stage.tasks).await;
    let open_at = async |address: SocketAddr, device: &Value| {
        let ticket = ticket(&stage.alice, device).await;
        open(address, device, "adb", &ticket).await
    };

    let first = open_at(stage.address, &stage.device).await.unwrap();
    let _second = open_at(elsewhere, &stage.device).await.unwrap();
    assert_eq!(open_at(stage.address, &stage.device).await.err(), Some(429));
    assert_eq!(open_at(elsewhere, &stage.device).await.err(), Some(429));
    drop(first);
    crate::app::until("there is room again", async || {
        let open: i64 = sqlx::query_scalar(
            "select count(*) from devices.access_tickets where open_until is not null",
        )
        .fetch_one(&stage.app.platform.db)
        .await
        .unwrap();
        open == 1
    })
    .await;
    let _third = open_at(stage.address, &stage.device).await.unwrap();

    let another = stage.alice.running().await;
    let _fourth = open_at(stage.address, &another).await.unwrap();
    let _fifth = open_at(stage.address, &another).await.unwrap();
    let one_more = stage.alice.running().await;
    assert_eq!(open_at(stage.address, &one_more).await.err(), Some(503));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_tunnel_of_a_replica_that_died_does_not_count_for_ever(db: PgPool) {
    let app = TestApp::with(db, |config| config.access.tunnels_per_device = 1).await;
    let stage = Stage::of(app).await;
    let socket = stage.tunnel().await;
    std::mem::forget(socket);
    let one_more = ticket(&stage.alice, &stage.device).await;
    assert_eq!(
        open(stage.address, &stage.device, "adb", &one_more)
            .await
            .err(),
        Some(429)
    );

    stage.execute("update devices.access_tickets set open_until = clock_timestamp() where device_id = $1 and open_until is not null").await;

    open(stage.address, &stage.device, "adb", &one_more)
        .await
        .unwrap();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_that_does_not_answer_is_told_and_takes_no_room(db: PgPool) {
    let app = TestApp::with(db, |config| config.access.tunnels_per_device = 1).await;
    let stage = Stage::of(app).await;
    stage.app.devices.runtimes().simulated.vanish().await;

    for _ in 0..2 {
        let ticket = ticket(&stage.alice, &stage.device).await;
        assert_eq!(
            open(stage.address, &stage.device, "adb", &ticket)
                .await
                .err(),
            Some(502)
        );
        // Used it is all the same.
        assert_eq!(
            open(stage.address, &stage.device, "adb", &ticket)
                .await
                .err(),
            Some(401)
        );
    }
    let shell = json!({ "command": "id" });
    let path = format!("/devices/{}/shell", id(&stage.device));
    stage
        .alice
        .post(&path, shell)
        .await
        .refused(StatusCode::BAD_GATEWAY, "UPSTREAM_DOWN");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_next_tenant_of_a_port_is_never_met_by_the_last_one(db: PgPool) {
    let app = TestApp::with(db, |config| {
        config.port_quarantine = Duration::from_millis(100)
    })
    .await;
    let stage = Stage::of(app).await;
    let old = ticket(&stage.alice, &stage.device).await;
    let mut socket = stage.tunnel().await;
    let port = stage.device["adbPort"].clone();

    stage
        .alice
        .delete(&stage.device)
        .await
        .expect(StatusCode::OK);
    stage.app.run_operations().await;
    let bob = stage.app.user("bob", &[]).await;
    let mut of_bob = Value::Null;
    crate::app::until("bob has the port", async || {
        of_bob = bob.running().await;
        of_bob["adbPort"] == port
    })
    .await;

    assert_eq!(
        open(stage.address, &stage.device, "adb", &old).await.err(),
        Some(404)
    );
    assert_eq!(
        open(stage.address, &of_bob, "adb", &old).await.err(),
        Some(401)
    );
    stage.look().await;
    assert!([1000, 4404].contains(&closed(&mut socket).await.0));
    let refused = stage.alice.act(&of_bob, "adb/ticket").await;
    refused.refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    let none = DeviceId::new();
    let refused = stage
        .alice
        .post(&format!("/devices/{none}/adb/ticket"), Value::Null)
        .await;
    refused.refused(StatusCode::NOT_FOUND, "NOT_FOUND");
}
