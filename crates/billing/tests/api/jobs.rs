//! The cron that closes orders past their time.

use chrono::TimeDelta;
use futures::future::join_all;
use serde_json::json;
use sqlx::PgPool;

use crate::app::TestApp;

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn orders_past_their_time_expire_once_each(db: PgPool) {
    let replicas = [
        TestApp::replica(&db).await,
        TestApp::replica(&db).await,
        TestApp::replica(&db).await,
    ];
    let app = &replicas[0];
    let alice = app.user("alice").await;
    for _ in 0..250 {
        alice.order("basic").await;
    }
    let begun = alice.order("pro").await;
    let payment = alice
        .post("/payments", json!({ "orderId": begun, "method": "stripe" }))
        .await
        .is(201);
    let paid = alice.order("pro").await;
    alice.pay(&paid).await;
    for replica in &replicas {
        replica.platform.clock.advance(TimeDelta::minutes(31));
    }
    let fresh = alice.order("pro").await;

    join_all(
        replicas
            .iter()
            .map(|replica| replica.run_job("cancel-expired-orders")),
    )
    .await;

    assert_eq!(
        app.count("select count(*) from billing.orders where state = 'EXPIRED'")
            .await,
        251
    );
    assert_eq!(app.events("order.expired").await, 251);
    assert_eq!(app.count("select count(distinct event -> 'data' ->> 'orderId') from platform.outbox where kind = 'order.expired'").await, 251);
    for (id, status) in [(&paid, "PAID"), (&fresh, "PENDING"), (&begun, "EXPIRED")] {
        assert_eq!(
            alice.get(&format!("/orders/{id}")).await.is(200)["status"],
            status
        );
    }
    let path = format!("/payments/{}", payment["id"].as_str().unwrap());
    assert_eq!(alice.get(&path).await.is(200)["status"], "cancelled");
    alice
        .post(&format!("/orders/{begun}/cancel"), json!({}))
        .await
        .refused(409, "ORDER_STATE");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_nightly_proof_runs(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    alice.pay(&alice.order("basic").await).await;

    app.run_job("ledger-verify").await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn paid_orders_are_completed_once_when_their_term_is_over(db: PgPool) {
    let replicas = [TestApp::replica(&db).await, TestApp::replica(&db).await];
    let app = &replicas[0];
    let alice = app.user("alice").await;
    for _ in 0..105 {
        alice.pay(&alice.order("basic").await).await;
    }
    for replica in &replicas {
        replica.platform.clock.advance(TimeDelta::days(30));
    }
    let alice = app.user("alice").await;
    let fresh = alice.order("pro").await;
    alice.pay(&fresh).await;

    join_all(
        replicas
            .iter()
            .map(|replica| replica.run_job("complete-orders")),
    )
    .await;

    let completed = "select count(*) from billing.orders where state = 'COMPLETED'";
    assert_eq!(app.count(completed).await, 105);
    assert_eq!(app.events("order.completed").await, 105);
    let shown = alice.get(&format!("/billing/orders/{fresh}")).await.is(200);
    assert_eq!(shown["status"], "paid");
    assert_eq!(
        alice.get("/billing/orders?status=paid").await.is(200)["total"],
        106
    );
    // What was paid for can still be given back.
    let boss = app.admin().await;
    let id = boss.get("/orders?status=COMPLETED").await.is(200)["data"][0]["id"].clone();
    let path = format!("/orders/{}/refund", id.as_str().unwrap());
    boss.post(&path, json!({})).await.is(200);
}
