//! No port in two hands, and how a violation would be seen.

use coordination::Invariants;
use fred::interfaces::KeysInterface;
use fred::types::Expiration;
use serde_json::json;
use sqlx::PgPool;

use crate::app::{TestApp, id};

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_port_in_two_hands_is_found_by_rows_at_once_and_by_leases_when_it_lasts(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    let alice = app.user("alice", &[]).await;
    let first = alice.create(json!({ "name": "one" })).await;
    let second = alice.create(json!({ "name": "two" })).await;
    let invariants = Invariants::new(db.clone(), "here".into());
    let look = async || {
        // A minute passes between two looks.
        let aged = "update coordination.findings set counted_at = counted_at - interval '1 minute'";
        sqlx::query(aged).execute(&db).await.unwrap();
        for check in app.devices.invariants() {
            invariants.look(&check).await.unwrap();
        }
        let report = invariants.report(10).await.unwrap().invariants.remove(0);
        let subjects = report.findings.into_iter().map(|found| found.subject);
        (report.total, subjects.collect::<Vec<_>>())
    };
    assert_eq!(look().await, (0, vec![]));

    // A lease that says another than the row: it may be passing, and counts when it stays.
    let key = app.platform.keys.ports("local") + "adb:5555";
    let lease =
        app.platform
            .redis
            .set::<(), _, _>(key, "stranger", Some(Expiration::EX(60)), None, false);
    lease.await.unwrap();
    let leased = format!("local adb 5555: {}, stranger", id(&first));
    assert_eq!(look().await, (0, vec![leased.clone()]));
    assert_eq!(look().await, (0, vec![leased.clone()]));
    assert_eq!(look().await, (1, vec![leased]));

    // Two rows with one port, as only a lost index allows them.
    sqlx::query("drop index devices.devices_webrtc_port_key")
        .execute(&db)
        .await
        .unwrap();
    sqlx::query("update devices.devices set webrtc_port = 8080")
        .execute(&db)
        .await
        .unwrap();
    let (total, subjects) = look().await;
    assert_eq!(total, 2);
    let mut both = [id(&first).to_string(), id(&second).to_string()];
    both.sort();
    let shared = format!("local webrtc 8080: {}", both.join(", "));
    assert!(subjects.contains(&shared), "{subjects:?}");
}
