//! What devices use, for how long they ran, and what is deleted when nobody asks for it any more.

use chrono::{DateTime, TimeDelta, Utc};
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use devices::measure::db::{Due, Measured, claim};
use devices::measure::{Counted, between};

use crate::adb::install;
use crate::app::{TestApp, User, id, ports, text};

async fn measure(app: &TestApp) {
    // Whatever the hour, a slot is begun that nobody has claimed.
    sqlx::query("update devices.readings set slot = slot - interval '1 hour'")
        .execute(&app.platform.db)
        .await
        .unwrap();
    app.platform.clock.advance(TimeDelta::seconds(15));
    devices::measure::collect::step(&app.devices).await.unwrap();
}

async fn metrics(user: &User, device: &Value) -> Value {
    let path = format!("/devices/{}/metrics", id(device));
    user.get(&path).await.expect(StatusCode::OK).body
}

async fn count(app: &TestApp, table: &'static str) -> i64 {
    let query = match table {
        "metrics" => "select count(*) from devices.metrics where step = 0",
        "operations" => "select count(*) from devices.operations",
        "usage" => "select count(*) from devices.usage",
        "runs" => "select count(*) from devices.runs",
        "readings" => "select count(*) from devices.readings",
        _ => unreachable!("{table}"),
    };
    sqlx::query_scalar(query)
        .fetch_one(&app.platform.db)
        .await
        .unwrap()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_running_device_is_measured_and_a_stopped_one_shows_zeros(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob) = (app.user("alice", &[]).await, app.user("bob", &[]).await);
    let device = alice.running().await;
    measure(&app).await;
    install(
        app.config.node_address,
        ports(&device).adb,
        "com.example.app",
    )
    .await;
    measure(&app).await;

    let shown = metrics(&alice, &device).await;
    assert_eq!(
        (&shown["deviceId"], &shown["status"], &shown["providerType"]),
        (&device["id"], &json!("running"), &json!("redroid"))
    );
    for bytes in ["networkRx", "networkTx"] {
        assert!(shown[bytes].as_i64().unwrap() > 0, "{bytes} of {shown}");
    }
    for usage in [
        "cpuUsage",
        "memoryUsage",
        "storageUsage",
        "cpu",
        "memory",
        "storage",
    ] {
        let usage = shown[usage].as_f64().unwrap();
        assert!((0.0..=100.0).contains(&usage), "{shown}");
    }
    let path = format!("/devices/{}/metrics/history?period=5m", id(&device));
    let history = alice.get(&path).await.expect(StatusCode::OK).body;
    let history = history.as_array().unwrap();
    let received: i64 = history
        .iter()
        .map(|point| point["networkIn"].as_i64().unwrap())
        .sum();
    assert_eq!(received, shown["networkRx"].as_i64().unwrap());
    let times: Vec<_> = history.iter().map(|point| text(point, "time")).collect();
    assert!(times.is_sorted(), "{times:?}");
    let quota = alice
        .get("/quotas/user/alice")
        .await
        .expect(StatusCode::OK)
        .body;
    assert!(quota["usage"]["monthlyTrafficUsedGB"].is_f64(), "{quota}");

    for path in ["metrics", "stats", "metrics/history"] {
        let path = format!("/devices/{}/{path}", id(&device));
        alice.get(&path).await.expect(StatusCode::OK);
        bob.get(&path)
            .await
            .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
    }
    let unknown = format!("/devices/{}/metrics/history?period=2h", id(&device));
    alice
        .get(&unknown)
        .await
        .refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
    let body = json!({ "ids": [device["id"], "none"] });
    let stats = alice
        .post("/devices/batch/stats", body.clone())
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(
        stats["stats"][text(&device, "id")]["networkRx"],
        shown["networkRx"]
    );
    assert_eq!(
        bob.post("/devices/batch/stats", body).await.body["stats"],
        json!({})
    );

    alice.act(&device, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;
    let stopped = metrics(&alice, &device).await;
    assert_eq!(
        (&stopped["cpuUsage"], &stopped["networkRx"]),
        (&json!(0.0), &json!(0))
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_is_measured_once_a_slot_by_the_replica_that_hosts_it(db: PgPool) {
    let app = TestApp::with(db, |config| {
        // Ten years: no slot ends meanwhile.
        config.measure_every = std::time::Duration::from_secs(3_650 * 86_400);
    })
    .await;
    let alice = app.user("alice", &[]).await;
    for _ in 0..3 {
        alice.running().await;
    }
    let other = app.another().await;

    let steps = (0..6).map(|number| {
        let app = if number % 2 == 0 {
            app.clone()
        } else {
            other.clone()
        };
        async move { devices::measure::collect::step(&app.devices).await.unwrap() }
    });
    futures::future::join_all(steps).await;

    let measured: Vec<i64> = sqlx::query_scalar(
        "select count(*) from devices.metrics where step = 0 group by device_id",
    )
    .fetch_all(&app.platform.db)
    .await
    .unwrap();
    assert_eq!(measured, [1, 1, 1]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_lies_between_two_measurements_is_counted_once_whoever_was_late(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    let began = app.platform.clock.now();
    let host = app.devices.runtimes().simulated.host().to_owned();
    let claim = async |slot: i64| {
        let mut conn = app.platform.db.acquire().await.unwrap();
        let slot = began + TimeDelta::seconds(15 * slot);
        let claimed = claim(&mut conn, slot, (&[], &host), 10).await;
        claimed.unwrap().pop().unwrap()
    };
    let write = async |due: &Due, seconds: i64, rx: i64| {
        let at = began + TimeDelta::seconds(seconds);
        let counted = Counted {
            rx,
            ..Counted::default()
        };
        let used = between(&due.before(at), &counted, due.cpu_cores);
        let one = Measured {
            due: due.clone(),
            at,
            counted,
            used,
        };
        let mut tx = app.platform.db.begin().await.unwrap();
        let written = devices::measure::db::write(&mut tx, &[one]).await.unwrap();
        tx.commit().await.unwrap();
        written
    };
    let first = claim(0).await;
    assert_eq!(write(&first, 1, 100).await, 1);

    // The next one is slow: before it writes, another replica has measured the slot after it.
    let (slow, quick) = (claim(1).await, claim(2).await);
    assert_eq!(write(&quick, 31, 1_200).await, 1);
    assert_eq!(write(&slow, 16, 1_100).await, 0);
    let last = claim(3).await;
    assert_eq!(write(&last, 46, 1_500).await, 1);

    let traffic: i64 = sqlx::query_scalar("select bytes from devices.traffic")
        .fetch_one(&app.platform.db)
        .await
        .unwrap();
    assert_eq!((traffic, count(&app, "metrics").await), (1_400, 3));
    assert_eq!(metrics(&alice, &device).await["networkRx"], 1_400);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_history_grows_coarser_with_its_age_and_ends(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    // A measurement each fifteen seconds of the last three hours, of as many percent as minutes ago.
    sqlx::query(
        "insert into devices.metrics (step, device_id, at, cpu_usage, memory_usage, storage_usage, network_in, network_out)
        select 0, $1, t, least(100, extract(epoch from now() - t) / 60), 10, 20, 3, 4
        from generate_series(now() - interval '3 hours', now(), interval '15 seconds') t",
    )
    .bind(id(&device))
    .execute(&app.platform.db)
    .await
    .unwrap();
    let stop = CancellationToken::new();

    for _ in 0..2 {
        devices::measure::jobs::tidy(&app.devices, &stop)
            .await
            .unwrap();
    }

    let kept = count(&app, "metrics").await;
    assert!((470..=482).contains(&kept), "{kept} of two hours are kept");
    let minutes: Vec<(i64, i64)> = sqlx::query_as(
        "select network_in, count(*) from devices.metrics where step = 60 group by 1 order by 1",
    )
    .fetch_all(&app.platform.db)
    .await
    .unwrap();
    let [(12, whole)] = minutes[..] else {
        panic!("four measurements of a minute each are put together: {minutes:?}");
    };
    assert!((119..=121).contains(&whole), "{whole} minutes of two hours");
    let quarters: i64 = sqlx::query_scalar("select count(*) from devices.metrics where step = 900")
        .fetch_one(&app.platform.db)
        .await
        .unwrap();
    assert!(
        (7..=9).contains(&quarters),
        "{quarters} quarters of an hour"
    );

    // What was put together stays as it is, and what nobody has put together for long is made good.
    sqlx::query(
        "update devices.rolled_up set until = until - interval '70 minutes' where step = 60",
    )
    .execute(&app.platform.db)
    .await
    .unwrap();
    sqlx::query("delete from devices.metrics where step = 60 and at >= (select until from devices.rolled_up where step = 60)")
        .execute(&app.platform.db)
        .await
        .unwrap();
    devices::measure::jobs::tidy(&app.devices, &stop)
        .await
        .unwrap();
    let again: i64 = sqlx::query_scalar("select count(*) from devices.metrics where step = 60")
        .fetch_one(&app.platform.db)
        .await
        .unwrap();
    assert!((whole..=whole + 1).contains(&again), "{again} minutes");
    let path = |period: &str| format!("/devices/{}/metrics/history?period={period}", id(&device));
    for (period, most) in [("5m", 21), ("15m", 61), ("1h", 241), ("6h", 122)] {
        let history = alice.get(&path(period)).await.expect(StatusCode::OK).body;
        let points = history.as_array().unwrap().len();
        assert!((1..=most).contains(&points), "{points} points in {period}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_minutes_of_an_hour_are_told_once_for_each_device(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let (one, other) = (alice.running().await, alice.running().await);
    let hour: DateTime<Utc> = "2026-01-02T03:00:00Z".parse().unwrap();
    let run = |device: &Value, from: i64, minutes: Option<i64>| {
        let began = hour + TimeDelta::minutes(from);
        let ended = minutes.map(|minutes| began + TimeDelta::minutes(minutes));
        let insert = sqlx::query(
            "insert into devices.runs (device_id, user_id, began_at, ended_at) values ($1, 'alice', $2, $3)",
        );
        insert
            .bind(id(device))
            .bind(began)
            .bind(ended)
            .execute(&app.platform.db)
    };
    sqlx::query("delete from devices.runs")
        .execute(&app.platform.db)
        .await
        .unwrap();
    run(&one, -30, Some(40)).await.unwrap();
    run(&one, 20, Some(5)).await.unwrap();
    run(&other, 15, None).await.unwrap();
    let stop = CancellationToken::new();

    let slot = hour + TimeDelta::minutes(67);
    let another = app.another().await;
    let (first, second) = tokio::join!(
        devices::device::usage::tell(&app.devices, slot, &stop),
        devices::device::usage::tell(&another.devices, slot, &stop)
    );
    first.unwrap();
    second.unwrap();
    devices::device::usage::tell(&app.devices, slot, &stop)
        .await
        .unwrap();

    let events = app.events().await;
    let mut told: Vec<_> = events
        .iter()
        .filter(|event| event["type"] == "device.used")
        .map(|event| {
            (
                text(&event["data"], "deviceId"),
                event["data"]["minutes"].clone(),
            )
        })
        .collect();
    told.sort_by_key(|(device, _)| device.clone());
    let mut expected = vec![
        (text(&one, "id"), json!(15)),
        (text(&other, "id"), json!(45)),
    ];
    expected.sort_by_key(|(device, _)| device.clone());
    assert_eq!(told, expected);
    let data = &events
        .iter()
        .find(|event| event["type"] == "device.used")
        .unwrap()["data"];
    assert_eq!(
        (&data["beganAt"], &data["endedAt"]),
        (
            &json!("2026-01-02T03:00:00.000Z"),
            &json!("2026-01-02T04:00:00.000Z")
        )
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_over_for_long_is_deleted_and_what_is_not_stays(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let (old, young) = (alice.running().await, alice.running().await);
    measure(&app).await;
    alice.delete(&old).await.expect(StatusCode::OK);
    app.run_operations().await;
    alice.act(&young, "stop").await.expect(StatusCode::OK);
    sqlx::query("update devices.operations set finished_at = finished_at - interval '8 days' where device_id = $1")
        .bind(id(&old))
        .execute(&app.platform.db)
        .await
        .unwrap();
    sqlx::query("update devices.runs set began_at = began_at - interval '90 days', ended_at = ended_at - interval '90 days' where device_id = $1")
        .bind(id(&old))
        .execute(&app.platform.db)
        .await
        .unwrap();
    assert_eq!(
        (count(&app, "operations").await, count(&app, "runs").await),
        (4, 2)
    );

    let stop = CancellationToken::new();
    devices::device::clearing::clear(&app.devices, &stop)
        .await
        .unwrap();

    // The creation of the young one, and its stop that is not over.
    assert_eq!(
        (count(&app, "operations").await, count(&app, "runs").await),
        (2, 1)
    );
    assert_eq!(count(&app, "readings").await, 1);
    app.run_operations().await;
    assert_eq!(alice.status(&young).await, "stopped");
}
