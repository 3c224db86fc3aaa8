//! What the store itself refuses, and what the proof finds.

use serde_json::json;
use sqlx::PgPool;

use crate::app::TestApp;

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_store_refuses_what_would_not_add_up(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    alice
        .post("/balance/recharge", json!({ "amount": 5 }))
        .await
        .is(200);
    let id = alice.order("basic").await;
    alice.pay(&id).await;
    let transaction = "insert into billing.transactions (id, user_id, type, amount, balance_before, balance_after, description, created_at)
        values ('t', 'alice', 'recharge', 1, 0, 1, '', now())";

    for (sql, constraint) in [
        (transaction.to_owned(), "legs_sum_to_zero"),
        (format!("with t as ({transaction}) insert into billing.postings values ('t', 1, 'cash_in', -1), ('t', 2, 'revenue', 2)"), "legs_sum_to_zero"),
        ("insert into billing.postings select id, 9, 'revenue', 1 from billing.transactions limit 1".into(), "legs_sum_to_zero"),
        ("update billing.postings set amount = amount * 2".into(), "append-only"),
        ("delete from billing.postings".into(), "append-only"),
        ("truncate billing.postings".into(), "append-only"),
        ("update billing.transactions set amount = 1".into(), "append-only"),
        ("update billing.balances set available = -1".into(), "balances_available_not_negative"),
        ("update billing.balances set frozen = -1".into(), "balances_frozen_not_negative"),
        ("update billing.orders set paid_at = null".into(), "orders_paid_once"),
        ("insert into billing.payments (id, payment_no, order_id, user_id, amount, method, status, applied, expires_at, paid_at, created_at, updated_at)
            select 'p', 'p', order_id, user_id, amount, method, status, applied, expires_at, paid_at, created_at, updated_at from billing.payments".into(), "payments_once_an_order"),
    ] {
        let refused = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.clone())).execute(&app.platform.db).await.unwrap_err();
        let database = refused.into_database_error().unwrap();
        let told = format!("{:?} {}", database.constraint(), database.message());
        assert!(told.contains(constraint), "{sql}: {told}");
    }
    assert_eq!(
        app.admin().await.get("/admin/ledger/verify").await.is(200)["ok"],
        true
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_proof_names_a_balance_that_does_not_follow(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    alice
        .post("/balance/recharge", json!({ "amount": 5 }))
        .await
        .is(200);
    sqlx::query("update billing.balances set available = available + 1")
        .execute(&app.platform.db)
        .await
        .unwrap();

    let verdict = app.admin().await.get("/admin/ledger/verify").await.is(200);

    assert_eq!(verdict["ok"], false);
    assert_eq!(
        verdict["differences"][0],
        json!({ "kind": "available", "subject": "alice", "expected": 500, "actual": 501 })
    );
    assert!(verdict["checkedAt"].is_string());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_proof_names_orders_and_payments_that_the_ledger_does_not_know(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, boss) = (app.user("alice").await, app.admin().await);
    let (paid, other) = (alice.order("basic").await, alice.order("basic").await);
    alice
        .post("/balance/recharge", json!({ "amount": 100 }))
        .await
        .is(200);
    let body = json!({ "orderId": paid, "method": "balance" });
    let payment = alice.post("/payments", body).await.is(201);
    assert_eq!(boss.get("/admin/ledger/verify").await.is(200)["ok"], true);

    for sql in [
        "update billing.payments set amount = amount + 1 where applied",
        "update billing.orders set state = 'PAID', paid_at = now() where state = 'PENDING'",
    ] {
        sqlx::query(sql).execute(&app.platform.db).await.unwrap();
    }

    let verdict = boss.get("/admin/ledger/verify").await.is(200);
    let told = verdict["differences"].as_array().unwrap().iter();
    let told: Vec<_> = told
        .map(|one| {
            (
                one["kind"].as_str().unwrap(),
                &one["subject"],
                &one["expected"],
                &one["actual"],
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("paid_orders", &json!(paid), &json!(9900), &json!(9901)),
            ("paid_orders", &json!(other), &json!(9900), &json!(0)),
            ("payment_legs", &payment["id"], &json!(9901), &json!(9900)),
        ]
    );
}
