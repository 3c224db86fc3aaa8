//! Foreign programs that take a port after it was leased and before its device starts.

use std::future::poll_fn;
use std::iter::successors;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use coordination::{PortKind, PortSet, RestReason};
use devices::device::Device;
use devices::operation::db::Claimed;
use devices::operation::ports::change;
use devices::operation::steps::Step;
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::net::TcpListener;
use tokio::runtime::Builder;

use crate::app::{TestApp, id, ports, until};
use crate::queue::{claim_one, freeze};

/// Listens on a port as a program does that knows nothing of us.
pub async fn occupy(app: &TestApp, port: u16) -> TcpListener {
    let address = (app.config.node_address, port);
    TcpListener::bind(address).await.unwrap()
}

/// Who holds which ports in Redis.
async fn leases(app: &TestApp) -> Vec<(String, PortSet)> {
    let leases = app.devices.ports().leases().await.unwrap();
    let leases = leases.into_iter();
    leases.map(|set| (set.owner, set.ports)).collect()
}

pub async fn resting(app: &TestApp) -> Vec<(PortKind, u16, RestReason)> {
    let resting = app.devices.ports().resting().await.unwrap();
    let resting = resting.into_iter();
    resting
        .map(|rest| (rest.kind, rest.port, rest.reason))
        .collect()
}

/// Whether Redis leases to a device what its row says, and nothing else to anybody.
async fn is_agreed(app: &TestApp, device: &Value) -> bool {
    leases(app).await == [(id(device).to_string(), ports(device))]
}

