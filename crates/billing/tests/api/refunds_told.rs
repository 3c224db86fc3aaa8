//! Refunds that a provider tells of by several events, at once, and beside those of ours.

use futures::future::join_all;
use http::Request;
use ring::hmac;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{Client, Reply, TestApp};

const SECRET: &str = "whsec_test_0123456789abcdef";

async fn app(db: &PgPool) -> TestApp {
    let options = sqlx::postgres::PgPoolOptions::new().max_connections(12);
    let pool = options.connect_with((*db.connect_options()).clone());
    TestApp::with(pool.await.unwrap(), &[("STRIPE_WEBHOOK_SECRETS", SECRET)]).await
}

/// Sends an event of Stripe about an object.
async fn tell(client: &Client, id: &str, kind: &str, object: &Value) -> Reply {
    let body = json!({ "id": id, "type": kind, "livemode": false, "data": { "object": object } });
    let (body, seconds) = (
        body.to_string(),
        platform::Clock::system().now().utc().timestamp(),
    );
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let code = hmac::sign(&key, format!("{seconds}.{body}").as_bytes());
    let code: String = code
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let request = Request::post("/webhooks/stripe")
        .header("stripe-signature", format!("t={seconds},v1={code}"));
    client.send(request, body).await
}

async fn paid(app: &TestApp, user: &Client) -> String {
    let order = user.order("basic").await;
    let payment = user.post("/payments", json!({ "orderId": order, "method": "stripe" }));
    let payment = payment.await.is(201);
    let intent = json!({ "id": format!("pi_{order}"), "currency": "cny", "amount_received": 9_900,
        "metadata": { "payment_no": payment["paymentNo"] } });
    tell(
        &app.anybody(),
        &format!("evt_{order}"),
        "payment_intent.succeeded",
        &intent,
    )
    .await
    .is(200);
    order
}

