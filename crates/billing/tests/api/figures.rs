//! What admins see as a whole: statistics and reports, and plans and notes that they keep.

use billing::Census;
use chrono::TimeDelta;
use contracts::{Event, EventBody, Timestamp};
use http::Request;
use platform::events::Consumer;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{Client, Reply, TestApp};

async fn send(client: &Client, method: &str, path: &str, body: Value) -> Reply {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("content-type", "application/json");
    client.send(request, body.to_string()).await
}

async fn hear(app: &TestApp, at: Timestamp, user: &str, body: EventBody) {
    let event = Event::new(user.parse().unwrap(), at, body);
    let mut tx = app.platform.db.begin().await.unwrap();
    Census.apply(&mut tx, &event).await.unwrap();
    tx.commit().await.unwrap();
}

fn changed(device: &str, status: &str) -> EventBody {
    EventBody::DeviceStatusChanged {
        device_id: device.parse().unwrap(),
        name: device.to_owned(),
        status: status.to_owned(),
        previous_status: "creating".to_owned(),
        error: None,
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_dashboard_shows_what_the_ledger_and_the_services_tell(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, boss) = (app.user("alice").await, app.admin().await);
    let now = app.platform.clock.now();
    let before = boss.get("/stats/dashboard").await.is(200);
    let registered = || EventBody::UserRegistered {
        username: "carol".into(),
    };
    hear(&app, now, "carol", registered()).await;
    hear(&app, now, "carol", registered()).await;
    hear(&app, now, "carol", changed("d1", "running")).await;
    // This one comes late: it was before the other.
    let earlier = now - TimeDelta::seconds(5);
    hear(&app, earlier, "carol", changed("d1", "stopped")).await;
    hear(&app, now, "carol", changed("d2", "error")).await;
    let gone = EventBody::DeviceDeleted {
        device_id: "d3".parse().unwrap(),
        name: "d3".into(),
    };
    hear(&app, now, "carol", gone).await;
    hear(&app, now, "carol", changed("d3", "running")).await;
    let id = alice.order("basic").await;
    alice.pay(&id).await;
    alice.order("pro").await;
    boss.post(&format!("/orders/{id}/refund"), json!({ "amount": 9 }))
        .await
        .is(200);

    let figures = boss.get("/stats/dashboard").await.is(200);
    let users = |figures: &Value| figures["totalUsers"].as_i64().unwrap();
    assert_eq!(users(&figures), users(&before) + 1);
    assert_eq!(
        json!([
            figures["activeDevices"],
            figures["todayRevenue"],
            figures["monthRevenue"],
            figures["todayOrders"],
            figures["pendingOrders"]
        ]),
        json!([1, 90, 90, 2, 1])
    );
    assert_eq!(
        boss.get("/stats/devices/distribution").await.is(200),
        json!({ "idle": 0, "running": 1, "stopped": 0, "error": 1 })
    );
    for (path, expected) in [
        ("/stats/devices/online", json!({ "count": 1 })),
        ("/stats/revenue/today", json!({ "revenue": 90 })),
        ("/stats/revenue/month", json!({ "revenue": 90 })),
    ] {
        assert_eq!(boss.get(path).await.is(200), expected, "{path}");
    }
    for (path, name, expected) in [
        ("/stats/revenue/trend?days=3", "revenue", json!(90)),
        ("/stats/users/activity?days=3", "activeUsers", json!(1)),
    ] {
        let days = boss.get(path).await.is(200);
        assert_eq!(days.as_array().unwrap().len(), 3, "{path}");
        assert_eq!(days[2][name], expected, "{path}");
        assert_eq!(days[0][name], 0, "{path}");
    }
    let growth = boss.get("/stats/users/growth?days=2").await.is(200);
    assert_eq!(growth[1]["totalUsers"], figures["totalUsers"]);
    boss.get("/stats/users/growth?days=366")
        .await
        .refused(400, "VALIDATION_FAILED");
    let report = boss.get("/reports/revenue").await.is(200);
    assert_eq!(
        json!([
            report["totalRevenue"],
            report["totalRefunds"],
            report["netRevenue"]
        ]),
        json!([99, 9, 90])
    );
    let bills = alice.get("/reports/bills/alice").await.is(200);
    assert_eq!(
        json!([bills["totalRefund"], bills["lines"][0]["type"]]),
        json!([9, "refund"])
    );
    boss.get("/reports/revenue?startDate=2025-01-02&endDate=2025-01-01")
        .await
        .refused(400, "VALIDATION_FAILED");
    for path in [
        "/stats/dashboard",
        "/stats/overview",
        "/stats/users/today",
        "/reports/revenue",
        "/reports/bills/boss",
        "/orders/stats",
        "/orders/quick-list",
    ] {
        alice.get(path).await.refused(403, "FORBIDDEN");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_admin_keeps_plans_and_a_plan_that_was_ordered_stays(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, boss) = (app.user("alice").await, app.admin().await);
    let body = json!({ "code": "team", "name": "Team", "price": 49.5, "duration": 90, "deviceLimit": 7,
        "memoryMB": 2048, "usagePrices": { "device_time": 0.0125 } });

    alice
        .post("/plans", body.clone())
        .await
        .refused(403, "FORBIDDEN");
    let plan = boss.post("/plans", body.clone()).await.is(201);
    boss.post("/billing/plans", body)
        .await
        .refused(409, "CONFLICT");
    assert_eq!(
        json!([
            plan["id"],
            plan["price"],
            plan["maxDevices"],
            plan["memoryMB"],
            plan["isActive"]
        ]),
        json!(["team", 49.5, 7, 2048, true])
    );
    for (field, bad) in [
        ("price", json!(1_000_001)),
        ("duration", json!(0)),
        ("duration", json!(3_661)),
        ("name", Value::Null),
        ("usagePrices", json!({ "device_time": -1 })),
    ] {
        let mut body = json!({ "name": "x", "price": 1, "duration": 1 });
        body[field] = bad;
        boss.post("/plans", body)
            .await
            .refused(400, "VALIDATION_FAILED");
    }
    let change = json!({ "price": 60, "isPopular": true });
    let changed = send(&boss, "PATCH", "/plans/team", change.clone()).await;
    let changed = changed.is(200);
    assert_eq!(
        json!([changed["price"], changed["isPopular"], changed["name"]]),
        json!([60, true, "Team"])
    );
    send(&alice, "PATCH", "/plans/team", change.clone())
        .await
        .refused(403, "FORBIDDEN");
    send(&boss, "PATCH", "/plans/nope", change)
        .await
        .refused(404, "NOT_FOUND");
    let names = app.anybody().get("/plans/quick-list").await.is(200);
    assert_eq!(names[0]["id"], "team");

    alice.order("pro").await;
    send(&boss, "DELETE", "/plans/pro", json!({}))
        .await
        .refused(409, "CONFLICT");
    let batch = json!({ "ids": ["team", "pro", "nope"] });
    let batch = boss.post("/plans/batch-delete", batch).await.is(200);
    assert_eq!(
        json!([batch["total"], batch["succeeded"], batch["failed"]]),
        json!([3, 1, 2])
    );
    app.anybody()
        .get("/plans/team")
        .await
        .refused(404, "NOT_FOUND");
    send(&boss, "DELETE", "/plans/basic", json!({}))
        .await
        .is(200);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn orders_are_noted_on_and_counted(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, boss) = (app.user("alice").await, app.admin().await);
    let id = alice.order("basic").await;
    alice.pay(&id).await;
    alice.order("pro").await;
    let path = format!("/orders/{id}");
    let note = json!({ "remark": "vip", "metadata": { "ticket": 7 } });

    send(&alice, "PATCH", &path, note.clone())
        .await
        .refused(403, "FORBIDDEN");
    send(&boss, "PATCH", &path, note).await.is(200);
    let put = send(&boss, "PUT", &path, json!({ "remark": "gold" })).await;

    let order = put.is(200);
    assert_eq!(
        json!([order["remark"], order["metadata"], order["status"]]),
        json!(["gold", { "ticket": 7 }, "PAID"])
    );
    let stats = boss.get("/billing/orders/stats").await.is(200);
    assert_eq!(
        json!([stats["totalOrders"], stats["totalRevenue"]]),
        json!([2, 99])
    );
    let names = boss.get("/orders/quick-list").await.is(200);
    assert_eq!(names[0]["planName"], "Pro");
    let body = json!({ "amount": 30 });
    alice.post("/balance/recharge", body.clone()).await.is(200);
    alice
        .post("/balance/consume", json!({ "amount": 3 }))
        .await
        .is(200);
    let statistics = alice.get("/balance/statistics/alice").await.is(200);
    assert_eq!(
        json!([
            statistics["currentBalance"],
            statistics["yesterdayBalance"],
            statistics["monthConsumption"],
            statistics["avgDailyConsumption"],
            statistics["forecastDaysLeft"],
            statistics["transactionCount"]
        ]),
        json!([27, 0, 3, 0.1, 270, 2])
    );
    let nobody = boss.get("/balance/statistics/nobody").await.is(200);
    assert!(nobody.get("forecastDaysLeft").is_none());
}