pub async fn answers_on_all(app: &TestApp, ports: PortSet) -> bool {
    for kind in PortKind::ALL {
        if !app.answers(ports.of(kind)).await {
            return false;
        }
    }
    true
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_whose_port_is_taken_before_it_starts_gets_others_and_runs(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    let alice = app.user("alice", &[]).await;
    let created = alice.create(json!({ "name": "n" })).await;
    let before = ports(&created);
    let _foreign = occupy(&app, before.webrtc).await;

    app.run_operations().await;

    let device = alice.device(&created).await;
    assert_eq!(device["status"], "running", "{device}");
    let now = ports(&device);
    assert!(answers_on_all(&app, now).await);
    assert!(is_agreed(&app, &device).await);
    let rests = [
        (PortKind::Adb, before.adb, RestReason::Returned),
        (PortKind::Scrcpy, before.scrcpy, RestReason::Returned),
        (PortKind::Webrtc, before.webrtc, RestReason::ForeignProcess),
    ];
    assert_eq!(resting(&app).await, rests);
    let attempts: i32 = sqlx::query_scalar("select attempts from devices.operations")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(attempts, 1);
    let mut changes = app.events().await;
    changes.retain(|event| event["data"]["status"] == event["data"]["previousStatus"]);
    changes.retain(|event| event["type"] == "device.status_changed");
    assert_eq!(changes.len(), 1, "{changes:?}");
    app.lose_redis().await;
    app.devices.ports().keep().await.unwrap();
    assert!(is_agreed(&app, &device).await);
    assert_eq!(resting(&app).await, rests);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_that_ran_keeps_its_ports_and_one_that_never_did_gets_others(db: PgPool) {
    let app = TestApp::with(db, |config| config.operation_attempts = 1).await;
    let alice = app.user("alice", &[]).await;
    let ran = alice.running().await;
    alice.act(&ran, "stop").await.expect(StatusCode::OK);
    let never = json!({ "name": "n", "autoStart": false });
    let never = alice.create(never).await;
    app.run_operations().await;
    let _foreign = [
        occupy(&app, ports(&ran).adb).await,
        occupy(&app, ports(&never).adb).await,
    ];

    for device in [&ran, &never] {
        alice.act(device, "start").await.expect(StatusCode::OK);
    }
    app.run_operations().await;

    let (ran_now, never_now) = (alice.device(&ran).await, alice.device(&never).await);
    assert_eq!(ran_now["status"], "error");
    let port = ports(&ran).adb;
    let told = format!("port {port} of the device is occupied by another program");
    assert_eq!(
        (&ran_now["error"], ports(&ran_now)),
        (&json!(told), ports(&ran))
    );
    assert_eq!(never_now["status"], "running", "{never_now}");
    assert!(answers_on_all(&app, ports(&never_now)).await);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn programs_that_take_every_further_port_leave_the_device_in_error(db: PgPool) {
    let app = TestApp::with(db, |config| {
        config.operation_attempts = 1;
        config.ports.adb = 5555..=5556;
    })
    .await;
    let alice = app.user("alice", &[]).await;
    let created = alice.create(json!({ "name": "n" })).await;
    let _foreign = [occupy(&app, 5555).await, occupy(&app, 5556).await];

    app.run_operations().await;

    let device = alice.device(&created).await;
    assert_eq!(device["status"], "error");
    let told = "a port of the device is occupied by another program, and no others could be leased";
    assert_eq!(
        (&device["error"], ports(&device)),
        (&json!(told), ports(&created))
    );
    assert!(is_agreed(&app, &device).await);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_worker_that_dies_anywhere_in_a_change_of_ports_leaves_one_that_can_go_on(db: PgPool) {
    let app = TestApp::with(db.clone(), |config| {
        // How long a start waits for the port, and how long what only the dead worker knows of stays leased.
        config.host_lease = Duration::from_millis(400);
        config.port_lease = Duration::from_secs(5);
    })
    .await;
    let alice = app.user("alice", &[]).await;

    // The last change is not disturbed.
    let fibonacci = successors(Some((0, 1)), |(a, b)| Some((*b, a + b)));
    let sooner_and_later = fibonacci.map(|(steps, _)| steps).take(16);
    for steps in sooner_and_later.chain([usize::MAX]) {
        let created = alice.create(json!({ "name": "n" })).await;
        let foreign = occupy(&app, ports(&created).adb).await;
        let claimed = claim_one(&db).await.unwrap();
        let changed = change_until(steps, &app, (claimed, ports(&created).adb)).await;
        let has_changed = changed.is_some();
        assert!(changed.is_none_or(|changed| changed.is_ok()));

        until("another replica has brought it to run", async || {
            freeze(&db).await;
            app.run_operations().await;
            alice.status(&created).await == "running"
        })
        .await;

        let device = alice.device(&created).await;
        assert!(answers_on_all(&app, ports(&device)).await);
        until("the device holds the lease of its ports", async || {
            app.devices.ports().keep().await.unwrap();
            let holds = (id(&device).to_string(), ports(&device));
            leases(&app).await.contains(&holds)
        })
        .await;
        let occupied = (
            PortKind::Adb,
            ports(&created).adb,
            RestReason::ForeignProcess,
        );
        assert!(resting(&app).await.contains(&occupied), "{steps} steps");
        alice.delete(&device).await.expect(StatusCode::OK);
        app.run_operations().await;
        drop(foreign);
        assert!(has_changed || steps < usize::MAX);
    }

    until("nobody holds ports", async || {
        app.devices.ports().keep().await.unwrap();
        leases(&app).await.is_empty()
    })
    .await;
}

/// Changes the ports of a device at another replica that dies after so many steps of that, or, with an outcome, when it is
/// done. Its connections break, and it undoes nothing.
async fn change_until(
    steps: usize,
    app: &TestApp,
    (claimed, occupied): (Claimed, u16),
) -> Option<Step<Device>> {
    let app = app.clone();
    let db = app.platform.db.clone();
    let worker = (*db.connect_options()).clone().application_name("dies");
    let working = tokio::task::spawn_blocking(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let ended = runtime.block_on(async move {
            let db = PgPoolOptions::new().max_connections(2);
            let db = db.connect_with(worker).await.unwrap();
            // Both are signed in: for one that dies while it signs in PostgreSQL waits a minute, and drops no database
            // until then, neither this test's nor another's.
            let connections = (db.acquire().await.unwrap(), db.acquire().await.unwrap());
            drop(connections);
            let app = app.elsewhere(db).await;
            let mut work = Box::pin(async move { change(&app.devices, &claimed, occupied).await });
            let ended = stopped_after(steps, work.as_mut()).await;
            std::mem::forget(work);
            ended
        });
        runtime.shutdown_background();
        ended
    });
    let ended = working.await.unwrap();
    let connections = "select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and application_name = 'dies'";
    sqlx::query(connections).execute(&db).await.unwrap();
    ended
}

/// What some work comes to, unless it is not done after so many of its steps.
async fn stopped_after<T>(steps: usize, mut work: impl Future<Output = T> + Unpin) -> Option<T> {
    let mut left = steps;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        Pin::new(&mut work).poll(context).map(Some)
    })
    .await
}
