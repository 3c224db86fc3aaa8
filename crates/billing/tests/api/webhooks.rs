//! Notices of payments: delivered twice, at once, late, wrong.

use chrono::TimeDelta;
use futures::future::join_all;
use serde_json::json;
use sqlx::PgPool;

use crate::app::TestApp;

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_notice_sent_twice_pays_once(db: PgPool) {
    let app = TestApp::new(db).await;
    let anybody = app.anybody();
    let id = anybody.order("basic").await;
    let body = format!("orderId={id}&status=paid");

    let first = anybody.form("/webhooks/payment", &body).await.is(200);
    let second = anybody.form("/webhooks/payment", &body).await.is(200);

    assert_eq!(
        first,
        json!({ "received": true, "duplicate": false, "orderId": id, "status": "PAID" })
    );
    assert_eq!(
        second,
        json!({ "received": true, "duplicate": true, "orderId": id, "status": "PAID" })
    );
    let order = anybody.get(&format!("/orders/{id}")).await.is(200);
    assert_eq!(order["status"], "PAID");
    assert!(order["paidAt"].is_string());
    let lower = anybody.get(&format!("/billing/orders/{id}")).await.is(200);
    assert_eq!(lower["status"], "paid");
    assert_eq!(
        app.count("select sum(deliveries)::bigint from billing.webhook_events")
            .await,
        2
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn two_hundred_notices_at_once_pay_once(db: PgPool) {
    let replicas = [
        TestApp::replica(&db).await,
        TestApp::replica(&db).await,
        TestApp::replica(&db).await,
    ];
    let app = &replicas[0];
    let id = app.anybody().order("basic").await;
    let body = json!({ "orderId": id, "status": "paid", "transactionId": "t1", "eventId": "e1", "amount": 99 });

    let racing = (0..200).map(|n| {
        let (sender, body) = (replicas[n % 3].anybody(), body.clone());
        async move { sender.post("/webhooks/payment", body).await.is(200) }
    });
    let replies = join_all(racing).await;

    assert!(replies.iter().all(|reply| reply["status"] == "PAID"));
    assert_eq!(
        replies
            .iter()
            .filter(|reply| reply["duplicate"] == false)
            .count(),
        1
    );
    assert_eq!(app.events("order.paid").await, 1);
    for (sql, expected) in [
        ("select count(*) from billing.payments", 1),
        ("select count(*) from billing.transactions", 1),
        ("select count(*) from billing.postings", 2),
        (
            "select sum(amount)::bigint from billing.postings where account_id = 'revenue'",
            9_900,
        ),
        ("select deliveries::bigint from billing.webhook_events", 200),
    ] {
        assert_eq!(app.count(sql).await, expected, "{sql}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_same_payment_under_many_event_ids_pays_once(db: PgPool) {
    let replicas = [TestApp::replica(&db).await, TestApp::replica(&db).await];
    let app = &replicas[0];
    let id = app.anybody().order("basic").await;

    let racing = (0..40).map(|n| {
        let sender = replicas[n % 2].anybody();
        let body = json!({ "orderId": id, "status": "success", "transactionId": "t1", "eventId": format!("e{n}") });
        async move { sender.post("/webhooks/payment", body).await.is(200) }
    });
    let replies = join_all(racing).await;

    assert_eq!(
        replies
            .iter()
            .filter(|reply| reply["duplicate"] == false)
            .count(),
        1
    );
    assert_eq!(app.events("order.paid").await, 1);
    assert_eq!(
        app.count("select count(*) from billing.webhook_events")
            .await,
        40
    );
    assert_eq!(app.count("select count(*) from billing.balances").await, 0);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_wrong_amount_is_refused_kept_and_mended_by_the_right_one(db: PgPool) {
    let app = TestApp::new(db).await;
    let anybody = app.anybody();
    let id = anybody.order("basic").await;
    let notice = |amount: f64| json!({ "orderId": id, "status": "paid", "transactionId": "t1", "amount": amount });

    anybody
        .post("/webhooks/payment", notice(98.99))
        .await
        .refused(400, "AMOUNT_MISMATCH");
    anybody
        .post("/webhooks/payment", notice(98.99))
        .await
        .refused(400, "AMOUNT_MISMATCH");

    assert_eq!(
        anybody.get(&format!("/orders/{id}")).await.is(200)["status"],
        "PENDING"
    );
    assert_eq!(
        app.count("select count(*) from billing.webhook_events where outcome = 'amount_mismatch'")
            .await,
        1
    );
    assert_eq!(
        anybody
            .post("/webhooks/payment", notice(99.0))
            .await
            .is(200)["status"],
        "PAID"
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_notice_without_an_order_of_ours_is_kept(db: PgPool) {
    let app = TestApp::new(db).await;
    let id = app.anybody().order("basic").await;

    for body in [
        json!({ "orderId": "nope", "status": "paid" }),
        json!({ "orderId": "what is this", "status": "paid" }),
        json!({ "paymentNo": "PAY0", "status": "paid" }),
        json!({ "orderId": id, "paymentNo": "PAY0", "status": "paid" }),
    ] {
        app.anybody()
            .post("/webhooks/payment", body)
            .await
            .refused(404, "NOT_FOUND");
    }

    assert_eq!(app.count("select count(*) from billing.webhook_events where outcome = 'unknown_order' and length(raw) > 0").await, 4);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_notice_that_says_nothing_is_refused_and_not_kept(db: PgPool) {
    let app = TestApp::new(db).await;

    for body in [
        "",
        "status=paid",
        "orderId=o",
        "orderId=o&status=maybe",
        "orderId=&status=paid",
        "orderId=o&status=paid&amount=1.005",
        "orderId=o&status=paid&amount=1e400",
        "orderId=%00&status=paid",
    ] {
        app.anybody()
            .form("/webhooks/payment", body)
            .await
            .refused(400, "VALIDATION_FAILED");
    }

    assert_eq!(
        app.count("select count(*) from billing.webhook_events")
            .await,
        0
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn money_for_an_order_that_is_over_goes_to_the_balance_once(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, anybody) = (app.user("alice").await, app.anybody());
    let cancelled = alice.order("basic").await;
    alice
        .post(&format!("/orders/{cancelled}/cancel"), json!({}))
        .await
        .is(200);
    let overdue = alice.order("pro").await;
    app.platform.clock.advance(TimeDelta::minutes(31));

    let notice =
        |id: &str| json!({ "orderId": id, "status": "paid", "transactionId": format!("t-{id}") });
    let racing = (0..10).map(|_| anybody.post("/webhooks/payment", notice(&cancelled)));
    for reply in join_all(racing).await {
        assert_eq!(reply.is(200)["status"], "CANCELLED");
    }
    assert_eq!(
        anybody
            .post("/webhooks/payment", notice(&overdue))
            .await
            .is(200)["status"],
        "PENDING"
    );
    app.run_job("cancel-expired-orders").await;
    assert_eq!(
        anybody
            .post("/webhooks/payment", notice(&overdue))
            .await
            .is(200)["duplicate"],
        true
    );

    // The same payment, told by a sender of another name.
    let renamed = json!({ "orderId": cancelled, "status": "paid", "transactionId": format!("t-{cancelled}"), "provider": "wechat" });
    let told = anybody.post("/webhooks/payment", renamed).await.is(200);
    assert_eq!(told["duplicate"], true);

    assert_eq!(
        alice.get(&format!("/orders/{overdue}")).await.is(200)["status"],
        "EXPIRED"
    );
    assert_eq!(
        alice.get("/balance/user/alice").await.is(200)["balance"],
        398
    );
    let history = alice
        .get("/transactions/user/alice?type=refund")
        .await
        .is(200);
    assert_eq!(history.as_array().unwrap().len(), 2);
    assert_eq!(app.events("payment.refunded").await, 2);
    assert_eq!(app.events("order.paid").await, 0);
    assert_eq!(
        app.admin().await.get("/admin/ledger/verify").await.is(200)["ok"],
        true
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn failures_leave_the_order_waiting_and_come_late_without_effect(db: PgPool) {
    let app = TestApp::new(db).await;
    let anybody = app.anybody();
    let id = anybody.order("basic").await;
    let notice = |status: &str, transaction: &str| json!({ "orderId": id, "status": status, "transactionId": transaction });

    assert_eq!(
        anybody
            .post("/webhooks/payment", notice("failed", "t1"))
            .await
            .is(200)["status"],
        "PENDING"
    );
    assert_eq!(
        anybody
            .post("/webhooks/payment", notice("failed", "t1"))
            .await
            .is(200)["duplicate"],
        true
    );
    assert_eq!(
        anybody
            .post("/webhooks/payment", notice("paid", "t1"))
            .await
            .is(200)["status"],
        "PAID"
    );
    let late = anybody
        .post("/webhooks/payment", notice("cancelled", "t1"))
        .await
        .is(200);

    assert_eq!(
        (&late["status"], &late["duplicate"]),
        (&json!("PAID"), &json!(false))
    );
    assert_eq!(app.events("payment.failed").await, 1);
    assert_eq!(app.events("order.paid").await, 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_delivery_that_died_before_its_commit_is_made_good_by_the_next(db: PgPool) {
    let app = TestApp::new(db).await;
    let anybody = app.anybody();
    let id = anybody.order("basic").await;
    // A commit that fails: as at a connection that dies, nothing of the delivery may stay.
    sqlx::raw_sql(
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'gone' using errcode = '57P01'; end $$;
        create constraint trigger refuse after insert on billing.postings deferrable initially deferred
            for each row execute function refuse();",
    )
    .execute(&app.platform.db)
    .await
    .unwrap();
    let body = format!("orderId={id}&status=paid");
    anybody
        .form("/webhooks/payment", &body)
        .await
        .refused(503, "NOT_READY");
    assert_eq!(
        app.count("select count(*) from billing.webhook_events")
            .await,
        0
    );
    assert_eq!(app.events("order.paid").await, 0);
    sqlx::raw_sql("drop trigger refuse on billing.postings")
        .execute(&app.platform.db)
        .await
        .unwrap();

    let reply = anybody.form("/webhooks/payment", &body).await.is(200);

    assert_eq!(
        (&reply["status"], &reply["duplicate"]),
        (&json!("PAID"), &json!(false))
    );
}
