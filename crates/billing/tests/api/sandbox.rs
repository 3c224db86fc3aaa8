//! The provider of the sandbox: its page, and notices as on a bad day.

use chrono::TimeDelta;
use futures::future::join_all;
use serde_json::json;
use sqlx::PgPool;

use crate::app::TestApp;

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_payment_is_carried_out_on_its_page_once_and_told_several_times(db: PgPool) {
    let replicas = [TestApp::replica(&db).await, TestApp::replica(&db).await];
    let alice = replicas[0].user("alice").await;
    let order = alice.order("basic").await;
    let payment = alice
        .post("/payments", json!({ "orderId": order, "method": "alipay" }))
        .await
        .is(201);
    let number = payment["paymentNo"].as_str().unwrap();
    let page = format!("/payments/sandbox/{number}");
    assert!(payment["paymentUrl"].as_str().unwrap().ends_with(&page));

    let payers = [replicas[0].anybody(), replicas[1].anybody()];
    payers[0].get(&page).await.is(200);
    let replies = join_all((0..8).map(|turn| payers[turn % 2].form(&page, "outcome=paid"))).await;

    let paid = replies.iter().filter(|reply| reply.status == 200).count();
    assert_eq!(paid, 1);
    assert_eq!(
        replicas[0]
            .count("select count(*) from billing.sandbox_notices")
            .await,
        4
    );
    payers[0]
        .elsewhere()
        .form(&page, "outcome=paid")
        .await
        .refused(403, "SANDBOX_ONLY");
    payers[0]
        .form("/payments/sandbox/PAY0", "outcome=paid")
        .await
        .refused(404, "NOT_FOUND");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn where_no_notice_comes_the_cron_asks_and_refunds_go_back(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let order = alice.order("basic").await;
    let payment = alice
        .post("/payments", json!({ "orderId": order, "method": "wechat" }))
        .await
        .is(201);
    let (id, number) = (
        payment["id"].as_str().unwrap(),
        payment["paymentNo"].as_str().unwrap(),
    );
    app.anybody()
        .form(&format!("/payments/sandbox/{number}"), "outcome=paid")
        .await
        .is(200);

    let admin = app.admin().await;
    let synced = admin
        .post(&format!("/admin/payments/{id}/sync"), json!({}))
        .await
        .is(200);
    assert_eq!(
        (&synced["status"], &synced["providerOpen"]),
        (&json!("success"), &json!(false))
    );
    let refunding = admin
        .post(&format!("/payments/{id}/refund"), json!({}))
        .await
        .is(200);
    assert_eq!(refunding["status"], "refunding");
    let late = "update billing.sandbox_refunds set done_at = now() - interval '1 second'";
    sqlx::query(late).execute(&app.platform.db).await.unwrap();
    let due = "update billing.refunds set ask_at = now() - interval '1 day'";
    sqlx::query(due).execute(&app.platform.db).await.unwrap();
    app.run_job("ask-payment-providers").await;

    let shown = alice.get(&format!("/payments/{id}")).await.is(200);
    assert_eq!(shown["status"], "refunded");
    assert_eq!(
        alice.get(&format!("/orders/{order}")).await.is(200)["status"],
        "REFUNDED"
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_payment_that_nobody_can_answer_for_is_given_up_after_a_week(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let order = alice.order("basic").await;
    let payment = alice.post("/payments", json!({ "orderId": order, "method": "alipay" }));
    let number = payment.await.is(201)["paymentNo"]
        .as_str()
        .unwrap()
        .to_owned();
    sqlx::query("update billing.payments set provider = 'elsewhere'")
        .execute(&app.platform.db)
        .await
        .unwrap();
    let open = "select count(*) from billing.payments where provider_open";

    app.platform.clock.advance(TimeDelta::days(6));
    app.run_job("ask-payment-providers").await;
    assert_eq!(app.count(open).await, 1);
    app.platform.clock.advance(TimeDelta::days(2));
    app.run_job("ask-payment-providers").await;

    assert_eq!(app.count(open).await, 0);
    let given_up = "select count(*) from billing.payments where status = 'cancelled' and last_answer like 'given up%'";
    let pending = "select count(*) from billing.payments where status in ('pending', 'processing')";
    assert_eq!(app.count(given_up).await + app.count(pending).await, 1);
    // What comes all the same is not lost.
    let late = format!("paymentNo={number}&status=paid&transactionId=late&amount=99");
    app.anybody().form("/webhooks/payment", &late).await.is(200);
    let alice = app.user("alice").await;
    let balance = alice.get("/balance/user/alice").await.is(200);
    assert_eq!(balance["balance"], 99);
}
