//! Creating devices.

use std::collections::HashSet;

use futures::future::join_all;
use http::StatusCode;
use serde_json::json;
use sqlx::PgPool;
use tokio::net::TcpListener;

use crate::app::{TestApp, id, ports, text};

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_is_answered_with_its_ports_and_comes_to_run(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;

    let created = alice.create(json!({ "name": "device1" })).await;

    assert_eq!(created["status"], "creating");
    assert_eq!(
        (
            created["adbPort"].as_u64(),
            created["webrtcPort"].as_u64(),
            created["scrcpyPort"].as_u64()
        ),
        (Some(5555), Some(8080), Some(27183))
    );
    let mut device = created.clone();
    for added in ["sagaId", "device", "message"] {
        device.as_object_mut().unwrap().remove(added);
    }
    assert_eq!(created["device"], device);
    let host = app.config.node_address;
    assert_eq!(
        device,
        json!({
            "id": device["id"], "name": "device1", "userId": "alice", "type": "phone", "providerType": "redroid", "simulated": true,
            "status": "creating", "cpuCores": 2, "memoryMB": 4096, "storageMB": 10240, "resolution": "1080x1920", "dpi": 320,
            "androidVersion": "11", "adbHost": host.to_string(), "adbPort": 5555, "webrtcPort": 8080, "scrcpyPort": 27183,
            "access": { "adb": format!("adb connect {host}:5555"), "webrtc": format!("http://{host}:8080/"), "scrcpy": format!("tcp://{host}:27183") },
            "tags": [], "metadata": {}, "healthScore": 100,
            "createdAt": device["createdAt"], "updatedAt": device["updatedAt"],
        })
    );
    let saga = format!("/devices/saga/{}", text(&created, "sagaId"));
    assert_eq!(alice.get(&saga).await.body["status"], "pending");

    app.run_operations().await;

    let device = alice.device(&created).await;
    assert_eq!(device["status"], "running");
    assert!(device["lastStartedAt"].is_string());
    let saga = alice.get(&saga).await.expect(StatusCode::OK).body;
    assert_eq!(
        (&saga["status"], &saga["currentStep"]),
        (&json!("completed"), &json!("done"))
    );
    assert_eq!(saga["device"], device);
    let ports = ports(&device);
    for port in [ports.adb, ports.webrtc, ports.scrcpy] {
        assert!(app.answers(port).await, "{port}");
    }
    let kinds: Vec<_> = app
        .events()
        .await
        .iter()
        .map(|event| (text(event, "type"), text(&event["data"], "status")))
        .collect();
    assert_eq!(
        kinds,
        [
            ("device.created".to_owned(), String::new()),
            ("device.status_changed".to_owned(), "starting".to_owned()),
            ("device.status_changed".to_owned(), "running".to_owned()),
        ]
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn every_field_is_kept(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let wish = json!({
        "name": "n", "description": "d", "type": "tablet", "providerType": "simulated", "cpuCores": 4, "memoryMB": 512,
        "storageMB": 1024, "resolution": "720x1280", "dpi": 240, "androidVersion": "13.0", "tags": ["a", "b"],
        "groupName": "g", "metadata": { "k": [1] }, "userId": "alice", "autoStart": false, "unknown": 1,
    });

    let created = alice.create(wish.clone()).await;
    app.run_operations().await;

    let device = alice.device(&created).await;
    for (field, value) in wish.as_object().unwrap() {
        if !["autoStart", "unknown"].contains(&field.as_str()) {
            assert_eq!(&device[field], value, "{field}");
        }
    }
    assert_eq!(device["status"], "stopped");
    assert!(!app.answers(ports(&device).adb).await);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_start_accepted_while_the_device_is_being_created_answers_starting(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice
        .create(json!({ "name": "n", "autoStart": false }))
        .await;

    let started = alice.act(&device, "start").await.expect(StatusCode::OK);

    assert_eq!(started.body["status"], "starting");
    assert!(started.body["message"].is_string());
    app.run_operations().await;
    assert_eq!(alice.status(&device).await, "running");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn sixty_creations_at_once_get_the_lowest_ports_each_its_own(db: PgPool) {
    let replicas = [TestApp::new(db).await];
    let replicas = [
        replicas[0].clone(),
        replicas[0].another().await,
        replicas[0].another().await,
    ];
    let alice = replicas[0].user("alice", &[]).await;

    let clients = (0..30).map(|client| {
        let alice = replicas[client % 3].as_user(&alice);
        async move {
            let mut made = Vec::new();
            for _ in 0..2 {
                made.push(alice.create(json!({ "name": "n" })).await);
            }
            made
        }
    });
    let devices: Vec<_> = join_all(clients).await.into_iter().flatten().collect();

    let sets: Vec<_> = devices.iter().map(ports).collect();
    let sorted = |kind: fn(&coordination::PortSet) -> u16| {
        let mut numbers: Vec<_> = sets.iter().map(kind).collect();
        numbers.sort_unstable();
        numbers
    };
    assert_eq!(sorted(|set| set.adb), (5555..5615).collect::<Vec<_>>());
    assert_eq!(sorted(|set| set.webrtc), (8080..8140).collect::<Vec<_>>());
    assert_eq!(sorted(|set| set.scrcpy), (27183..27243).collect::<Vec<_>>());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn redis_that_forgets_everything_in_the_middle_leads_to_no_double_port(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    alice.create(json!({ "name": "first" })).await;

    let clients = (0..30).map(|client| {
        let (app, alice) = (app.clone(), alice.clone());
        async move {
            let mut made = Vec::new();
            for round in 0..3 {
                if client % 10 == 0 && round == 1 {
                    app.lose_redis().await;
                }
                made.push(alice.create(json!({ "name": "n" })).await);
            }
            made
        }
    });
    let devices: Vec<_> = join_all(clients).await.into_iter().flatten().collect();

    let sets: Vec<_> = devices.iter().map(ports).collect();
    assert_eq!(
        sets.iter().map(|set| set.adb).collect::<HashSet<_>>().len(),
        90
    );
    assert_eq!(
        sets.iter()
            .map(|set| set.webrtc)
            .collect::<HashSet<_>>()
            .len(),
        90
    );
    assert_eq!(
        sets.iter()
            .map(|set| set.scrcpy)
            .collect::<HashSet<_>>()
            .len(),
        90
    );
    app.devices.ports().keep().await.unwrap();
    app.devices.ports().keep().await.unwrap();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn without_redis_no_device_is_created_and_those_there_are_can_be_used(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    fred::interfaces::ClientLike::quit(&app.platform.redis)
        .await
        .unwrap();

    alice
        .post("/devices", json!({ "name": "n" }))
        .await
        .refused(StatusCode::SERVICE_UNAVAILABLE, "NOT_READY");

    assert!(app.answers(ports(&device).adb).await);
    alice.act(&device, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;
    assert_eq!(alice.status(&device).await, "stopped");
    let count: i64 = sqlx::query_scalar("select count(*) from devices.devices")
        .fetch_one(&app.platform.db)
        .await
        .unwrap();
    assert_eq!(count, 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn ports_that_another_program_occupies_are_left_out(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let foreign = TcpListener::bind((app.config.node_address, 8080))
        .await
        .unwrap();

    let device = alice.running().await;

    assert_eq!(ports(&device).webrtc, 8081);
    assert_eq!(device["status"], "running");
    drop(foreign);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_occupied_node_says_so_after_a_bounded_number_of_attempts(db: PgPool) {
    let app = TestApp::with(db, |config| {
        config.ports.adb = 5555..=5556;
    })
    .await;
    let alice = app.user("alice", &[]).await;
    let _first = TcpListener::bind((app.config.node_address, 5555))
        .await
        .unwrap();
    let _second = TcpListener::bind((app.config.node_address, 5556))
        .await
        .unwrap();

    let answer = alice.post("/devices", json!({ "name": "n" })).await;

    let answer = answer.refused(StatusCode::SERVICE_UNAVAILABLE, "NOT_READY");
    assert!(text(&answer.body, "message").contains("no free adb port on the node"));
    assert!(answer.headers.contains_key("retry-after"));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_same_key_creates_one_device_and_uses_up_no_ports(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let body = json!({ "name": "n" });
    let post = || alice.send_with("POST", "/devices", body.clone(), Some("key-1"));

    let answers = join_all((0..8).map(|_| post())).await;

    let first = answers[0].body.clone();
    for answer in answers {
        let answer = answer.expect(StatusCode::CREATED);
        assert_eq!(answer.body, first);
    }
    let again = post().await;
    assert_eq!(again.headers["idempotent-replayed"], "true");
    alice
        .send_with(
            "POST",
            "/devices",
            json!({ "name": "other" }),
            Some("key-1"),
        )
        .await
        .refused(StatusCode::UNPROCESSABLE_ENTITY, "IDEMPOTENCY_MISMATCH");
    let list = alice.get("/devices").await.body;
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(id(&list[0]), id(&first));
}
