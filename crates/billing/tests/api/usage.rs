//! How long devices ran: told by their service, stored once, shown to their owner.

use billing::{Meter, UnitPrice};
use chrono::{DateTime, TimeDelta, Utc};
use contracts::{Event, EventBody, Timestamp};
use platform::events::Consumer;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::TestApp;

fn used(user: &str, device: &str, began: DateTime<Utc>, minutes: i32) -> Event {
    let body = EventBody::DeviceUsed {
        device_id: device.parse().unwrap(),
        began_at: began.into(),
        ended_at: (began + TimeDelta::hours(1)).into(),
        minutes,
    };
    let told = Timestamp::from(began + TimeDelta::minutes(67));
    Event::new(user.parse().unwrap(), told, body)
}

async fn hear(app: &TestApp, event: &Event) {
    let mut tx = app.platform.db.begin().await.unwrap();
    let price = UnitPrice::default();
    Meter { price }.apply(&mut tx, event).await.unwrap();
    tx.commit().await.unwrap();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_hour_of_a_device_is_stored_once_however_often_it_is_told(db: PgPool) {
    let replicas = [
        TestApp::replica(&db).await,
        TestApp::replica(&db).await,
        TestApp::new(db).await,
    ];
    let app = &replicas[2];
    let alice = app.user("alice").await;
    let now = app.platform.clock.now().utc();
    let hours_ago = |hours| now - TimeDelta::hours(hours);

    let (first, again) = (
        used("alice", "d1", hours_ago(2), 40),
        used("alice", "d1", hours_ago(2), 40),
    );
    let telling = (0..12).map(|n| hear(&replicas[n % 3], if n % 2 == 0 { &first } else { &again }));
    futures::future::join_all(telling).await;
    for event in [
        used("alice", "d1", hours_ago(1), 60),
        used("alice", "d2", hours_ago(300), 7),
        used("bob", "d3", hours_ago(1), 5),
    ] {
        hear(app, &event).await;
    }

    let records = alice.get("/usage/user/alice").await.is(200);
    let of = |records: &Value| {
        let records = records.as_array().unwrap().iter();
        let quantities = records.map(|record| {
            assert_eq!(
                (&record["resourceType"], &record["totalCost"]),
                (&json!("device_time"), &json!(0))
            );
            json!([record["deviceId"], record["quantity"]])
        });
        json!(quantities.collect::<Vec<_>>())
    };
    assert_eq!(of(&records), json!([["d1", 60], ["d1", 40], ["d2", 7]]));
    let page = alice
        .get("/billing/usage/alice?deviceId=d1&pageSize=1&page=2")
        .await
        .is(200);
    assert_eq!(
        (&page["total"], of(&page["data"])),
        (&json!(2), json!([["d1", 40]]))
    );
    let sums = |statistics: &Value| {
        json!([
            statistics["totalUsage"],
            statistics["recordCount"],
            statistics["byResource"][0]["totalUsage"]
        ])
    };
    for (period, expected) in [
        ("", json!([100, 2, 100])),
        ("?period=month", json!([107, 3, 107])),
        ("?period=all", json!([107, 3, 107])),
        (
            "?startDate=2020-01-01&endDate=2020-02-01",
            json!([0, 0, null]),
        ),
    ] {
        let path = format!("/usage/user/alice/statistics{period}");
        assert_eq!(sums(&alice.get(&path).await.is(200)), expected, "{period}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn usage_is_shown_to_its_user_and_to_admins(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob, boss) = (
        app.user("alice").await,
        app.user("bob").await,
        app.admin().await,
    );
    let began = app.platform.clock.now().utc() - TimeDelta::hours(3);
    hear(&app, &used("alice", "d1", began, 30)).await;
    hear(&app, &used("bob", "d2", began, 12)).await;

    for path in [
        "/usage/user/alice",
        "/usage/user/alice/statistics",
        "/billing/usage/alice",
        "/billing/admin/usage/records",
        "/billing/admin/usage/stats",
    ] {
        bob.get(path).await.refused(403, "FORBIDDEN");
        app.anybody()
            .get(path)
            .await
            .refused(401, "UNAUTHENTICATED");
        boss.get(path).await.is(200);
    }
    alice
        .get("/usage/user/alice/statistics?period=fortnight")
        .await
        .refused(400, "VALIDATION_FAILED");

    let records = boss.get("/billing/admin/usage/records").await.is(200);
    assert_eq!(records["total"], 2);
    let stats = boss.get("/billing/admin/usage/stats").await.is(200);
    assert_eq!(
        (
            &stats["totalUsage"],
            &stats["totalUsers"],
            &stats["totalDevices"]
        ),
        (&json!(42), &json!(2), &json!(2))
    );
}
