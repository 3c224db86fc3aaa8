//! What usage costs: debited once, owed where the balance is too small, and told when the balance falls low.

use billing::{Meter, UnitPrice};
use chrono::TimeDelta;
use contracts::{Event, EventBody, Timestamp};
use futures::future::join_all;
use platform::events::Consumer;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{Client, TestApp};

async fn hour(app: &TestApp, device: &str, hours_ago: i64, minutes: i32) {
    // The same hour has the same beginning, whoever tells it and when.
    let today = app.platform.clock.now().utc().date_naive();
    let midnight = today.and_hms_opt(0, 0, 0).unwrap().and_utc();
    let began = midnight + TimeDelta::hours(24 - hours_ago);
    let body = EventBody::DeviceUsed {
        device_id: device.parse().unwrap(),
        began_at: began.into(),
        ended_at: (began + TimeDelta::hours(1)).into(),
        minutes,
    };
    let event = Event::new("alice".parse().unwrap(), Timestamp::from(began), body);
    let price = UnitPrice::from_yuan(0.05).unwrap();
    let mut tx = app.platform.db.begin().await.unwrap();
    Meter { price }.apply(&mut tx, &event).await.unwrap();
    tx.commit().await.unwrap();
}

/// A device of alice ran all of an hour from a moment on.
async fn ran(app: &TestApp, device: &str, began: Timestamp) {
    let body = EventBody::DeviceUsed {
        device_id: device.parse().unwrap(),
        began_at: began,
        ended_at: began + TimeDelta::hours(1),
        minutes: 60,
    };
    let event = Event::new("alice".parse().unwrap(), began, body);
    let price = UnitPrice::from_yuan(1.0).unwrap();
    let mut tx = app.platform.db.begin().await.unwrap();
    Meter { price }.apply(&mut tx, &event).await.unwrap();
    tx.commit().await.unwrap();
}

async fn recharge(client: &Client, amount: i64) {
    let body = json!({ "amount": amount });
    client.post("/balance/recharge", body).await.is(200);
}

