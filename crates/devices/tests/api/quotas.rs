//! Quotas: charged, given back, raised by what was paid, and never exceeded.

use chrono::TimeDelta;
use contracts::event::PlanTerms;
use contracts::{Event, EventBody, Money, OrderId};
use devices::quota::{Limit, Limits};
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{Answer, TestApp, User, id, text, until};

/// A replica where a user without a plan has what these say, and of the rest what development gives.
async fn with_limits<const N: usize>(db: PgPool, limits: [(Limit, i64); N]) -> TestApp {
    let set = |config: &mut devices::Config| {
        config.quota = Limits::defaults(false).overridden_by(&Limits(limits.into()));
    };
    TestApp::with(db, set).await
}

async fn quota(user: &User, of: &str) -> Value {
    let answer = user.get(&format!("/quotas/user/{of}")).await;
    answer.expect(StatusCode::OK).body
}

#[track_caller]
fn exceeded(answer: Answer, words: &str) {
    let body = answer.refused(StatusCode::FORBIDDEN, "QUOTA_EXCEEDED").body;
    let message = text(&body, "message");
    assert!(
        message.contains("quota") && message.contains(words),
        "{message}"
    );
    let field = text(&body["details"][0], "field");
    let is_limit = Limit::ALL.iter().any(|limit| limit.key() == field);
    assert!(is_limit, "{field} is no limit of QUOTA_LIMITS");
}

