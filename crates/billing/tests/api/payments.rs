//! Payments from the balance, and attempts at a provider.

use chrono::TimeDelta;
use futures::future::join_all;
use serde_json::json;
use sqlx::PgPool;

use crate::app::TestApp;

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_balance_pays_an_order_in_one_step(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob) = (app.user("alice").await, app.user("bob").await);
    let id = alice.order("basic").await;
    let body = json!({ "orderId": id, "method": "balance" });

    alice
        .post("/payments", body.clone())
        .await
        .refused(402, "INSUFFICIENT_BALANCE");
    alice
        .post("/balance/recharge", json!({ "amount": 150 }))
        .await
        .is(200);
    bob.post("/payments", body.clone())
        .await
        .refused(404, "NOT_FOUND");
    alice
        .post(
            "/payments",
            json!({ "orderId": id, "method": "balance", "amount": 98 }),
        )
        .await
        .refused(400, "AMOUNT_MISMATCH");
    alice
        .post("/payments", json!({ "orderId": id, "method": "other" }))
        .await
        .refused(400, "VALIDATION_FAILED");
    let payment = alice.post("/payments", body.clone()).await.is(201);

    assert_eq!(
        (&payment["status"], &payment["amount"]),
        (&json!("success"), &json!(99))
    );
    let number = payment["paymentNo"].as_str().unwrap();
    assert!(
        number.len() == 23
            && number.starts_with("PAY")
            && number[3..].bytes().all(|byte| byte.is_ascii_digit())
    );
    alice
        .post("/payments", body)
        .await
        .refused(409, "ORDER_STATE");
    let order = alice.get(&format!("/orders/{id}")).await.is(200);
    assert_eq!(
        (&order["status"], &order["paymentMethod"]),
        (&json!("PAID"), &json!("balance"))
    );
    assert_eq!(
        alice.get("/balance/user/alice").await.is(200)["balance"],
        51
    );
    let shown = alice
        .get(&format!("/payments/{}", payment["id"].as_str().unwrap()))
        .await
        .is(200);
    assert_eq!(shown, payment);
    assert_eq!(
        alice
            .post("/payments/query", json!({ "paymentNo": number }))
            .await
            .is(200),
        payment
    );
    assert_eq!(alice.get("/payments").await.is(200)["data"][0], payment);
    assert_eq!(bob.get("/payments").await.is(200)["total"], 0);
    bob.get(&format!("/payments/{}", payment["id"].as_str().unwrap()))
        .await
        .refused(404, "NOT_FOUND");
    app.anybody()
        .get("/payments")
        .await
        .refused(401, "UNAUTHENTICATED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_balance_that_lasts_for_three_orders_pays_three(db: PgPool) {
    let replicas = [TestApp::replica(&db).await, TestApp::replica(&db).await];
    let alice = [
        replicas[0].user("alice").await,
        replicas[1].user("alice").await,
    ];
    alice[0]
        .post("/balance/recharge", json!({ "amount": 300 }))
        .await
        .is(200);
    let mut orders = Vec::new();
    for _ in 0..6 {
        orders.push(alice[0].order("basic").await);
    }

    let racing = (0..24).map(|n| {
        let body = json!({ "orderId": orders[n % 6], "method": "balance" });
        let alice = &alice[n % 2];
        async move { alice.post("/payments", body).await.status.as_u16() }
    });
    let mut statuses = join_all(racing).await;

    statuses.retain(|status| *status == 201);
    assert_eq!(statuses.len(), 3);
    let app = &replicas[0];
    assert_eq!(app.events("order.paid").await, 3);
    assert_eq!(
        alice[1].get("/balance/user/alice").await.is(200)["balance"],
        3
    );
    assert_eq!(
        app.admin().await.get("/admin/ledger/verify").await.is(200)["ok"],
        true
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn past_its_time_an_order_is_not_payable_though_no_cron_came(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, boss) = (app.user("alice").await, app.admin().await);
    alice
        .post("/balance/recharge", json!({ "amount": 150 }))
        .await
        .is(200);
    let id = alice.order("basic").await;

    app.platform.clock.advance(TimeDelta::minutes(30));

    alice
        .post("/payments", json!({ "orderId": id, "method": "balance" }))
        .await
        .refused(409, "ORDER_STATE");
    boss.post(&format!("/orders/{id}/confirm"), json!({}))
        .await
        .refused(409, "ORDER_STATE");
    assert_eq!(
        alice.get(&format!("/orders/{id}")).await.is(200)["status"],
        "PENDING"
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_attempt_at_a_provider_is_settled_by_its_number(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let id = alice.order("pro").await;
    let begun =
        |method: &'static str| alice.post("/payments", json!({ "orderId": id, "method": method }));
    let first = begun("wechat").await.is(201);
    let second = begun("alipay").await.is(201);
    assert_eq!(first["status"], "pending");
    let notice = |payment: &serde_json::Value, transaction: &str| json!({ "paymentNo": payment["paymentNo"], "status": "paid", "transactionId": transaction, "amount": 299 });

    let failed = json!({ "paymentNo": first["paymentNo"], "status": "failed" });
    assert_eq!(
        app.anybody()
            .post("/webhooks/payment", failed)
            .await
            .is(200)["status"],
        "PENDING"
    );
    let paid = app
        .anybody()
        .post("/webhooks/payment", notice(&second, "t2"))
        .await
        .is(200);
    assert_eq!(
        (&paid["status"], &paid["orderId"]),
        (&json!("PAID"), &json!(id))
    );
    // The first one went through after all: a second payment, for the balance.
    let late = app
        .anybody()
        .post("/webhooks/payment", notice(&first, "t1"))
        .await
        .is(200);
    assert_eq!(
        (&late["status"], &late["duplicate"]),
        (&json!("PAID"), &json!(false))
    );
    let again = app
        .anybody()
        .post("/webhooks/payment", notice(&first, "t1"))
        .await
        .is(200);
    assert_eq!(again["duplicate"], true);

    let page = alice.get("/payments").await.is(200);
    let statuses = [&page["data"][0]["status"], &page["data"][1]["status"]];
    assert_eq!(statuses, [&json!("success"), &json!("refunded")]);
    assert_eq!(
        alice.get("/balance/user/alice").await.is(200)["balance"],
        299
    );
    assert_eq!(app.events("payment.failed").await, 1);
    assert_eq!(app.events("order.paid").await, 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_free_plan_is_paid_without_money(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let id = alice.order("free").await;

    let payment = alice
        .post("/payments", json!({ "orderId": id, "method": "balance" }))
        .await
        .is(201);

    assert_eq!(
        (&payment["status"], &payment["amount"]),
        (&json!("success"), &json!(0))
    );
    assert_eq!(
        app.count("select count(*) from billing.transactions").await,
        0
    );
    app.admin()
        .await
        .post(&format!("/orders/{id}/refund"), json!({}))
        .await
        .refused(409, "ORDER_STATE");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn where_rates_are_limited_the_eleventh_payment_waits(db: PgPool) {
    let app = TestApp::new(db).await;
    let limited = platform::testing::with(app.platform.db.clone(), |settings| {
        settings.rate_limits = true
    })
    .await;
    let app = TestApp::around(limited).await;
    let alice = app.user("alice").await;

    for _ in 0..10 {
        alice
            .post(
                "/payments",
                json!({ "orderId": "nope", "method": "balance" }),
            )
            .await
            .refused(404, "NOT_FOUND");
    }

    let refused = alice
        .post(
            "/payments",
            json!({ "orderId": "nope", "method": "balance" }),
        )
        .await;
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(refused.headers["ratelimit-remaining"], "0");
    assert_eq!(
        refused.headers["ratelimit-policy"],
        "\"payments\";q=10;w=300"
    );
    refused.refused(429, "RATE_LIMITED");
}