async fn balance(client: &Client) -> Value {
    client.get("/balance/user/alice").await.is(200)["balance"].clone()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_hour_is_charged_once_however_often_and_late_it_is_told(db: PgPool) {
    let replicas = [
        TestApp::replica(&db).await,
        TestApp::replica(&db).await,
        TestApp::replica(&db).await,
    ];
    let app = &replicas[0];
    let alice = app.user("alice").await;
    recharge(&alice, 10).await;

    join_all((0..12).map(|n| hour(&replicas[n % 3], "d1", 2 + (n as i64 % 2), 40))).await;
    hour(app, "d1", 2, 55).await;

    assert_eq!(balance(&alice).await, 6);
    let records = alice.get("/usage/user/alice").await.is(200);
    assert_eq!(
        json!([
            records[0]["quantity"],
            records[0]["unitPrice"],
            records[0]["totalCost"]
        ]),
        json!([40, 0.05, 2])
    );
    assert_eq!(records.as_array().unwrap().len(), 2);
    let boss = app.admin().await;
    let proof = boss.get("/admin/ledger/verify").await.is(200);
    assert_eq!(proof["ok"], true, "{proof}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_the_balance_does_not_cover_is_owed_and_collected_later(db: PgPool) {
    let replicas = [TestApp::replica(&db).await, TestApp::replica(&db).await];
    let app = &replicas[0];
    let alice = app.user("alice").await;
    recharge(&alice, 1).await;

    for hours_ago in 2..5 {
        hour(app, "d1", hours_ago, 60).await;
    }
    assert_eq!(balance(&alice).await, 1);
    assert_eq!(app.events("debt.recorded").await, 3);
    app.run_job("collect-debts").await;
    assert_eq!(balance(&alice).await, 1);
    recharge(&alice, 6).await;
    join_all(
        replicas
            .iter()
            .map(|replica| replica.run_job("collect-debts")),
    )
    .await;

    // Of three debts of 3 yuan, 7 yuan pay two.
    assert_eq!(balance(&alice).await, 1);
    let open = "select count(*) from billing.debts where settled_at is null";
    assert_eq!(app.count(open).await, 1);
    recharge(&alice, 6).await;
    join_all(
        replicas
            .iter()
            .map(|replica| replica.run_job("collect-debts")),
    )
    .await;
    assert_eq!(balance(&alice).await, 4);
    assert_eq!(app.count(open).await, 0);
    let boss = app.admin().await;
    let proof = boss.get("/admin/ledger/verify").await.is(200);
    assert_eq!(proof["ok"], true, "{proof}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn recorded_usage_is_debited_or_not_recorded(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, boss) = (app.user("alice").await, app.admin().await);
    recharge(&alice, 10).await;
    let usage = |quantity: f64, price: f64| {
        json!({ "userId": "alice", "deviceId": "d1", "resourceType": "traffic",
            "quantity": quantity, "unitPrice": price })
    };

    let body = usage(2.5, 1.25);
    let recorded = alice
        .post_once("/usage/record", "k", body.clone())
        .await
        .is(201);
    let again = alice.post_once("/usage/record", "k", body).await.is(201);

    assert_eq!(again, recorded);
    assert_eq!(
        json!([recorded["totalCost"], recorded["quantity"]]),
        json!([3.13, 2.5])
    );
    assert_eq!(balance(&alice).await, 6.87);
    alice
        .post("/usage/record", usage(7.0, 1.0))
        .await
        .refused(402, "INSUFFICIENT_BALANCE");
    for (quantity, price) in [(0.0, 1.0), (-1.0, 1.0), (1.0, -0.5), (1.0, 0.00001)] {
        alice
            .post("/usage/record", usage(quantity, price))
            .await
            .refused(400, "VALIDATION_FAILED");
    }
    alice.post("/usage/record", usage(1.0, 0.0)).await.is(201);
    assert_eq!(
        app.count("select count(*) from billing.usage_records")
            .await,
        2
    );
    let statistics = alice.get("/usage/user/alice/statistics").await.is(200);
    assert_eq!(
        json!([
            statistics["totalUsage"],
            statistics["totalCost"],
            statistics["byResource"][0]["resourceType"]
        ]),
        json!([3.5, 3.13, "traffic"])
    );
    // Elsewhere the sandbox is closed: the price is the plan's.
    let far = boss.elsewhere();
    far.post("/usage/record", usage(1.0, 1.0))
        .await
        .refused(400, "VALIDATION_FAILED");
    far.post("/usage/record", usage(1.0, 0.0)).await.is(201);
    alice
        .elsewhere()
        .post("/usage/record", usage(1.0, 0.0))
        .await
        .refused(403, "SANDBOX_ONLY");
    alice.post("/orders", json!({ "planId": "basic" })).await;
    let order = alice.order("basic").await;
    alice.pay(&order).await;
    sqlx::query("update billing.plans set usage_prices = '{\"traffic\": 5000}' where id = 'basic'")
        .execute(&app.platform.db)
        .await
        .unwrap();
    let priced = far.post("/usage/record", usage(3.0, 0.5)).await.is(201);
    assert_eq!(priced["totalCost"], 1.5);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_use_is_billed_once_however_often_it_is_stopped(db: PgPool) {
    let replicas = [TestApp::replica(&db).await, TestApp::replica(&db).await];
    let app = &replicas[0];
    let (alice, boss) = (app.user("alice").await, app.admin().await);
    let bosses = [boss.clone(), replicas[1].admin().await];
    sqlx::query(
        "update billing.plans set usage_prices = '{\"device_time\": 10000}' where id = 'basic'",
    )
    .execute(&app.platform.db)
    .await
    .unwrap();
    alice.pay(&alice.order("basic").await).await;
    recharge(&alice, 10).await;
    let body = json!({ "userId": "alice", "deviceId": "d9" });
    alice
        .post("/billing/usage/start", body.clone())
        .await
        .refused(403, "FORBIDDEN");

    let started = join_all(
        bosses
            .iter()
            .map(|boss| boss.post("/billing/usage/start", body.clone())),
    )
    .await;
    assert_eq!(started[0].body["id"], started[1].body["id"]);
    let other = json!({ "userId": "bob", "deviceId": "d9" });
    boss.post("/billing/usage/start", other)
        .await
        .refused(409, "CONFLICT");
    for replica in &replicas {
        replica.platform.clock.advance(TimeDelta::seconds(150));
    }
    let stop = json!({ "recordId": started[0].body["id"] });
    let stopped =
        join_all((0..6).map(|n| bosses[n % 2].post("/billing/usage/stop", stop.clone()))).await;

    for reply in stopped {
        assert_eq!(reply.is(200)["totalCost"], 3);
    }
    assert_eq!(balance(&alice).await, 7);
    let nobodys = json!({ "recordId": "none" });
    boss.post("/billing/usage/stop", nobodys)
        .await
        .refused(404, "NOT_FOUND");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_minute_is_billed_once_by_an_hour_or_a_session_whichever_comes_first(db: PgPool) {
    let replicas = [TestApp::replica(&db).await, TestApp::replica(&db).await];
    let [app, other] = &replicas;
    let (alice, boss) = (app.user("alice").await, app.admin().await);
    sqlx::query(
        "update billing.plans set usage_prices = '{\"device_time\": 10000}' where id = 'basic'",
    )
    .execute(&app.platform.db)
    .await
    .unwrap();
    alice.pay(&alice.order("basic").await).await;
    let minutes = |device: &'static str| {
        let pool = app.platform.db.clone();
        async move {
            let sum = "select coalesce(sum(amount), 0)::bigint / 100 from billing.debts where device_id = $1";
            let sum: i64 = sqlx::query_scalar(sum)
                .bind(device)
                .fetch_one(&pool)
                .await
                .unwrap();
            sum
        }
    };
    let start = |device: &'static str| {
        let boss = boss.clone();
        async move {
            let body = json!({ "userId": "alice", "deviceId": device });
            let session = boss.post("/billing/usage/start", body).await.is(200);
            let began: Timestamp = serde_json::from_value(session["startTime"].clone()).unwrap();
            (json!({ "recordId": session["id"] }), began)
        }
    };
    // None has money: a session and an hour with the same beginning are both owed.
    let (first, began) = start("session-first").await;
    let (hours, hours_began) = start("hour-first").await;
    let (raced, raced_began) = start("race").await;
    for replica in &replicas {
        replica.platform.clock.advance(TimeDelta::minutes(10));
    }

    let stopped = boss.post("/billing/usage/stop", first).await.is(200);
    assert_eq!(stopped["totalCost"], 10);
    ran(app, "session-first", began).await;
    ran(other, "session-first", began).await;
    assert_eq!(minutes("session-first").await, 60);
    assert_eq!(app.count("select count(*) from billing.debts").await, 2);

    ran(app, "hour-first", hours_began).await;
    let stopped = boss.post("/billing/usage/stop", hours.clone()).await;
    assert_eq!(stopped.is(200)["totalCost"], 0);
    let again = boss.post("/billing/usage/stop", hours).await.is(200);
    assert!(again["endTime"].is_string());
    assert_eq!(minutes("hour-first").await, 60);

    let elsewhere = other.admin().await;
    tokio::join!(
        async {
            elsewhere.post("/billing/usage/stop", raced).await.is(200);
        },
        ran(app, "race", raced_began),
    );
    assert_eq!(minutes("race").await, 60);
    let used = boss.get("/metering/devices/race").await.is(200);
    assert_eq!(used["totalUsage"], 60, "{used}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn while_a_refund_is_on_its_way_the_plan_goes_on_and_an_hour_has_the_price_of_its_time(
    db: PgPool,
) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let store = &app.platform.db;
    let plan = "update billing.plans set usage_prices = '{\"device_time\": 0}' where id = 'basic'";
    sqlx::query(plan).execute(store).await.unwrap();
    let start = app.platform.clock.now();
    alice.pay(&alice.order("basic").await).await;
    recharge(&alice, 100).await;
    let state = |state: &'static str| {
        let update = sqlx::query("update billing.orders set state = $1");
        update.bind(state).execute(store)
    };

    for (told, days) in [
        ("PAID", 0),
        ("REFUNDING", 1),
        ("COMPLETED", 2),
        ("PAID", 29),
    ] {
        state(told).await.unwrap();
        ran(&app, "d1", start + TimeDelta::days(days)).await;
    }
    assert_eq!(balance(&alice).await, 100);

    // After its term the setting holds, a yuan a minute, though no cron has completed the order yet.
    ran(&app, "d1", start + TimeDelta::days(31)).await;
    assert_eq!(balance(&alice).await, 40);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_low_balance_is_told_when_it_falls_not_with_each_debit(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    recharge(&alice, 50).await;
    let spend = |amount: i64| alice.post("/balance/consume", json!({ "amount": amount }));
    spend(1).await.is(200);
    assert_eq!(app.events("balance.low").await, 0);

    recharge(&alice, 100).await;
    join_all((0..10).map(|_| spend(10))).await;
    assert_eq!(app.events("balance.low").await, 1);
    recharge(&alice, 100).await;
    spend(60).await.is(200);

    assert_eq!(app.events("balance.low").await, 2);
    let alerts = alice.get("/balance/user/alice/alerts").await.is(200);
    let told = alerts["alerts"].as_array().unwrap();
    assert_eq!(told.len(), 2, "{alerts}");
    assert_eq!(
        (&told[0]["type"], &told[0]["message"]),
        (
            &json!("low_balance"),
            &json!("the balance is 89.00, not above 100.00")
        )
    );
    // It is remembered when there is enough again.
    recharge(&alice, 500).await;
    let alerts = alice.get("/balance/user/alice/alerts").await.is(200);
    assert_eq!(
        json!([
            alerts["hasLowBalanceAlert"],
            alerts["alerts"].as_array().map(Vec::len)
        ]),
        json!([false, 2])
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn usage_is_metered_by_user_device_and_span(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob, boss) = (
        app.user("alice").await,
        app.user("bob").await,
        app.admin().await,
    );
    recharge(&alice, 100).await;
    for (device, ago, minutes) in [("d1", 2, 40), ("d1", 30, 20), ("d2", 2, 60)] {
        hour(&app, device, ago, minutes).await;
    }

    let all = boss.get("/metering/overview").await.is(200);
    assert_eq!(
        json!([all["totalUsage"], all["totalCost"], all["totalDevices"]]),
        json!([120, 6, 2])
    );
    let device = alice.get("/metering/devices/d1").await.is(200);
    assert_eq!(device["totalUsage"], 60);
    assert_eq!(
        bob.get("/metering/devices/d1").await.is(200)["totalUsage"],
        0
    );
    bob.get("/metering/users/alice")
        .await
        .refused(403, "FORBIDDEN");
    let users = boss.get("/metering/users").await.is(200);
    assert_eq!(
        json!([users["total"], users["data"][0]["id"]]),
        json!([1, "alice"])
    );
    assert_eq!(boss.get("/metering/devices").await.is(200)["total"], 2);
    let trend = boss.get("/metering/trend?interval=day").await.is(200);
    let usage: Vec<_> = trend
        .as_array()
        .unwrap()
        .iter()
        .map(|span| span["totalUsage"].clone())
        .collect();
    assert_eq!(json!(usage), json!([20, 100]));
    for path in ["/metering/users", "/metering/trend", "/metering/overview"] {
        alice.get(path).await.refused(403, "FORBIDDEN");
    }
}
