//! Coupons: given, claimed by code, used once, and given back by orders that come to nothing.

use chrono::TimeDelta;
use futures::future::join_all;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{Client, TestApp};

async fn give(boss: &Client, kind: &str, value: f64) -> String {
    let body = json!({ "userId": "alice", "name": "Welcome", "type": kind, "value": value, "validDays": 7 });
    let coupon = boss.post("/coupons", body).await.is(201);
    coupon["id"].as_str().unwrap().to_owned()
}

async fn campaign(boss: &Client, code: &str, max_uses: i32, per_user: i32) {
    let body = json!({ "name": "Spring", "type": "amount", "value": 5, "validDays": 7, "code": code,
        "maxUses": max_uses, "perUser": per_user });
    let made = boss.post("/coupons", body).await.is(201);
    assert_eq!((&made["code"], &made["claimed"]), (&json!(code), &json!(0)));
}

fn won(replies: &[crate::app::Reply]) -> usize {
    replies
        .iter()
        .filter(|reply| reply.status.is_success())
        .count()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_coupon_lowers_an_order_and_is_used_by_it(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob, boss) = (
        app.user("alice").await,
        app.user("bob").await,
        app.admin().await,
    );
    let id = give(&boss, "discount", 12.5).await;

    let body = json!({ "planId": "basic", "couponId": id });
    let order = alice.post("/orders", body.clone()).await.is(201);

    assert_eq!(
        json!([
            order["amount"],
            order["discountAmount"],
            order["finalAmount"],
            order["couponId"]
        ]),
        json!([99, 12.38, 86.62, id])
    );
    let coupon = alice.get(&format!("/coupons/{id}")).await.is(200);
    assert_eq!(
        json!([coupon["status"], coupon["orderId"], coupon["value"]]),
        json!(["used", order["id"], 12.5])
    );
    assert!(coupon["usedAt"].is_string());
    alice
        .post("/orders", body.clone())
        .await
        .refused(409, "CONFLICT");
    bob.post("/orders", body)
        .await
        .refused(400, "VALIDATION_FAILED");
    bob.get(&format!("/coupons/{id}"))
        .await
        .refused(404, "NOT_FOUND");
    let wrong =
        json!({ "orderId": order["id"], "status": "paid", "amount": 99, "transactionId": "t" });
    bob.post("/webhooks/payment", wrong)
        .await
        .refused(400, "AMOUNT_MISMATCH");
    alice.pay(order["id"].as_str().unwrap()).await;
    let proof = boss.get("/admin/ledger/verify").await.is(200);
    assert_eq!(proof["ok"], true, "{proof}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn one_coupon_lowers_one_order_however_many_ask_at_once(db: PgPool) {
    let replicas = [
        TestApp::replica(&db).await,
        TestApp::replica(&db).await,
        TestApp::replica(&db).await,
    ];
    let boss = replicas[0].admin().await;
    let mut clients = Vec::new();
    for replica in &replicas {
        clients.push(replica.user("alice").await);
    }
    let id = give(&boss, "amount", 10.0).await;
    let mut orders = Vec::new();
    for _ in 0..6 {
        orders.push(clients[0].order("basic").await);
    }

    let using = (0..12).map(|n| {
        let (client, id, order) = (&clients[n % 3], &id, &orders[n % 6]);
        async move {
            match n < 6 {
                true => {
                    let body = json!({ "orderId": order });
                    client.post(&format!("/coupons/{id}/use"), body).await
                }
                false => {
                    let body = json!({ "planId": "pro", "couponId": id });
                    client.post("/orders", body).await
                }
            }
        }
    });
    let replies = join_all(using).await;

    assert_eq!(won(&replies), 1);
    assert!(
        replies
            .iter()
            .all(|reply| reply.status.is_success() || reply.status == 409)
    );
    let lowered = "select count(*) from billing.orders where discount_amount > 0";
    assert_eq!(replicas[0].count(lowered).await, 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_code_of_seven_uses_gives_seven_coupons_to_fifty_who_ask_at_once(db: PgPool) {
    let replicas = [
        TestApp::replica(&db).await,
        TestApp::replica(&db).await,
        TestApp::replica(&db).await,
    ];
    let app = &replicas[0];
    let boss = app.admin().await;
    campaign(&boss, "SEVEN", 7, 1).await;
    let mut users = Vec::new();
    for n in 0..50 {
        users.push(replicas[n % 3].user(&format!("user-{n}")).await);
    }

    let asking = users.iter().map(|user| async move {
        let claimed = user
            .post("/coupons/claim", json!({ "code": "seven" }))
            .await;
        match claimed.status.is_success() {
            true => {
                let body = json!({ "planId": "basic", "couponId": claimed.body["id"] });
                user.post("/orders", body).await
            }
            false => claimed,
        }
    });
    let replies = join_all(asking).await;

    assert_eq!(won(&replies), 7);
    for reply in replies {
        if !reply.status.is_success() {
            reply.refused(409, "CONFLICT");
        }
    }
    for (sql, expected) in [
        ("select count(*) from billing.coupons", 7),
        ("select claimed::bigint from billing.campaigns", 7),
        (
            "select count(*) from billing.orders where final_amount = 9400",
            7,
        ),
    ] {
        assert_eq!(app.count(sql).await, expected, "{sql}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_user_has_no_more_of_a_code_than_it_allows(db: PgPool) {
    let replicas = [TestApp::replica(&db).await, TestApp::replica(&db).await];
    let boss = replicas[0].admin().await;
    let clients = [
        replicas[0].user("alice").await,
        replicas[1].user("alice").await,
    ];
    campaign(&boss, "TWO-EACH", 100, 2).await;

    let asking =
        (0..10).map(|n| clients[n % 2].post("/coupons/claim", json!({ "code": "TWO-EACH" })));
    let replies = join_all(asking).await;

    assert_eq!(won(&replies), 2);
    // A claim that was refused takes none.
    let claimed = "select claimed::bigint from billing.campaigns";
    assert_eq!(replicas[0].count(claimed).await, 2);
    clients[0]
        .post("/coupons/claim", json!({ "code": "NOBODYS" }))
        .await
        .refused(404, "NOT_FOUND");
    let taken = json!({ "name": "x", "type": "amount", "value": 5, "validDays": 7, "code": "two-each", "maxUses": 1 });
    boss.post("/coupons", taken).await.refused(409, "CONFLICT");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_order_that_comes_to_nothing_gives_its_coupon_back(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, boss) = (app.user("alice").await, app.admin().await);
    let id = give(&boss, "amount", 10.0).await;
    let body = json!({ "planId": "basic", "couponId": id });
    let status = || async {
        let alice = app.user("alice").await;
        alice.get(&format!("/coupons/{id}")).await.is(200)["status"].clone()
    };

    let cancelled = alice.post("/orders", body.clone()).await.is(201);
    let path = format!("/orders/{}/cancel", cancelled["id"].as_str().unwrap());
    alice.post(&path, json!({})).await.is(200);
    assert_eq!(status().await, "unused");
    alice.post("/orders", body.clone()).await.is(201);
    app.platform.clock.advance(TimeDelta::minutes(31));
    app.run_job("cancel-expired-orders").await;
    assert_eq!(status().await, "unused");
    let alice = app.user("alice").await;
    alice.post("/orders", body.clone()).await.is(201);
    app.platform.clock.advance(TimeDelta::days(7));
    app.run_job("cancel-expired-orders").await;

    assert_eq!(status().await, "expired");
    let alice = app.user("alice").await;
    alice.post("/orders", body).await.refused(409, "CONFLICT");
    let stats = alice.get("/coupons/my/stats").await.is(200);
    assert_eq!(
        stats,
        json!({ "total": 1, "unused": 0, "used": 0, "expired": 1 })
    );
    for (query, total) in [("", 1), ("?status=expired", 1), ("?status=unused", 0)] {
        let page = alice.get(&format!("/coupons/my{query}")).await.is(200);
        assert_eq!(page["total"], total, "{query}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_wholly_lowered_order_is_paid_at_once_and_moves_no_money(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, boss) = (app.user("alice").await, app.admin().await);
    let (whole, trial) = (
        give(&boss, "discount", 100.0).await,
        give(&boss, "trial", 3.0).await,
    );

    let first = alice
        .post("/orders", json!({ "planId": "pro", "couponId": whole }))
        .await
        .is(201);
    let second = alice.order("basic").await;
    alice
        .post(
            &format!("/coupons/{trial}/use"),
            json!({ "orderId": second }),
        )
        .await
        .is(200);

    assert_eq!(
        json!([first["status"], first["finalAmount"]]),
        json!(["PAID", 0])
    );
    let second = alice.get(&format!("/orders/{second}")).await.is(200);
    assert_eq!(
        json!([second["status"], second["finalAmount"]]),
        json!(["PAID", 0])
    );
    assert_eq!(app.events("order.paid").await, 2);
    assert_eq!(
        app.count("select count(*) from billing.transactions").await,
        0
    );
    let days: Vec<Value> = sqlx::query_scalar(
        "select event -> 'data' -> 'plan' -> 'days' from platform.outbox where kind = 'order.paid' order by 1",
    )
    .fetch_all(&app.platform.db)
    .await
    .unwrap();
    assert_eq!(json!(days), json!([3, 30]));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_coupon_is_put_to_the_own_pending_order_only(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob, boss) = (
        app.user("alice").await,
        app.user("bob").await,
        app.admin().await,
    );
    let id = give(&boss, "amount", 10.0).await;
    let path = format!("/coupons/{id}/use");
    let (theirs, paid, begun) = (
        bob.order("basic").await,
        alice.order("basic").await,
        alice.order("basic").await,
    );
    alice.pay(&paid).await;
    alice
        .post("/payments", json!({ "orderId": begun, "method": "stripe" }))
        .await
        .is(201);

    for (client, order, status, code) in [
        (&alice, &theirs, 404, "NOT_FOUND"),
        (&bob, &theirs, 404, "NOT_FOUND"),
        (&boss, &theirs, 404, "NOT_FOUND"),
        (&alice, &paid, 409, "ORDER_STATE"),
        (&alice, &begun, 409, "CONFLICT"),
    ] {
        let reply = client.post(&path, json!({ "orderId": order })).await;
        reply.refused(status, code);
    }
    for (body, status) in [
        (
            json!({ "name": "x", "type": "amount", "value": 5, "validDays": 7 }),
            400,
        ),
        (
            json!({ "name": "x", "type": "discount", "value": 101, "validDays": 7, "userId": "alice" }),
            400,
        ),
        (
            json!({ "name": "x", "type": "trial", "value": 1.5, "validDays": 7, "userId": "alice" }),
            400,
        ),
        (
            json!({ "name": "x", "type": "gift", "value": 1, "validDays": 7, "userId": "alice" }),
            400,
        ),
        (
            json!({ "name": "x", "type": "amount", "value": 1, "validDays": 0, "userId": "alice", "minAmount": 0 }),
            400,
        ),
    ] {
        alice.post("/coupons", body.clone()).await;
        boss.post("/coupons", body).await.is(status);
    }
    let dear = json!({ "userId": "alice", "name": "Big", "type": "amount", "value": 50, "minAmount": 99.01, "validDays": 7 });
    alice
        .post("/coupons", dear.clone())
        .await
        .refused(403, "FORBIDDEN");
    let dear = boss.post("/coupons", dear).await.is(201);
    let small = json!({ "planId": "basic", "couponId": dear["id"] });
    alice.post("/orders", small).await.refused(409, "CONFLICT");
    let large = json!({ "planId": "pro", "couponId": dear["id"] });
    assert_eq!(
        alice.post("/orders", large).await.is(201)["finalAmount"],
        249
    );
}