fn paid(user: &str, order: &OrderId, plan: &str, devices: i64, now: contracts::Timestamp) -> Event {
    let body = EventBody::OrderPaid {
        order_id: order.clone(),
        order_no: "1".into(),
        plan_id: plan.parse().unwrap(),
        amount: Money::yuan(99),
        payment_no: None,
        plan: PlanTerms {
            name: format!("The {plan} plan"),
            days: 30,
            max_devices: devices,
            cpu_cores: 2,
            memory_mb: 2_048,
            storage_mb: 16_384,
            storage_quota_gb: 80,
            traffic_quota_gb: 500,
        },
    };
    Event::new(user.parse().unwrap(), now, body)
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn with_room_for_one_more_one_of_many_creations_at_once_succeeds(db: PgPool) {
    let app = with_limits(db.clone(), [(Limit::Devices, 3)]).await;
    let alice = app.user("alice", &[]).await;
    let small = json!({ "name": "n", "autoStart": false });
    let first = alice.create(small.clone()).await;
    alice.create(small.clone()).await;
    let others = [
        app.clone(),
        app.elsewhere(db.clone()).await,
        app.elsewhere(db).await,
    ];

    let asking = (0..9).map(|number| {
        let (alice, body) = (others[number % 3].as_user(&alice), small.clone());
        async move { alice.post("/devices", body).await }
    });
    let answers = futures::future::join_all(asking).await;

    let made = answers
        .iter()
        .filter(|answer| answer.status == StatusCode::CREATED);
    assert_eq!(made.count(), 1);
    for answer in answers {
        if answer.status != StatusCode::CREATED {
            exceeded(answer, "devices is exceeded: 3 used, 3 allowed");
        }
    }
    assert_eq!(quota(&alice, "alice").await["usage"]["currentDevices"], 3);
    // A deletion gives back once, from its acceptance on.
    alice.delete(&first).await.expect(StatusCode::OK);
    alice.delete(&first).await.expect(StatusCode::NOT_FOUND);
    assert_eq!(quota(&alice, "alice").await["usage"]["currentDevices"], 2);
    app.run_operations().await;
    assert_eq!(quota(&alice, "alice").await["usage"]["currentDevices"], 2);
    alice.create(small.clone()).await;
    exceeded(alice.post("/devices", small).await, "3 used, 3 allowed");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_refused_creation_leaves_nothing_and_its_key_may_be_used_again(db: PgPool) {
    let app = with_limits(db, [(Limit::Devices, 1)]).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(json!({ "name": "first" })).await;
    let ask = json!({ "name": "second" });

    let refused = alice
        .send_with("POST", "/devices", ask.clone(), Some("key"))
        .await;
    exceeded(refused, "devices");
    alice.delete(&device).await.expect(StatusCode::OK);
    app.run_operations().await;

    let made = alice.send_with("POST", "/devices", ask, Some("key")).await;
    made.expect(StatusCode::CREATED);
    // The port that the refused one had leased is free again: it was never anybody's.
    let rows: i64 = sqlx::query_scalar("select count(*) from devices.devices")
        .fetch_one(&app.platform.db)
        .await
        .unwrap();
    assert_eq!(rows, 2);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn growth_is_charged_and_what_shrinks_is_given_back(db: PgPool) {
    let app = with_limits(db, [(Limit::CpuCores, 6), (Limit::CpuCoresOfDevice, 4)]).await;
    let alice = app.user("alice", &[]).await;
    let (one, other) = (alice.running().await, alice.running().await);
    let size = |device: &Value, body: Value| {
        let (alice, path) = (alice.clone(), format!("/devices/{}", id(device)));
        async move { alice.send("PATCH", &path, body).await }
    };

    size(&one, json!({ "cpuCores": 4 }))
        .await
        .expect(StatusCode::OK);
    exceeded(
        size(&other, json!({ "cpuCores": 3 })).await,
        "CPU cores is exceeded: 6 used, 6 allowed",
    );
    exceeded(
        size(&one, json!({ "cpuCores": 5 })).await,
        "CPU cores of a device is exceeded: 5 used, 4 allowed",
    );
    assert_eq!(alice.device(&other).await["cpuCores"], 2);
    size(&one, json!({ "cpuCores": 3 }))
        .await
        .expect(StatusCode::OK);
    size(&other, json!({ "cpuCores": 3, "name": "grown" }))
        .await
        .expect(StatusCode::OK);

    assert_eq!(quota(&alice, "alice").await["usage"]["usedCpuCores"], 6);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn as_many_devices_run_as_may_however_they_are_started(db: PgPool) {
    let app = with_limits(db, [(Limit::RunningDevices, 1)]).await;
    let alice = app.user("alice", &[]).await;
    let one = alice.running().await;
    exceeded(
        alice.post("/devices", json!({ "name": "n" })).await,
        "running devices is exceeded: 1 used, 1 allowed",
    );
    let other = alice
        .create(json!({ "name": "n", "autoStart": false }))
        .await;
    exceeded(alice.act(&other, "start").await, "running devices");
    app.run_operations().await;

    for action in ["start", "restart"] {
        exceeded(alice.act(&other, action).await, "running devices");
    }
    // What runs is not counted twice.
    alice.act(&one, "restart").await.expect(StatusCode::OK);
    app.run_operations().await;
    alice.act(&one, "stop").await.expect(StatusCode::OK);
    let (first, second) = tokio::join!(alice.act(&other, "start"), alice.act(&other, "start"));
    assert_eq!(
        (first.status, second.status),
        (StatusCode::OK, StatusCode::OK)
    );
    app.run_operations().await;
    exceeded(alice.act(&one, "start").await, "running devices");
    let usage = &quota(&alice, "alice").await["usage"];
    assert_eq!(
        (&usage["currentConcurrentDevices"], &usage["currentDevices"]),
        (&json!(1), &json!(2))
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_paid_order_raises_the_quota_once_for_its_time_and_a_refund_ends_it(db: PgPool) {
    let app = with_limits(db, [(Limit::Devices, 1), (Limit::Storage, 20)]).await;
    let alice = app.user("alice", &[]).await;
    let now = app.platform.clock.now();
    let (first, second) = (OrderId::new(), OrderId::new());
    let event = paid("alice", &first, "basic", 5, now);

    app.hear(&event).await;
    app.hear(&event).await;
    // The same order told by another event, too.
    app.hear(&paid("alice", &first, "basic", 5, now)).await;

    let raised = quota(&alice, "alice").await;
    assert_eq!(
        (&raised["planId"], &raised["planName"], &raised["status"]),
        (&json!("basic"), &json!("The basic plan"), &json!("active"))
    );
    let limits = &raised["limits"];
    assert_eq!(
        (
            &limits["maxDevices"],
            &limits["totalStorageGB"],
            &limits["maxUsageHoursPerDay"]
        ),
        (&json!(5), &json!(80), &json!(-1))
    );
    let until = |quota: &Value| text(quota, "validUntil");
    let month = contracts::Timestamp::from(now.utc() + TimeDelta::days(30));
    assert_eq!(until(&raised), month.to_string());

    // A second order prolongs the first one.
    app.hear(&paid("alice", &second, "basic", 5, now)).await;
    let two = contracts::Timestamp::from(now.utc() + TimeDelta::days(60));
    assert_eq!(until(&quota(&alice, "alice").await), two.to_string());

    for order in [&second, &first] {
        let body = EventBody::OrderRefunded {
            order_id: order.clone(),
            order_no: "1".into(),
            amount: Money::yuan(99),
        };
        app.hear(&Event::new("alice".parse().unwrap(), now, body))
            .await;
    }
    let lowered = quota(&alice, "alice").await;
    assert_eq!(
        (&lowered["limits"]["maxDevices"], &lowered["planId"]),
        (&json!(1), &Value::Null)
    );
}

fn refunded(user: &str, order: &OrderId, now: contracts::Timestamp) -> Event {
    let body = EventBody::OrderRefunded {
        order_id: order.clone(),
        order_no: "1".into(),
        amount: Money::yuan(99),
    };
    Event::new(user.parse().unwrap(), now, body)
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_refund_that_is_heard_of_before_the_payment_leaves_nothing_granted(db: PgPool) {
    let app = with_limits(db, [(Limit::Devices, 1)]).await;
    let alice = app.user("alice", &[]).await;
    let now = app.platform.clock.now();
    let order = OrderId::new();

    app.hear(&refunded("alice", &order, now)).await;
    app.hear(&paid("alice", &order, "basic", 5, now)).await;

    let quota = quota(&alice, "alice").await;
    assert_eq!(
        (&quota["limits"]["maxDevices"], &quota["planId"]),
        (&json!(1), &Value::Null)
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_refunded_order_takes_its_own_time_with_it_and_no_more(db: PgPool) {
    let app = with_limits(db, [(Limit::Devices, 1)]).await;
    let alice = app.user("alice", &[]).await;
    let now = app.platform.clock.now();
    let after = |days| contracts::Timestamp::from(now.utc() + TimeDelta::days(days));
    let orders = [OrderId::new(), OrderId::new(), OrderId::new()];
    for order in &orders {
        app.hear(&paid("alice", order, "basic", 5, now)).await;
    }
    let until = async || text(&quota(&alice, "alice").await, "validUntil");
    assert_eq!(until().await, after(90).to_string());

    // Ten days of the first one are over: twenty are left of it.
    app.hear(&refunded("alice", &orders[0], after(10))).await;
    app.hear(&refunded("alice", &orders[0], after(10))).await;
    assert_eq!(until().await, after(70).to_string());

    // The last one ends where the one before it ends, which stays.
    app.hear(&refunded("alice", &orders[2], after(10))).await;
    assert_eq!(until().await, after(40).to_string());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn orders_hold_one_after_the_other_in_whichever_order_they_are_heard_of(db: PgPool) {
    let app = with_limits(db, [(Limit::Devices, 1)]).await;
    let alice = app.user("alice", &[]).await;
    let now = app.platform.clock.now();
    let at = |days| contracts::Timestamp::from(now.utc() + TimeDelta::days(days));
    let until = async || text(&quota(&alice, "alice").await, "validUntil");
    let orders = [OrderId::new(), OrderId::new(), OrderId::new()];

    // Paid 70, 20 and 10 days ago: the first one ended before the second one began.
    app.hear(&paid("alice", &orders[2], "basic", 5, at(-10)))
        .await;
    app.hear(&paid("alice", &orders[0], "basic", 5, at(-70)))
        .await;
    assert_eq!(until().await, at(20).to_string());
    app.hear(&paid("alice", &orders[1], "basic", 5, at(-20)))
        .await;
    assert_eq!(until().await, at(40).to_string());

    app.hear(&refunded("alice", &orders[1], at(0))).await;
    assert_eq!(until().await, at(30).to_string());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn refusals_use_up_no_ports(db: PgPool) {
    let app = TestApp::with(db, |config| {
        config.quota.0.extend([(Limit::Devices, 1)]);
        config.ports.adb = 5555..=5558;
    })
    .await;
    let (alice, bob) = (app.user("alice", &[]).await, app.user("bob", &[]).await);
    let body = json!({ "name": "n", "autoStart": false });
    alice.create(body.clone()).await;

    for _ in 0..12 {
        let refused = alice.post("/devices", body.clone()).await;
        assert_ne!(refused.status, StatusCode::CREATED);
    }

    // Ports rest for a minute after a device had them; those that none had do not.
    until("another user creates a device", async || {
        bob.post("/devices", body.clone()).await.status == StatusCode::CREATED
    })
    .await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn starts_in_the_queue_count_as_running(db: PgPool) {
    let app = with_limits(db, [(Limit::RunningDevices, 1)]).await;
    let alice = app.user("alice", &[]).await;
    let body = json!({ "name": "n", "autoStart": false });
    let (one, other) = (alice.create(body.clone()).await, alice.create(body).await);

    // Both are being created, and shall be stopped then.
    let ids = json!({ "ids": [one["id"], other["id"]], "maxConcurrency": 1 });
    let report = alice.post("/devices/batch/restart", ids).await;
    let report = report.expect(StatusCode::OK).body;

    assert_eq!(report["succeeded"], 1, "{report}");
    assert_eq!(
        quota(&alice, "alice").await["usage"]["currentConcurrentDevices"],
        1
    );
    let root = app.user("root", &["admin"]).await;
    let listed = root.get("/quotas").await.expect(StatusCode::OK).body;
    assert_eq!(
        listed["data"][0]["usage"]["currentConcurrentDevices"], 1,
        "{listed}"
    );
    app.run_operations().await;
    let statuses = [alice.status(&one).await, alice.status(&other).await];
    let running = statuses.iter().filter(|status| *status == "running");
    assert_eq!(running.count(), 1, "{statuses:?}");

    // Between the end of a stop and the begin of the start behind it, too.
    let (on, off) = match statuses[0] == "running" {
        true => (one, other),
        false => (other, one),
    };
    alice.act(&on, "stop").await.expect(StatusCode::OK);
    let ids = json!({ "ids": [on["id"]] });
    alice
        .post("/devices/batch/start", ids)
        .await
        .expect(StatusCode::OK);
    sqlx::query("update devices.devices set status = 'stopped' where id = $1")
        .bind(id(&on))
        .execute(&app.platform.db)
        .await
        .unwrap();
    let refused = alice.act(&off, "start").await;
    exceeded(refused, "running devices");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_device_in_a_container_keeps_the_sizes_that_it_was_made_with(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.create(json!({ "name": "n", "cpuCores": 4 })).await;
    sqlx::query("update devices.devices set runtime = 'docker'")
        .execute(&app.platform.db)
        .await
        .unwrap();
    let path = format!("/devices/{}", id(&device));

    for smaller in [
        json!({ "cpuCores": 3 }),
        json!({ "memoryMB": 512 }),
        json!({ "storageMB": 1024, "cpuCores": 8 }),
    ] {
        let answer = alice.send("PATCH", &path, smaller).await;
        answer.refused(StatusCode::CONFLICT, "CONFLICT");
    }

    let same = json!({ "cpuCores": 4, "name": "m" });
    let answer = alice.send("PATCH", &path, same).await;
    answer.expect(StatusCode::OK);
    assert_eq!(quota(&alice, "alice").await["usage"]["usedCpuCores"], 4);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_run_ends_and_begins_with_the_status_whoever_writes_it(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    alice.running().await;
    let runs = async || -> (i64, i64) {
        sqlx::query_as(
            "select count(*), count(*) filter (where ended_at is null) from devices.runs",
        )
        .fetch_one(&app.platform.db)
        .await
        .unwrap()
    };
    assert_eq!(runs().await, (1, 1));

    for (status, expected) in [("stopped", (1, 0)), ("running", (2, 1)), ("error", (2, 0))] {
        sqlx::query("update devices.devices set status = $1, updated_at = clock_timestamp()")
            .bind(status)
            .execute(&app.platform.db)
            .await
            .unwrap();
        assert_eq!(runs().await, expected, "{status}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_plan_that_is_over_allows_nothing_more_and_takes_nothing_away(db: PgPool) {
    let app = with_limits(db, [(Limit::Devices, 1)]).await;
    let alice = app.user("alice", &[]).await;
    let now = app.platform.clock.now();
    let long_ago = contracts::Timestamp::from(now.utc() - TimeDelta::days(31));
    app.hear(&paid("alice", &OrderId::new(), "basic", 5, now))
        .await;
    for _ in 0..2 {
        alice
            .create(json!({ "name": "n", "autoStart": false }))
            .await;
    }

    sqlx::query(
        "update devices.quota_grants set valid_from = $1, valid_until = $1 + interval '30 days'",
    )
    .bind(long_ago)
    .execute(&app.platform.db)
    .await
    .unwrap();

    let over = quota(&alice, "alice").await;
    assert_eq!(
        (
            &over["status"],
            &over["limits"]["maxDevices"],
            &over["usage"]["currentDevices"]
        ),
        (&json!("exceeded"), &json!(1), &json!(2))
    );
    exceeded(
        alice.post("/devices", json!({ "name": "n" })).await,
        "2 used, 1 allowed",
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn hours_are_counted_from_the_time_that_devices_ran(db: PgPool) {
    let app = with_limits(db, [(Limit::HoursOfMonth, 2)]).await;
    let alice = app.user("alice", &[]).await;
    let device = alice.running().await;
    alice.act(&device, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;
    let runs: Vec<bool> = sqlx::query_scalar("select ended_at is not null from devices.runs")
        .fetch_all(&app.platform.db)
        .await
        .unwrap();
    assert_eq!(runs, [true]);
    alice.act(&device, "start").await.expect(StatusCode::OK);
    app.run_operations().await;

    // Two hours of this month, whatever day it is: before it nothing counts.
    let now = app.platform.clock.now().utc();
    let month = now.date_naive().format("%Y-%m-01T00:00:00Z").to_string();
    sqlx::query("update devices.runs set began_at = $1::timestamptz - interval '3 hours', ended_at = $1::timestamptz + interval '2 hours' where ended_at is not null")
        .bind(month)
        .execute(&app.platform.db)
        .await
        .unwrap();
    alice.act(&device, "stop").await.expect(StatusCode::OK);
    app.run_operations().await;

    exceeded(
        alice.act(&device, "start").await,
        "hours of a month is exceeded: 2 used, 2 allowed",
    );
    let usage = &quota(&alice, "alice").await["usage"];
    assert_eq!(usage["monthlyUsageHours"], 2.0);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn admins_set_suspend_prolong_and_reset(db: PgPool) {
    let app = with_limits(db, []).await;
    let (alice, root) = (
        app.user("alice", &[]).await,
        app.user("root", &["admin"]).await,
    );
    let default = quota(&alice, "alice").await;
    assert_eq!(
        (&default["limits"]["maxDevices"], &default["status"]),
        (&json!(50), &json!("active"))
    );
    let path = format!("/quotas/{}", text(&default, "id"));

    let until = "2999-01-01T00:00:00.000Z";
    let set = json!({ "userId": "alice", "limits": { "maxDevices": 1 }, "validUntil": until });
    let set = root
        .post("/quotas", set)
        .await
        .expect(StatusCode::CREATED)
        .body;
    assert_eq!(
        (
            &set["limits"]["maxDevices"],
            &set["limits"]["totalCpuCores"],
            &set["validUntil"]
        ),
        (&json!(1), &json!(200), &json!(until))
    );
    let renewed = root
        .post("/quotas/renew/alice", json!({}))
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(renewed["validUntil"], "2999-01-31T00:00:00.000Z");
    let suspend = json!({ "status": "suspended" });
    let suspended = root
        .send("PUT", &path, suspend)
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(suspended["status"], "suspended");
    exceeded(
        alice.post("/devices", json!({ "name": "n" })).await,
        "quota",
    );
    root.send("PUT", &path, json!({ "status": "active" }))
        .await
        .expect(StatusCode::OK);
    alice.create(json!({ "name": "n" })).await;
    exceeded(
        alice.post("/devices", json!({ "name": "n" })).await,
        "devices is exceeded: 1 used, 1 allowed",
    );
    root.send("DELETE", &path, Value::Null)
        .await
        .expect(StatusCode::OK);
    alice.create(json!({ "name": "n" })).await;

    for (method, path, body) in [
        ("POST", "/quotas", json!({ "userId": "alice" })),
        ("PUT", path.as_str(), json!({})),
        ("DELETE", path.as_str(), Value::Null),
        ("POST", "/quotas/renew/alice", Value::Null),
        ("GET", "/quotas", Value::Null),
        ("GET", "/quotas/alerts", Value::Null),
        ("GET", "/quotas/summary", Value::Null),
        ("GET", "/quotas/user/root", Value::Null),
        ("GET", "/quotas/usage-stats/root", Value::Null),
        (
            "POST",
            "/quotas/check/batch",
            json!([{ "quotaType": "cpu", "requestedAmount": 1 }]),
        ),
        (
            "POST",
            "/quotas/deduct",
            json!({ "userId": "alice", "deviceCount": 1 }),
        ),
        (
            "POST",
            "/quotas/restore",
            json!({ "userId": "alice", "deviceCount": 1 }),
        ),
        (
            "POST",
            "/quotas/user/alice/usage",
            json!({ "deviceId": "d", "operation": "increment" }),
        ),
    ] {
        alice
            .send(method, path, body)
            .await
            .refused(StatusCode::FORBIDDEN, "FORBIDDEN");
    }
    let wrong = json!({ "userId": "alice", "limits": { "maxDevices": -2 } });
    root.post("/quotas", wrong)
        .await
        .refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");
    root.send("PUT", "/quotas/none", json!({}))
        .await
        .refused(StatusCode::NOT_FOUND, "NOT_FOUND");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_question_is_answered_with_the_numbers(db: PgPool) {
    let app = with_limits(db, [(Limit::Devices, 2), (Limit::CpuCoresOfDevice, 4)]).await;
    let (alice, root) = (
        app.user("alice", &[]).await,
        app.user("root", &["admin"]).await,
    );
    alice.running().await;
    let ask = |amount: i64| json!({ "userId": "alice", "quotaType": "device", "requestedAmount": amount });

    let fits = alice
        .post("/quotas/check", ask(1))
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(
        fits,
        json!({ "allowed": true, "current": 1, "limit": 2, "remaining": 1 })
    );
    let denied = alice
        .post("/quotas/check", ask(2))
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(
        (&denied["allowed"], &denied["remaining"]),
        (&json!(false), &json!(1))
    );
    assert!(text(&denied, "reason").contains("quota"), "{denied}");
    let large = json!({ "quotaType": "cpu", "requestedAmount": 5, "deviceConfig": { "cpuCores": 5, "memoryMB": 1024 } });
    let large = alice
        .post("/quotas/check", large)
        .await
        .expect(StatusCode::OK)
        .body;
    assert!(
        text(&large, "reason").contains("CPU cores of a device"),
        "{large}"
    );
    let free = json!({ "quotaType": "bandwidth", "requestedAmount": 7 });
    let free = alice
        .post("/quotas/check", free)
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(
        (&free["allowed"], &free["limit"]),
        (&json!(true), &json!(-1))
    );
    let foreign = json!({ "userId": "root", "quotaType": "cpu", "requestedAmount": 1 });
    alice
        .post("/quotas/check", foreign)
        .await
        .refused(StatusCode::FORBIDDEN, "FORBIDDEN");
    alice
        .post("/quotas/check", ask(0))
        .await
        .refused(StatusCode::BAD_REQUEST, "VALIDATION_FAILED");

    let both = root
        .post("/quotas/check/batch", json!([ask(1), ask(2)]))
        .await;
    let both = both.expect(StatusCode::OK).body;
    assert_eq!(
        (&both["total"], &both["allowed"], &both["denied"]),
        (&json!(2), &json!(1), &json!(1))
    );
    let stats = alice
        .get("/quotas/usage-stats/alice")
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(
        (
            &stats["usagePercentages"]["devices"],
            &stats["remaining"]["devices"],
            &stats["alerts"]
        ),
        (&json!(50.0), &json!(1.0), &json!([]))
    );
    alice.create(json!({ "name": "n" })).await;
    let alerts = root
        .get("/quotas/alerts?threshold=100")
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(
        (&alerts["total"], &alerts["data"][0]["userId"]),
        (&json!(1), &json!("alice"))
    );
    assert_eq!(alerts["data"][0]["alerts"][0]["type"], "devices");
    let summary = root
        .get("/quotas/summary")
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(summary["byStatus"]["active"], summary["total"]);
    assert_eq!(summary["alerts"], 1);
    let page = root
        .get("/quotas?status=active&pageSize=1")
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(page["total"], summary["total"]);
    assert_eq!(page["data"].as_array().unwrap().len(), 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_others_run_is_booked_once_and_given_back_once(db: PgPool) {
    let app = with_limits(db, [(Limit::Devices, 2), (Limit::CpuCores, 8)]).await;
    let (alice, root) = (
        app.user("alice", &[]).await,
        app.user("root", &["admin"]).await,
    );
    let own = alice.create(json!({ "name": "n" })).await;
    let book = |operation: &str, device: &str| {
        let body = json!({ "deviceId": device, "cpuCores": 2, "memoryGB": 4, "storageGB": 10, "operation": operation });
        let root = root.clone();
        async move { root.post("/quotas/user/alice/usage", body).await }
    };
    let used = |quota: &Value| {
        (
            quota["usage"]["currentDevices"].clone(),
            quota["usage"]["usedCpuCores"].clone(),
        )
    };

    // One of ours is counted by itself.
    let quota = book("increment", id(&own).as_str())
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(used(&quota), (json!(1), json!(2)));
    for _ in 0..2 {
        let quota = book("increment", "elsewhere")
            .await
            .expect(StatusCode::OK)
            .body;
        assert_eq!(used(&quota), (json!(2), json!(4)));
    }
    exceeded(
        book("increment", "further").await,
        "devices is exceeded: 2 used, 2 allowed",
    );
    exceeded(
        alice.post("/devices", json!({ "name": "n" })).await,
        "2 used, 2 allowed",
    );
    for _ in 0..2 {
        let quota = book("decrement", "elsewhere")
            .await
            .expect(StatusCode::OK)
            .body;
        assert_eq!(used(&quota), (json!(1), json!(2)));
    }

    let amounts = json!({ "userId": "alice", "cpuCores": 6, "memoryGB": 1.5 });
    let quota = root
        .post("/quotas/deduct", amounts.clone())
        .await
        .expect(StatusCode::OK)
        .body;
    assert_eq!(used(&quota), (json!(1), json!(8)));
    assert_eq!(quota["usage"]["usedMemoryGB"], 5.5);
    exceeded(
        root.post("/quotas/deduct", amounts.clone()).await,
        "CPU cores is exceeded: 8 used, 8 allowed",
    );
    for _ in 0..2 {
        root.post("/quotas/restore", amounts.clone())
            .await
            .expect(StatusCode::OK);
    }
    let quota = root.get("/quotas/user/alice").await.body;
    assert_eq!(used(&quota), (json!(1), json!(2)));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_given_back_twice_takes_nothing_from_what_others_booked(db: PgPool) {
    let app = with_limits(db, [(Limit::Devices, 9), (Limit::CpuCores, 64)]).await;
    let (alice, root) = (
        app.user("alice", &[]).await,
        app.user("root", &["admin"]).await,
    );
    let book = |operation: &str, device: &str| {
        let body = json!({ "deviceId": device, "cpuCores": 2, "operation": operation });
        let root = root.clone();
        async move { root.post("/quotas/user/alice/usage", body).await }
    };
    let used = async || quota(&alice, "alice").await["usage"]["usedCpuCores"].clone();

    // Its end is heard of before its beginning.
    book("decrement", "early").await.expect(StatusCode::OK);
    book("increment", "early").await.expect(StatusCode::OK);
    assert_eq!(used().await, 0);
    book("increment", "elsewhere").await.expect(StatusCode::OK);
    assert_eq!(used().await, 2);

    let body = json!({ "userId": "alice", "cpuCores": 4 });
    for path in ["/quotas/deduct", "/quotas/deduct"] {
        let answer = root.send_with("POST", path, body.clone(), Some("one"));
        answer.await.expect(StatusCode::OK);
    }
    assert_eq!(used().await, 6);
    for _ in 0..2 {
        let answer = root.post("/quotas/restore", body.clone()).await;
        answer.expect(StatusCode::OK);
    }
    assert_eq!(used().await, 2);
    let listed = root.get("/quotas").await.expect(StatusCode::OK).body;
    assert_eq!(listed["data"][0]["usage"]["usedCpuCores"], 2);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn all_quotas_are_looked_through_however_many_there_are(db: PgPool) {
    let app = with_limits(db, [(Limit::Devices, 2)]).await;
    let root = app.user("root", &["admin"]).await;
    sqlx::raw_sql(
        "insert into devices.quotas (user_id, id, created_at, updated_at, suspended)
        select 'u' || n, 'q' || n, now(), now(), n % 5 = 0 from generate_series(1, 2500) n;
        insert into devices.quota_grants (order_id, user_id, plan_id, plan_name, limits, valid_from, lasts, valid_until)
        select 'o' || n || '-' || k, 'u' || n, 'basic', 'Basic', '{\"maxDevices\": 5}', now() - interval '90 days', interval '30 days',
            now() - k * interval '1 day'
        from generate_series(1, 2500) n cross join generate_series(1, 3) k;",
    )
    .execute(&app.platform.db)
    .await
    .unwrap();

    let summary = root.get("/quotas/summary").await;
    let summary = summary.expect(StatusCode::OK).body;
    assert_eq!(
        (
            &summary["total"],
            &summary["byStatus"]["suspended"],
            &summary["byStatus"]["expired"]
        ),
        (&json!(2_500), &json!(500), &json!(2_000))
    );
    let page = root.get("/quotas?status=suspended&pageSize=3&page=100");
    let page = page.await.expect(StatusCode::OK).body;
    assert_eq!(page["total"], 500);
    let users: Vec<String> = page["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|quota| text(quota, "userId"))
        .collect();
    assert_eq!(users, ["u1015", "u1010", "u1005"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_runs_beyond_the_quota_is_stopped_and_nothing_else(db: PgPool) {
    let app = with_limits(db, [(Limit::RunningDevices, 3)]).await;
    let (alice, bob, carol) = (
        app.user("alice", &[]).await,
        app.user("bob", &[]).await,
        app.user("carol", &[]).await,
    );
    let root = app.user("root", &["admin"]).await;
    let devices = [
        alice.running().await,
        alice.running().await,
        alice.running().await,
    ];
    let (tired, fresh) = (bob.running().await, carol.running().await);
    let limits = |user: &str, limits: Value| {
        let (root, body) = (root.clone(), json!({ "userId": user, "limits": limits }));
        async move { root.post("/quotas", body).await.expect(StatusCode::CREATED) }
    };
    let other = app.another().await;
    let look = async || {
        let stop = tokio_util::sync::CancellationToken::new();
        let (one, two) = tokio::join!(
            devices::quota::enforce::stop_beyond(&app.devices, &stop),
            devices::quota::enforce::stop_beyond(&other.devices, &stop)
        );
        one.unwrap();
        two.unwrap();
        app.run_operations().await;
    };
    look().await;
    for device in &devices {
        assert_eq!(alice.status(device).await, "running");
    }

    // What allowed three has ended; two hours of one are over.
    limits("alice", json!({ "maxConcurrentDevices": 1 })).await;
    limits("bob", json!({ "maxUsageHoursPerDay": 2 })).await;
    limits("carol", json!({ "maxUsageHoursPerMonth": 1_000 })).await;
    sqlx::query("update devices.runs set began_at = date_trunc('day', now() at time zone 'UTC') at time zone 'UTC', ended_at = null where user_id = 'bob'")
        .execute(&app.platform.db)
        .await
        .unwrap();
    let noon = app.platform.clock.now().utc();
    let since = noon - noon.date_naive().and_time(chrono::NaiveTime::MIN).and_utc();
    if since < TimeDelta::hours(3) {
        app.platform.clock.advance(TimeDelta::hours(3) - since);
    }
    look().await;
    look().await;

    let mut running = Vec::new();
    for device in &devices {
        running.push(alice.status(device).await);
    }
    running.sort();
    assert_eq!(running, ["running", "stopped", "stopped"]);
    // The one that has run longest goes on.
    assert_eq!(alice.status(&devices[0]).await, "running");
    assert_eq!(bob.status(&tired).await, "stopped");
    assert_eq!(carol.status(&fresh).await, "running");
    let events = app.events().await;
    let mut told: Vec<_> = events
        .iter()
        .filter(|event| event["type"] == "device.stopped_by_quota")
        .map(|event| (text(event, "userId"), text(&event["data"], "quota")))
        .collect();
    told.sort();
    let told: Vec<_> = told
        .iter()
        .map(|(user, quota)| (user.as_str(), quota.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("alice", "running devices"),
            ("alice", "running devices"),
            ("bob", "hours of a day")
        ]
    );
}

#[test]
fn the_settings_name_the_limits_that_differ() {
    let mut env = platform::Env::of([
        ("PROFILE", "production"),
        ("QUOTA_LIMITS", "maxDevices=7, totalCpuCores=-1"),
    ]);
    let config = devices::Config::from_env(&mut env);
    let expected = Limits::defaults(true)
        .overridden_by(&Limits([(Limit::Devices, 7), (Limit::CpuCores, -1)].into()));
    assert_eq!(config.quota, expected);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_user_finds_the_own_quota_without_an_id(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice", &[]).await;
    alice.create(json!({ "name": "n" })).await;

    let own = alice.get("/quotas/me").await.expect(StatusCode::OK).body;
    let stats = alice.get("/quotas/usage-stats/me").await;
    let stats = stats.expect(StatusCode::OK).body;

    assert_eq!(own["userId"], "alice");
    assert_eq!(own, quota(&alice, "alice").await);
    let by_id = alice.get("/quotas/usage-stats/alice").await;
    assert_eq!(stats, by_id.expect(StatusCode::OK).body);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn of_a_deleted_account_nothing_is_left_and_nothing_is_made(db: PgPool) {
    use platform::events::Consumer;

    let app = TestApp::new(db).await;
    let id = platform::testing::account(&app.platform, &["user"]).await;
    let alice = app.user(id.as_str(), &[]).await;
    let small = json!({ "name": "n", "autoStart": false });
    alice.create(small.clone()).await;
    let delete = "update users.accounts set status = 'deleted' where id = $1";
    let delete = sqlx::query(delete).bind(&id);
    delete.execute(&app.platform.db).await.unwrap();
    let event = Event::new(id, app.platform.clock.now(), EventBody::UserDeleted {});

    // Told twice, as any event may be.
    for _ in 0..2 {
        let mut tx = app.platform.db.begin().await.unwrap();
        let leavers = devices::device::leaver::Leavers(app.platform.clock.clone());
        leavers.apply(&mut tx, &event).await.unwrap();
        tx.commit().await.unwrap();
    }
    alice
        .post("/devices", small)
        .await
        .refused(StatusCode::FORBIDDEN, "FORBIDDEN");

    let kinds = "select kind from devices.operations where kind = 'delete'";
    let deletions: Vec<String> = sqlx::query_scalar(kinds)
        .fetch_all(&app.platform.db)
        .await
        .unwrap();
    assert_eq!(deletions.len(), 1);
}