fn refund(order: &str, fen: i64, status: &str) -> Value {
    json!({ "id": format!("re_{order}"), "amount": fen, "currency": "cny", "status": status,
        "payment_intent": format!("pi_{order}"), "metadata": {} })
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_refund_told_by_many_events_at_once_over_three_replicas_is_booked_once(db: PgPool) {
    let replicas = [app(&db).await, app(&db).await, app(&db).await];
    let alice = replicas[0].user("alice").await;
    let mut orders = Vec::new();
    for _ in 0..6 {
        orders.push(paid(&replicas[0], &alice).await);
    }

    let racing = (0..72).map(|n| {
        let (sender, order) = (replicas[n % 3].anybody(), &orders[n % 6]);
        let kind = ["refund.created", "refund.updated", "charge.refund.updated"][n % 3];
        async move {
            let object = refund(order, 900, "succeeded");
            tell(&sender, &format!("evt_refund_{n}"), kind, &object)
                .await
                .is(200)
        }
    });
    join_all(racing).await;

    for (sql, expected) in [
        (
            "select count(*) from billing.refunds where state = 'succeeded'",
            6,
        ),
        (
            "select sum(refund_amount)::bigint from billing.orders",
            5_400,
        ),
        (
            "select sum(refund_amount)::bigint from billing.payments",
            5_400,
        ),
        (
            "select sum(amount)::bigint from billing.postings where account_id = 'refunds'",
            -5_400,
        ),
        (
            "select count(*) from billing.webhook_events where outcome = 'refund_settled'",
            72,
        ),
    ] {
        assert_eq!(replicas[0].count(sql).await, expected, "{sql}");
    }
    assert_eq!(replicas[0].events("payment.refunded").await, 6);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_refund_that_fails_after_it_was_booked_is_undone_once(db: PgPool) {
    let replicas = [app(&db).await, app(&db).await, app(&db).await];
    let app = &replicas[0];
    let (alice, sender) = (app.user("alice").await, app.anybody());
    let admin = app.admin().await;
    let (whole, part) = (paid(app, &alice).await, paid(app, &alice).await);
    for (n, (order, fen)) in [(&whole, 9_900), (&part, 900)].into_iter().enumerate() {
        let done = refund(order, fen, "succeeded");
        tell(&sender, &format!("evt_done_{n}"), "refund.updated", &done)
            .await
            .is(200);
    }
    let shown = alice.get(&format!("/orders/{whole}")).await.is(200);
    assert_eq!(shown["status"], "REFUNDED");

    let racing = (0..12).map(|n| {
        let (order, fen) = [(&whole, 9_900), (&part, 900)][n % 2];
        let sender = replicas[n % 3].anybody();
        async move {
            let failed = refund(order, fen, "failed");
            tell(&sender, &format!("evt_{n}"), "refund.failed", &failed)
                .await
                .is(200);
        }
    });
    join_all(racing).await;

    for order in [&whole, &part] {
        let shown = alice.get(&format!("/orders/{order}")).await.is(200);
        assert_eq!(shown["status"], "PAID", "{shown}");
        assert_eq!(shown["refundAmount"], Value::Null, "{shown}");
    }
    for (sql, expected) in [
        (
            "select count(*) from billing.refunds where state = 'failed' and transaction_id is not null",
            2,
        ),
        (
            "select count(*) from billing.transactions where type = 'payout_returned'",
            2,
        ),
        (
            "select sum(amount)::bigint from billing.postings where account_id = 'refunds'",
            0,
        ),
        (
            "select sum(refund_amount)::bigint from billing.payments where status = 'success'",
            0,
        ),
        (
            "select count(*) from billing.webhook_events where outcome = 'held'",
            0,
        ),
    ] {
        assert_eq!(app.count(sql).await, expected, "{sql}");
    }
    assert_eq!(app.events("refund.failed").await, 2);
    // Its word that it was made, told late, is for somebody to look at; the money can go back another way.
    let late = refund(&whole, 9_900, "succeeded");
    tell(&sender, "evt_late", "refund.updated", &late)
        .await
        .is(200);
    let held = "select count(*) from billing.webhook_events where outcome = 'held'";
    assert_eq!(app.count(held).await, 1);
    admin
        .post(&format!("/orders/{whole}/refund"), json!({}))
        .await
        .is(200);
    let balance = alice.get("/balance/user/alice").await.is(200);
    assert_eq!(balance["balance"], 99);
    assert_eq!(admin.get("/admin/ledger/verify").await.is(200)["ok"], true);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_refund_before_its_payment_is_due_as_soon_as_the_payment_comes(db: PgPool) {
    let app = app(&db).await;
    let (alice, sender) = (app.user("alice").await, app.anybody());
    let order = alice.order("basic").await;
    let payment = alice.post("/payments", json!({ "orderId": order, "method": "stripe" }));
    let payment = payment.await.is(201);
    let mut early = refund(&order, 900, "succeeded");
    early["metadata"]["payment_no"] = payment["paymentNo"].clone();
    let by_transaction = json!({ "id": "re_2", "amount": 100, "currency": "cny", "status": "succeeded",
        "payment_intent": format!("pi_{order}"), "metadata": {} });
    let intent = json!({ "id": format!("pi_{order}"), "currency": "cny", "amount_received": 9_900,
        "metadata": { "payment_no": payment["paymentNo"] } });

    tell(&sender, "evt_1", "refund.updated", &early)
        .await
        .is(200);
    tell(&sender, "evt_2", "refund.updated", &by_transaction)
        .await
        .is(200);
    app.run_job("retry-kept-notices").await;
    assert_eq!(
        app.count("select count(*) from billing.webhook_events where outcome = 'held'")
            .await,
        2
    );
    tell(&sender, "evt_3", "payment_intent.succeeded", &intent)
        .await
        .is(200);
    app.run_job("retry-kept-notices").await;

    let shown = alice.get(&format!("/orders/{order}")).await.is(200);
    assert_eq!(
        (&shown["status"], &shown["refundAmount"]),
        (&json!("PAID"), &json!(10)),
        "{shown}"
    );
    assert_eq!(
        app.count("select count(*) from billing.webhook_events where outcome = 'held'")
            .await,
        0
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_notice_is_kept_with_what_its_signature_can_be_checked_by(db: PgPool) {
    let app = app(&db).await;
    let dispute = json!({ "id": "dp_1", "charge": "ch_1", "currency": "cny", "amount": 9_900 });

    tell(&app.anybody(), "evt_1", "charge.dispute.created", &dispute)
        .await
        .is(200);

    let admin = app.admin().await;
    let kept = admin
        .get("/admin/payments/webhooks/logs?provider=stripe")
        .await
        .is(200);
    let kept = &kept["data"][0];
    assert_eq!(kept["event"], "charge.dispute.created", "{kept}");
    let raw = kept["raw"].as_str().unwrap();
    let header = kept["headers"]["stripe-signature"].as_str().unwrap();
    let (seconds, code) = header.split_once(",v1=").unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let signed = format!("{}.{raw}", seconds.strip_prefix("t=").unwrap());
    let made = hmac::sign(&key, signed.as_bytes());
    let made: String = made
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(code, made);
}
