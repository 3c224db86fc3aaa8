//! Tickets, and what is told of access.

use futures::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{TestApp, id, text};
use crate::tunnels::{Stage, greet, open, ticket};

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn of_many_calls_with_a_ticket_at_many_replicas_one_gets_through(db: PgPool) {
    let stage = Stage::new(db).await;
    let others = [stage.app.another().await, stage.app.another().await];
    let mut doors = vec![stage.address];
    for other in &others {
        doors.push(other.serve(&stage.tasks).await);
    }

    for _ in 0..10 {
        let ticket = ticket(&stage.alice, &stage.device).await;
        let calls = (0..12).map(|n| open(doors[n % 3], &stage.device, "adb", &ticket));
        let answers = join_all(calls).await;

        let refused = answers.iter().filter_map(|answer| answer.as_ref().err());
        assert_eq!(refused.copied().collect::<Vec<_>>(), [401; 11]);
        let mut opened: Vec<_> = answers.into_iter().filter_map(Result::ok).collect();
        assert!(greet(&mut opened[0]).await.starts_with("device::"));
        opened[0].close(None).await.unwrap();
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_ticket_opens_nothing_but_what_it_was_given_for(db: PgPool) {
    let stage = Stage::new(db).await;
    let other = stage.alice.running().await;
    let adb = ticket(&stage.alice, &stage.device).await;
    let stream = stage.alice.act(&stage.device, "scrcpy/session").await.body;
    let stream = text(&stream, "sessionId");
    let door = stage.address;

    for (device, path, ticket) in [
        (&other, "adb", &adb),
        (&stage.device, "stream", &adb),
        (&stage.device, "adb", &stream),
        (&stage.device, "adb", &String::new()),
        (&stage.device, "adb", &"f".repeat(64)),
    ] {
        assert_eq!(
            open(door, device, path, ticket).await.err(),
            Some(401),
            "{path} {ticket}"
        );
    }
    assert_eq!(
        open(door, &stage.device, "adb", &"f".repeat(200))
            .await
            .err(),
        Some(400)
    );
    let plain = format!("/devices/{}/adb?ticket={adb}", id(&stage.device));
    let plain = stage
        .app
        .anonymous("203.0.113.9", "GET", &plain, Value::Null)
        .await;
    plain.refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
    let none = format!("/devices/{}/adb", id(&stage.device));
    let none = stage
        .app
        .anonymous("127.0.0.1", "GET", &none, Value::Null)
        .await;
    none.refused(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED");

    // None of this has used them up.
    open(door, &stage.device, "adb", &adb).await.unwrap();
    open(door, &stage.device, "stream", &stream).await.unwrap();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_expired_ticket_opens_nothing_and_is_forgotten_in_the_end(db: PgPool) {
    let stage = Stage::new(db).await;
    let ticket = ticket(&stage.alice, &stage.device).await;

    stage
        .execute(
            "update devices.access_tickets set expires_at = clock_timestamp() where device_id = $1",
        )
        .await;
    assert_eq!(
        open(stage.address, &stage.device, "adb", &ticket)
            .await
            .err(),
        Some(401)
    );

    let mut conn = stage.app.platform.db.acquire().await.unwrap();
    let purge = devices::access::db::purge;
    assert_eq!(purge(&mut conn, 10).await.unwrap(), 0);
    stage.execute("update devices.access_tickets set expires_at = clock_timestamp() - interval '61 minutes' where device_id = $1").await;
    assert_eq!(purge(&mut conn, 10).await.unwrap(), 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_ticket_ends_with_the_run_of_its_device_and_the_session_of_its_user(db: PgPool) {
    let stage = Stage::new(db).await;
    let before = ticket(&stage.alice, &stage.device).await;
    for action in ["stop", "start"] {
        stage
            .alice
            .act(&stage.device, action)
            .await
            .expect(StatusCode::OK);
        stage.app.run_operations().await;
    }
    // It runs again on the same ports, and is its owner's: the ticket was for the run before.
    assert_eq!(
        open(stage.address, &stage.device, "adb", &before)
            .await
            .err(),
        Some(409)
    );

    let waiting = ticket(&stage.alice, &stage.device).await;
    sqlx::query(
        "update platform.sessions set ended_at = clock_timestamp() where user_id = 'alice'",
    )
    .execute(&stage.app.platform.db)
    .await
    .unwrap();
    assert_eq!(
        open(stage.address, &stage.device, "adb", &waiting)
            .await
            .err(),
        Some(401)
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn tickets_that_wait_are_bounded_for_a_user_whatever_is_asked_at_once(db: PgPool) {
    let app = TestApp::with(db, |config| config.access.tickets_per_user = 5).await;
    let stage = Stage::of(app).await;

    let asked = join_all((0..12).map(|_| stage.alice.act(&stage.device, "adb/ticket"))).await;

    let (given, refused): (Vec<_>, Vec<_>) = asked
        .into_iter()
        .partition(|answer| answer.status == StatusCode::CREATED);
    assert_eq!((given.len(), refused.len()), (5, 7));
    for answer in refused {
        answer.refused(StatusCode::TOO_MANY_REQUESTS, "RATE_LIMITED");
    }
    // Another user, and whoever has used one, gets the next.
    let bob = stage.app.user("bob", &["admin"]).await;
    bob.act(&stage.device, "adb/ticket")
        .await
        .expect(StatusCode::CREATED);
    open(
        stage.address,
        &stage.device,
        "adb",
        &text(&given[0].body, "ticket"),
    )
    .await
    .unwrap();
    stage
        .alice
        .act(&stage.device, "adb/ticket")
        .await
        .expect(StatusCode::CREATED);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn secrets_are_not_stored(db: PgPool) {
    let stage = Stage::new(db).await;
    let given = stage.alice.act(&stage.device, "adb/ticket").await.body;
    let secret = text(&given, "ticket");

    let rows: Vec<String> = sqlx::query_scalar("select t::text from devices.access_tickets t")
        .fetch_all(&stage.app.platform.db)
        .await
        .unwrap();

    assert_eq!(rows.len(), 1);
    assert!(!rows[0].contains(&secret));
    let url = text(&given, "url");
    assert!(
        url.ends_with(&format!(
            "/devices/{}/adb?ticket={secret}",
            id(&stage.device)
        )),
        "{url}"
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn only_the_owner_of_a_running_device_gets_in(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, mallory) = (app.user("alice", &[]).await, app.user("mallory", &[]).await);
    let device = alice.create(json!({ "name": "n" })).await;
    let paths = ["adb/ticket", "webrtc/token", "scrcpy/session"];

    for path in paths {
        alice
            .act(&device, path)
            .await
            .refused(StatusCode::CONFLICT, "CONFLICT");
        mallory
            .act(&device, path)
            .await
            .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
        let path = format!("/devices/{}/{path}", id(&device));
        // Not even the sandbox opens it.
        let anonymous = app.anonymous("127.0.0.1", "POST", &path, Value::Null).await;
        anonymous.refused(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED");
    }
    app.run_operations().await;
    for path in paths {
        assert!(alice.act(&device, path).await.status.is_success());
    }
    alice
        .act(&device, "adb/disable")
        .await
        .expect(StatusCode::OK);
    alice
        .act(&device, "adb/ticket")
        .await
        .refused(StatusCode::CONFLICT, "CONFLICT");
    alice
        .act(&device, "scrcpy/session")
        .await
        .expect(StatusCode::CREATED);
    mallory
        .act(&device, "adb/enable")
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_tells_where_it_is_reached(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, mallory) = (app.user("alice", &[]).await, app.user("mallory", &[]).await);
    let device = alice
        .create(json!({ "name": "n", "resolution": "720x1280" }))
        .await;
    let path = |end: &str| format!("/devices/{}/{end}", id(&device));
    let (host, adb) = (app.config.node_address, device["adbPort"].clone());

    let connection = alice
        .get(&path("connection"))
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(
        connection,
        json!({
            "deviceId": device["id"], "deviceName": "n", "host": host.to_string(), "adbPort": adb, "status": "creating",
            "adbCommand": format!("adb connect {host}:{adb}"), "isOnline": false,
        })
    );
    assert_eq!(device["access"]["adb"], connection["adbCommand"]);
    assert_eq!(
        device["access"]["webrtc"],
        format!("http://{host}:{}/", device["webrtcPort"])
    );
    alice
        .get(&path("stream-info"))
        .await
        .refused(StatusCode::CONFLICT, "CONFLICT");

    app.run_operations().await;
    assert_eq!(alice.get(&path("connection")).await.body["isOnline"], true);
    let info = alice
        .get(&path("stream-info"))
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(
        (
            &info["screenResolution"],
            &info["adbPort"],
            &info["containerName"]
        ),
        (
            &json!({ "width": 720, "height": 1280 }),
            &adb,
            &json!(format!("cp-{}", id(&device)))
        )
    );
    let address = format!("{host}:{adb}");
    for (action, enabled) in [
        ("adb/info", true),
        ("adb/disable", false),
        ("adb/enable", true),
    ] {
        if action != "adb/info" {
            assert!(
                alice.act(&device, action).await.expect(StatusCode::OK).body["message"].is_string()
            );
        }
        let info = alice
            .get(&path("adb/info"))
            .await
            .expect(StatusCode::OK)
            .body;
        assert_eq!(
            info,
            json!({ "adbServletAddress": address, "adbEnabled": enabled })
        );
    }
    for end in ["connection", "stream-info", "adb/info"] {
        mallory
            .get(&path(end))
            .await
            .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_page_that_is_opened_again_and_again_locks_nobody_out(db: PgPool) {
    let app = TestApp::with(db, |config| config.access.tickets_per_user = 20).await;
    let stage = Stage::of(app).await;
    let mut tokens = Vec::new();
    for _ in 0..40 {
        let token = stage.alice.act(&stage.device, "webrtc/token").await;
        tokens.push(text(&token.expect(StatusCode::OK).body, "token"));
    }

    let stream = async |token: &String| open(stage.address, &stage.device, "stream", token).await;
    assert_eq!(stream(&tokens[0]).await.err(), Some(401));
    assert!(stream(&tokens[39]).await.is_ok());
    // There is room for other tickets.
    ticket(&stage.alice, &stage.device).await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn with_the_rent_all_access_ends(db: PgPool) {
    let stage = Stage::new(db).await;
    stage
        .execute("update devices.devices set expires_at = clock_timestamp() where id = $1")
        .await;

    for action in ["adb/ticket", "webrtc/token", "screenshot"] {
        let answer = stage.alice.act(&stage.device, action).await;
        answer.refused(StatusCode::FORBIDDEN, "FORBIDDEN");
    }
    let path = format!("/devices/{}/shell", id(&stage.device));
    let shell = stage.alice.post(&path, json!({ "command": "id" })).await;
    shell.refused(StatusCode::FORBIDDEN, "FORBIDDEN");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_administrator_who_is_none_any_more_loses_the_devices_of_others(db: PgPool) {
    let stage = Stage::new(db.clone()).await;
    let root = platform::testing::account(&stage.app.platform, &["admin"]).await;
    let root = stage.app.user(root.as_str(), &["admin"]).await;
    let (used, waiting) = (
        ticket(&root, &stage.device).await,
        ticket(&root, &stage.device).await,
    );
    open(stage.address, &stage.device, "adb", &used)
        .await
        .unwrap();

    sqlx::query("delete from users.user_roles")
        .execute(&db)
        .await
        .unwrap();

    let opened = open(stage.address, &stage.device, "adb", &waiting).await;
    assert_eq!(opened.err(), Some(401));
    let ended = "select ended from devices.access_standing";
    let ended: Vec<Option<String>> = sqlx::query_scalar(ended).fetch_all(&db).await.unwrap();
    assert_eq!(
        ended,
        [Some("signed-out".into()), Some("signed-out".into())]
    );
}
