//! Orders: made, shown, cancelled, confirmed, refunded.

use chrono::TimeDelta;
use futures::future::join_all;
use serde_json::json;
use sqlx::PgPool;

use crate::app::TestApp;

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_order_has_the_plans_price_and_every_field(db: PgPool) {
    let app = TestApp::new(db).await;

    let body = json!({ "userId": "test", "planId": "basic", "amount": 100 });
    let order = app.anybody().post("/billing/orders", body).await.is(201);

    assert_eq!(order["orderNo"], order["orderNumber"]);
    assert_eq!(order["orderNo"].as_str().unwrap().len(), 25);
    for (field, value) in [
        ("userId", json!("test")),
        ("planName", json!("Basic")),
        ("amount", json!(99)),
        ("discountAmount", json!(0)),
        ("finalAmount", json!(99)),
        ("status", json!("pending")),
    ] {
        assert_eq!(order[field], value, "{field}");
    }
    assert_eq!(order["plan"]["id"], "basic");
    assert!(!order.to_string().contains("null"), "{order}");
    let id = order["id"].as_str().unwrap();
    let shown = app.anybody().get(&format!("/orders/{id}")).await.is(200);
    assert_eq!(shown["status"], "PENDING");
    let created: chrono::DateTime<chrono::Utc> =
        order["createdAt"].as_str().unwrap().parse().unwrap();
    let expires = created + TimeDelta::minutes(30);
    assert_eq!(
        order["expiresAt"]
            .as_str()
            .unwrap()
            .parse::<chrono::DateTime<chrono::Utc>>()
            .unwrap(),
        expires
    );
    assert_eq!(app.events("order.created").await, 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_bad_order_is_refused_with_every_fault_and_nothing_is_stored(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;

    let body = json!({ "planId": "a b", "paymentMethod": "cash", "description": "\u{0}" });
    let problem = alice
        .post("/orders", body)
        .await
        .refused(400, "VALIDATION_FAILED");
    let fields: Vec<_> = problem["details"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fault| fault["field"].clone())
        .collect();
    assert_eq!(fields.len(), 3, "{fields:?}");
    alice
        .post("/orders", json!({}))
        .await
        .refused(400, "VALIDATION_FAILED");
    alice
        .post("/orders", json!({ "planId": "nope" }))
        .await
        .refused(404, "NOT_FOUND");
    alice
        .post("/orders", json!({ "planId": "pro", "couponId": "x" }))
        .await
        .refused(400, "VALIDATION_FAILED");
    alice
        .post("/orders", json!({ "planId": "pro", "userId": "bob" }))
        .await
        .refused(403, "FORBIDDEN");
    app.anybody()
        .post("/orders", json!({ "planId": "pro" }))
        .await
        .refused(400, "VALIDATION_FAILED");
    app.anybody()
        .elsewhere()
        .post("/orders", json!({ "planId": "pro", "userId": "bob" }))
        .await
        .refused(401, "UNAUTHENTICATED");

    assert_eq!(app.count("select count(*) from billing.orders").await, 0);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_order_is_seen_by_its_user_and_admins_only(db: PgPool) {
    let app = TestApp::closed(db).await;
    let (alice, bob, boss) = (
        app.user("alice").await,
        app.user("bob").await,
        app.admin().await,
    );
    let id = alice.order("pro").await;
    bob.order("basic").await;

    assert_eq!(
        alice.get(&format!("/orders/{id}")).await.is(200)["id"],
        json!(id)
    );
    bob.get(&format!("/orders/{id}"))
        .await
        .refused(404, "NOT_FOUND");
    bob.get("/orders/alice").await.refused(404, "NOT_FOUND");
    bob.post(&format!("/orders/{id}/cancel"), json!({}))
        .await
        .refused(404, "NOT_FOUND");
    bob.get("/orders?userId=alice")
        .await
        .refused(403, "FORBIDDEN");
    app.anybody()
        .get(&format!("/orders/{id}"))
        .await
        .refused(401, "UNAUTHENTICATED");
    app.anybody()
        .get("/orders")
        .await
        .refused(401, "UNAUTHENTICATED");

    assert_eq!(alice.get("/orders/alice").await.is(200)["total"], 1);
    assert_eq!(alice.get("/orders").await.is(200)["total"], 1);
    assert_eq!(boss.get("/orders").await.is(200)["total"], 2);
    assert_eq!(
        boss.get("/orders?userId=bob").await.is(200)["data"][0]["planId"],
        "basic"
    );
    assert_eq!(boss.get("/orders/boss").await.is(200)["total"], 0);
    boss.get("/orders/unknown").await.refused(404, "NOT_FOUND");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_list_is_filtered_and_its_pages_do_not_overlap(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let mut ids = Vec::new();
    for plan in ["basic", "basic", "pro"] {
        ids.push(alice.order(plan).await);
    }
    alice.pay(&ids[2]).await;

    let first = alice.get("/orders?pageSize=2").await.is(200);
    let second = alice.get("/orders?pageSize=2&page=2").await.is(200);
    let shown: Vec<_> = [&first["data"][0], &first["data"][1], &second["data"][0]]
        .map(|order| order["id"].as_str().unwrap().to_owned())
        .into();
    ids.reverse();
    assert_eq!(shown, ids);

    let today = first["data"][0]["createdAt"].as_str().unwrap()[..10].to_owned();
    for (query, total) in [
        ("status=paid".to_owned(), 1),
        ("status=PENDING".to_owned(), 2),
        ("search=PRO".to_owned(), 1),
        ("search=%25".to_owned(), 0),
        ("paymentMethod=wechat".to_owned(), 0),
        (format!("startDate={today}&endDate={today}"), 3),
        ("endDate=2020-01-01".to_owned(), 0),
    ] {
        let page = alice.get(&format!("/billing/orders?{query}")).await.is(200);
        assert_eq!(page["total"], total, "{query}");
    }
    for query in [
        "status=lost",
        "paymentMethod=cash",
        "startDate=soon",
        "page=0",
        "page=x",
    ] {
        alice
            .get(&format!("/orders?{query}"))
            .await
            .refused(400, "VALIDATION_FAILED");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn one_key_makes_one_order(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let body = json!({ "planId": "basic" });

    let first = alice.post_once("/orders", "k1", body.clone()).await.is(201);
    let again = alice.post_once("/orders", "k1", body.clone()).await;

    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(again.is(201), first);
    alice
        .post_once("/orders", "k1", json!({ "planId": "pro" }))
        .await
        .refused(422, "IDEMPOTENCY_MISMATCH");
    let racing = (0..10).map(|_| alice.post_once("/orders", "k2", body.clone()));
    let replies = join_all(racing).await;
    assert!(replies.iter().all(|reply| reply.status == 201));
    assert_eq!(app.count("select count(*) from billing.orders").await, 2);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn of_cancelling_and_paying_at_once_one_wins(db: PgPool) {
    let replicas = [TestApp::replica(&db).await, TestApp::replica(&db).await];
    let app = &replicas[0];
    let alice = app.user("alice").await;
    let bob = replicas[1].user("alice").await;
    for _ in 0..8 {
        let id = alice.order("basic").await;
        let path = format!("/orders/{id}/cancel");
        let notice = format!("orderId={id}&status=paid&transactionId=t-{id}");

        let (cancelled, paid) = tokio::join!(
            alice.post(&path, json!({ "reason": "dear" })),
            bob.form("/webhooks/payment", &notice),
        );

        let status = alice.get(&format!("/orders/{id}")).await.is(200)["status"].clone();
        assert_eq!(paid.is(200)["status"], status);
        if status == "PAID" {
            cancelled.refused(409, "ORDER_STATE");
        } else {
            assert_eq!(cancelled.is(200)["status"], "CANCELLED");
        }
    }
    let paid = app
        .count("select count(*) from billing.orders where state = 'PAID'")
        .await;
    assert_eq!(app.events("order.paid").await, paid);
    assert_eq!(app.events("order.cancelled").await, 8 - paid);
    assert_eq!(app.events("payment.refunded").await, 8 - paid);
    assert_eq!(
        app.admin().await.get("/admin/ledger/verify").await.is(200)["ok"],
        true
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn several_orders_are_cancelled_each_for_itself(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob) = (app.user("alice").await, app.user("bob").await);
    let ids = [
        alice.order("basic").await,
        bob.order("basic").await,
        alice.order("pro").await,
    ];
    alice.pay(&ids[2]).await;

    let reply = alice
        .post("/orders/batch/cancel", json!({ "ids": ids }))
        .await
        .is(200);

    assert_eq!(
        (&reply["total"], &reply["succeeded"], &reply["failed"]),
        (&json!(3), &json!(1), &json!(2))
    );
    assert_eq!(
        reply["results"][0],
        json!({ "id": ids[0], "success": true })
    );
    alice
        .post("/orders/batch/cancel", json!({ "ids": [] }))
        .await
        .refused(400, "VALIDATION_FAILED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_admin_confirms_an_order_once(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, boss) = (app.user("alice").await, app.admin().await);
    let id = alice.order("basic").await;
    let path = format!("/billing/orders/{id}/confirm");
    let body = json!({ "paymentMethod": "alipay", "transactionId": "t1", "note": "by bank" });

    alice
        .post(&path, body.clone())
        .await
        .refused(403, "FORBIDDEN");
    boss.post(&path, json!({ "paymentMethod": "balance" }))
        .await
        .refused(400, "VALIDATION_FAILED");
    let replies = join_all((0..5).map(|_| boss.post(&path, body.clone()))).await;

    let won: Vec<_> = replies.iter().filter(|reply| reply.status == 200).collect();
    assert_eq!(won.len(), 1);
    let order = &won[0].body;
    assert_eq!(
        (&order["status"], &order["paymentMethod"], &order["remark"]),
        (&json!("paid"), &json!("alipay"), &json!("by bank"))
    );
    assert_eq!(app.events("order.paid").await, 1);
    let notice = json!({ "orderId": id, "status": "paid", "transactionId": "t1" });
    assert_eq!(
        app.anybody()
            .post("/webhooks/payment", notice)
            .await
            .is(200)["duplicate"],
        true
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn no_more_is_refunded_than_was_paid(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, boss) = (app.user("alice").await, app.admin().await);
    let id = alice.order("basic").await;
    let path = format!("/orders/{id}/refund");
    boss.post(&path, json!({}))
        .await
        .refused(409, "ORDER_STATE");
    alice.pay(&id).await;
    alice.post(&path, json!({})).await.refused(403, "FORBIDDEN");

    let racing = (0..6).map(|_| boss.post(&path, json!({ "amount": 30.5, "reason": "sorry" })));
    let replies = join_all(racing).await;

    let done = replies.iter().filter(|reply| reply.status == 200).count();
    assert_eq!(done, 3);
    let last = boss.post(&path, json!({})).await.is(200);
    assert_eq!(last["refund"]["amount"], 7.5);
    assert_eq!(
        (&last["order"]["status"], &last["order"]["refundAmount"]),
        (&json!("REFUNDED"), &json!(99))
    );
    assert_eq!(last["balance"]["balance"], 99);
    boss.post(&path, json!({}))
        .await
        .refused(409, "ORDER_STATE");
    boss.post("/orders/nope/refund", json!({}))
        .await
        .refused(404, "NOT_FOUND");
    assert_eq!(boss.get("/admin/ledger/verify").await.is(200)["ok"], true);
}
