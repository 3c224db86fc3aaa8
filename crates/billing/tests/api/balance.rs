//! Balances: who may move them, and that none goes below zero.

use futures::future::join_all;
use serde_json::json;
use sqlx::PgPool;

use crate::app::TestApp;

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_missing_account_is_empty(db: PgPool) {
    let app = TestApp::closed(db).await;
    let (alice, bob, boss) = (
        app.user("alice").await,
        app.user("bob").await,
        app.admin().await,
    );

    let balance = alice.get("/balance/user/alice").await.is(200);

    for (field, value) in [
        ("balance", json!(0)),
        ("availableBalance", json!(0)),
        ("frozenBalance", json!(0)),
        ("frozenAmount", json!(0)),
        ("totalBalance", json!(0)),
        ("totalRecharge", json!(0)),
        ("totalConsume", json!(0)),
        ("totalConsumption", json!(0)),
        ("currency", json!("CNY")),
        ("status", json!("insufficient")),
        ("lowBalanceThreshold", json!(100)),
        ("alertEnabled", json!(true)),
    ] {
        assert_eq!(balance[field], value, "{field}");
    }
    assert_eq!(boss.get("/balance/user/alice").await.is(200), balance);
    bob.get("/balance/user/alice")
        .await
        .refused(403, "FORBIDDEN");
    app.anybody()
        .get("/balance/user/alice")
        .await
        .refused(401, "UNAUTHENTICATED");
    let alerts = alice.get("/balance/user/alice/alerts").await.is(200);
    assert_eq!(
        (&alerts["hasLowBalanceAlert"], &alerts["alerts"][0]["type"]),
        (&json!(true), &json!("low_balance"))
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn money_moves_and_its_history_adds_up(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, boss) = (app.user("alice").await, app.admin().await);

    for (path, amount, balance, frozen) in [
        ("/balance/recharge", 100.5, json!(100.5), json!(0)),
        ("/balance/consume", 0.25, json!(100.25), json!(0)),
        ("/balance/freeze", 50.0, json!(50.25), json!(50)),
        ("/balance/unfreeze", 20.0, json!(70.25), json!(30)),
    ] {
        let moved = alice
            .post(path, json!({ "amount": amount, "metadata": { "a": 1 } }))
            .await
            .is(200);
        assert_eq!(
            (
                &moved["balance"]["balance"],
                &moved["balance"]["frozenBalance"]
            ),
            (&balance, &frozen),
            "{path}"
        );
        assert_eq!(moved["transaction"]["balanceAfter"], balance, "{path}");
    }
    let adjusted = boss
        .post(
            "/balance/adjust",
            json!({ "userId": "alice", "amount": -0.25, "reason": "error" }),
        )
        .await
        .is(200);
    assert_eq!(
        (
            &adjusted["transaction"]["amount"],
            &adjusted["transaction"]["operatorId"]
        ),
        (&json!(-0.25), &json!("boss"))
    );

    alice
        .post("/balance/consume", json!({ "amount": 70.01 }))
        .await
        .refused(402, "INSUFFICIENT_BALANCE");
    alice
        .post("/balance/freeze", json!({ "amount": 70.01 }))
        .await
        .refused(402, "INSUFFICIENT_BALANCE");
    alice
        .post("/balance/unfreeze", json!({ "amount": 30.01 }))
        .await
        .refused(400, "VALIDATION_FAILED");
    boss.post(
        "/balance/adjust",
        json!({ "userId": "alice", "amount": -70.01, "reason": "x" }),
    )
    .await
    .refused(402, "INSUFFICIENT_BALANCE");
    let balance = alice.get("/balance/user/alice").await.is(200);
    assert_eq!(
        (
            &balance["balance"],
            &balance["totalBalance"],
            &balance["status"]
        ),
        (&json!(70), &json!(100), &json!("low"))
    );
    assert_eq!(
        (&balance["totalRecharge"], &balance["totalConsume"]),
        (&json!(100.5), &json!(0.25))
    );

    let history = alice.get("/transactions/user/alice").await.is(200);
    let kinds: Vec<_> = history
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        ["adjust", "unfreeze", "freeze", "consume", "recharge"]
    );
    let slice = alice
        .get("/balance/transactions/alice?type=freeze&status=success&limit=1")
        .await
        .is(200);
    assert_eq!(
        (&slice["total"], &slice["limit"], &slice["data"][0]["type"]),
        (&json!(1), &json!(1), &json!("freeze"))
    );
    alice
        .get("/transactions/user/alice?type=gift")
        .await
        .refused(400, "VALIDATION_FAILED");
    alice
        .get("/transactions/user/alice?status=failed")
        .await
        .refused(400, "VALIDATION_FAILED");
    alice
        .get("/transactions/user/bob")
        .await
        .refused(403, "FORBIDDEN");
    assert_eq!(app.events("balance.changed").await, 5);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn only_admins_move_balances_where_the_sandbox_is_closed(db: PgPool) {
    let closed = TestApp::closed(db.clone()).await;
    let open = TestApp::new(db).await;
    let body = json!({ "amount": 5 });
    for path in [
        "/balance/recharge",
        "/balance/consume",
        "/balance/freeze",
        "/balance/unfreeze",
    ] {
        closed
            .user("alice")
            .await
            .post(path, body.clone())
            .await
            .refused(403, "SANDBOX_ONLY");
        closed
            .anybody()
            .post(path, body.clone())
            .await
            .refused(401, "UNAUTHENTICATED");
        open.user("alice")
            .await
            .elsewhere()
            .post(path, body.clone())
            .await
            .refused(403, "SANDBOX_ONLY");
        open.user("alice")
            .await
            .post(path, json!({ "amount": 5, "userId": "bob" }))
            .await
            .refused(403, "FORBIDDEN");
        open.anybody()
            .post(path, json!({ "amount": 5, "userId": "bob" }))
            .await
            .refused(401, "UNAUTHENTICATED");
    }
    closed
        .user("alice")
        .await
        .post(
            "/balance/adjust",
            json!({ "userId": "alice", "amount": 5, "reason": "x" }),
        )
        .await
        .refused(403, "FORBIDDEN");
    closed
        .user("alice")
        .await
        .get("/admin/ledger/verify")
        .await
        .refused(403, "FORBIDDEN");

    let moved = closed
        .admin()
        .await
        .post(
            "/balance/recharge",
            json!({ "userId": "alice", "amount": 5, "reason": "gift" }),
        )
        .await
        .is(200);

    assert_eq!(
        (
            &moved["balance"]["userId"],
            &moved["transaction"]["description"]
        ),
        (&json!("alice"), &json!("gift"))
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_amount_is_refused_unless_it_is_money(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;

    for amount in [
        "0",
        "-1",
        "0.001",
        "1000000.01",
        "\"5\"",
        "1e400",
        "null",
        "NaN",
    ] {
        let request =
            http::Request::post("/balance/recharge").header("content-type", "application/json");
        alice
            .send(request, format!("{{\"amount\":{amount}}}"))
            .await
            .refused(400, "VALIDATION_FAILED");
    }
    alice
        .post(
            "/balance/recharge",
            json!({ "amount": 1, "metadata": "text" }),
        )
        .await
        .refused(400, "VALIDATION_FAILED");

    assert_eq!(
        app.count("select count(*) from billing.transactions").await,
        0
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_balance_is_never_overdrawn_by_racing_clients(db: PgPool) {
    let replicas = [TestApp::replica(&db).await, TestApp::replica(&db).await];
    let alice = [
        replicas[0].user("alice").await,
        replicas[1].user("alice").await,
    ];
    // The first movements open the account, at once.
    let opening =
        join_all((0..10).map(|n| alice[n % 2].post("/balance/recharge", json!({ "amount": 1 }))))
            .await;
    assert!(opening.iter().all(|reply| reply.status == 200));

    let racing = (0..60).map(|n| {
        let path = ["/balance/consume", "/balance/freeze", "/balance/unfreeze"][n % 3];
        alice[n % 2].post(path, json!({ "amount": 0.7 }))
    });
    let replies = join_all(racing).await;

    assert!(
        replies
            .iter()
            .all(|reply| [200, 402, 400].contains(&reply.status.as_u16()))
    );
    assert_eq!(
        replicas[0]
            .admin()
            .await
            .get("/admin/ledger/verify")
            .await
            .is(200)["ok"],
        true
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn one_key_moves_money_once(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let body = json!({ "amount": 10 });

    let replies =
        join_all((0..8).map(|_| alice.post_once("/balance/recharge", "k", body.clone()))).await;

    assert!(
        replies
            .iter()
            .all(|reply| reply.body == replies[0].body && reply.status == 200)
    );
    assert_eq!(
        alice.get("/balance/user/alice").await.is(200)["balance"],
        10
    );
    alice
        .post_once("/balance/consume", "c", json!({ "amount": 11 }))
        .await
        .refused(402, "INSUFFICIENT_BALANCE");
    alice.post("/balance/recharge", body).await.is(200);
    alice
        .post_once("/balance/consume", "c", json!({ "amount": 11 }))
        .await
        .is(200);
}
