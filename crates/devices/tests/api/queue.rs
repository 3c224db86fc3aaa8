//! Workers that share the queue.

use std::time::Duration;

use devices::operation::db::{Boots, Claimed, advance, claim, finish, renew};
use futures::future::join_all;
use http::StatusCode;
use platform::lifecycle::Tasks;
use serde_json::json;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::app::{TestApp, id, ports, until};

const LEASE: Duration = Duration::from_secs(15);

/// Claims what is next.
pub async fn claim_one(db: &PgPool) -> Option<Claimed> {
    let mut conn = db.acquire().await.unwrap();
    let boots = Boots {
        of_nodes: Vec::new(),
        here: 8,
    };
    let claimed = claim(&mut conn, boots, false, LEASE, 1).await.unwrap();
    claimed.into_iter().next()
}

/// Lets the leases of all workers end.
pub async fn freeze(db: &PgPool) {
    sqlx::query("update devices.operations set lease_until = clock_timestamp() - interval '1 second' where state = 'running'")
        .execute(db)
        .await
        .unwrap();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_late_write_of_a_worker_that_was_frozen_changes_nothing(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(json!({ "name": "n" })).await;
    let frozen = claim_one(&db).await.unwrap();
    assert!(claim_one(&db).await.is_none());
    freeze(&db).await;

    app.run_operations().await;
    assert_eq!(alice.status(&device).await, "running");
    alice.act(&device, "stop").await.expect(StatusCode::OK);

    let mut conn = db.acquire().await.unwrap();
    let now = app.platform.clock.now();
    assert!(!renew(&mut conn, &frozen, LEASE).await.unwrap());
    assert!(!advance(&mut conn, &frozen, "late").await.unwrap());
    assert!(
        !finish(&mut conn, &frozen, "failed", Some("late"), now)
            .await
            .unwrap()
    );
    app.run_operations().await;
    assert_eq!(alice.status(&device).await, "stopped");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_late_start_of_a_worker_that_was_frozen_opens_no_port(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(json!({ "name": "n" })).await;
    let frozen = claim_one(&db).await.unwrap();
    freeze(&db).await;
    app.run_operations().await;
    alice.act(&device, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;

    let late = app.another().await;
    let outcome = devices::operation::steps::carry_out(&late.devices, &frozen).await;

    assert!(outcome.is_err());
    assert!(!app.answers(ports(&device).adb).await);
    assert_eq!(alice.status(&device).await, "stopped");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn workers_that_claim_at_once_never_get_the_same_device(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    let alice = app.user("alice", &[]).await;
    for _ in 0..20 {
        let device = alice.create(json!({ "name": "n" })).await;
        alice.delete(&device).await.expect(StatusCode::OK);
    }

    let claims = join_all((0..40).map(|_| claim_one(&db))).await;

    let mut devices: Vec<_> = claims
        .into_iter()
        .flatten()
        .map(|claimed| claimed.device_id)
        .collect();
    let count = devices.len();
    devices.sort();
    devices.dedup();
    assert_eq!((count, devices.len()), (20, 20));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn three_replicas_work_on_everything_once(db: PgPool) {
    let first = TestApp::new(db.clone()).await;
    let replicas = [first.clone(), first.another().await, first.another().await];
    let alice = first.user("alice", &[]).await;
    let mut made = Vec::new();
    for _ in 0..12 {
        made.push(alice.create(json!({ "name": "n" })).await);
    }

    join_all(replicas.iter().map(TestApp::run_operations)).await;

    for device in &made {
        assert_eq!(alice.status(device).await, "running");
        assert!(first.answers(ports(device).adb).await);
    }
    let most: i32 = sqlx::query_scalar("select max(attempts) from devices.operations")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(most, 1);
    // Whoever hosts a device, another replica can stop it.
    join_all(made.iter().map(|device| alice.act(device, "stop"))).await;
    let hosting = async {
        loop {
            join_all(replicas.iter().map(TestApp::host)).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = hosting => {}
        () = until("all are stopped", async || {
            join_all(replicas.iter().map(TestApp::run_operations)).await;
            let stopped: i64 = sqlx::query_scalar("select count(*) from devices.devices where status = 'stopped'")
                .fetch_one(&db)
                .await
                .unwrap();
            stopped == 12
        }) => {}
    }
    for device in &made {
        assert!(!first.answers(ports(device).adb).await, "{}", id(device));
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_worker_that_waits_for_a_connection_goes_on_with_what_it_has(db: PgPool) {
    // Whoever waits here waits for ever, unless what holds the connections goes on.
    let few = PgPoolOptions::new()
        .max_connections(2)
        .acquire_timeout(Duration::from_secs(600));
    let few = few.connect_with((*db.connect_options()).clone()).await;
    let app = TestApp::new(few.unwrap()).await;
    let alice = app.user("alice", &[]).await;
    let mut made = Vec::new();
    for _ in 0..24 {
        made.push(alice.create(json!({ "name": "n" })).await);
    }

    let tasks = Tasks::new();
    app.devices.spawn_jobs(&tasks).await.unwrap();

    until("all run", async || {
        let answer = alice.get("/devices/my/stats").await.expect(StatusCode::OK);
        answer.body["running"] == made.len()
    })
    .await;
    let left = tasks.stop(Duration::from_secs(10)).await;
    assert!(left.is_empty(), "{left:?}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn devices_of_a_node_that_is_down_leave_hands_for_all_others(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    let alice = app.user("alice", &[]).await;
    for _ in 0..4 {
        alice.running().await;
    }
    for statement in [
        "update devices.devices set runtime = 'docker'",
        "update devices.nodes set down_since = now(), down_reason = 'burnt'",
        "insert into devices.operations (saga_id, device_id, kind, state, begun, step, created_at)
            select id, id, 'repair', 'queued', true, 'queued', now() from devices.devices",
    ] {
        sqlx::query(statement).execute(&db).await.unwrap();
    }
    let mut conn = db.acquire().await.unwrap();

    let mut claimed = Vec::new();
    for here in [0, 3, 1] {
        let of_nodes = vec![("elsewhere".to_owned(), 8)];
        let boots = Boots { of_nodes, here };
        let some = claim(&mut conn, boots, true, LEASE, 10).await;
        claimed.push(some.unwrap().len());
    }

    assert_eq!(claimed, [0, 3, 1]);
}
