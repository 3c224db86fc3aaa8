//! Lists as CSV: one's own or everybody's, as long as they are, and never a part that looks whole.

use std::time::Duration;

use futures::StreamExt;
use serde_json::json;
use sqlx::PgPool;
use testkit::eventually;

use crate::app::{Client, TestApp};

const PATIENCE: Duration = Duration::from_secs(10);

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn users_export_their_own_rows_and_admins_everybodys(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob, boss) = (
        app.user("alice").await,
        app.user("bob").await,
        app.admin().await,
    );
    let (hers, his) = (alice.order("basic").await, bob.order("pro").await);
    alice.pay(&hers).await;

    let reply = alice.get("/billing/exports/orders").await;
    assert_eq!(
        reply.headers["content-type"],
        "text/csv; charset=utf-8; header=present"
    );
    assert_eq!(
        reply.headers["content-disposition"],
        "attachment; filename=\"orders.csv\""
    );
    let lines: Vec<_> = reply.text.lines().collect();
    assert!(
        lines[0].starts_with("id,order_no,created_at,user_id,plan_id,"),
        "{}",
        reply.text
    );
    assert_eq!(lines.len(), 2, "{}", reply.text);
    assert!(
        lines[1].starts_with(&hers) && lines[1].contains(",PAID,99.00,0.00,99.00,"),
        "{}",
        reply.text
    );

    alice
        .get("/billing/exports/orders?userId=bob")
        .await
        .refused(403, "FORBIDDEN");
    let all = boss.get("/billing/exports/orders").await;
    assert!(
        all.text.contains(&hers) && all.text.contains(&his),
        "{}",
        all.text
    );
    let named = boss.get("/billing/exports/orders?userId=bob").await;
    assert!(
        !named.text.contains(&hers) && named.text.contains(&his),
        "{}",
        named.text
    );
    let nothing = boss.get("/billing/exports/orders?endDate=2020-01-01").await;
    assert_eq!(nothing.text.lines().count(), 1);
    for table in ["transactions", "payments", "invoices", "usage"] {
        let reply = boss.get(&format!("/billing/exports/{table}")).await;
        assert_eq!(reply.status.as_u16(), 200, "{table}: {}", reply.text);
        assert!(reply.text.starts_with("id,"), "{table}: {}", reply.text);
    }
    assert_eq!(
        boss.get("/billing/exports/secrets").await.status.as_u16(),
        404
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_a_spreadsheet_would_run_is_text(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let formula = json!({ "amount": 12.3, "description": "=cmd|' /C calc'!A0, \"now\"" });
    alice.post("/balance/recharge", formula).await.is(200);

    let reply = alice.get("/billing/exports/transactions").await;

    let row = reply.text.lines().nth(1).unwrap();
    assert!(
        row.contains(r#"12.30,0.00,12.30,"'=cmd|' /C calc'!A0, ""now""",,,"#),
        "{row}"
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_long_list_comes_whole_and_only_so_many_at_once(db: PgPool) {
    let app = TestApp::new(db).await;
    let boss = app.admin().await;
    many_orders(&app, &boss).await;

    let asked = (0..6).map(|_| boss.get("/billing/exports/orders"));
    let replies = futures::future::join_all(asked).await;

    let (whole, refused): (Vec<_>, Vec<_>) = replies
        .into_iter()
        .partition(|reply| reply.status.as_u16() == 200);
    assert!(!whole.is_empty() && !refused.is_empty());
    for reply in whole {
        assert_eq!(reply.text.lines().count(), 20_002);
    }
    for reply in refused {
        reply.refused(503, "NOT_READY");
    }
    // Each gave its place back.
    assert_eq!(
        boss.get("/billing/exports/orders").await.status.as_u16(),
        200
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_list_that_breaks_off_never_looks_whole(db: PgPool) {
    let app = TestApp::new(db).await;
    let boss = app.admin().await;
    many_orders(&app, &boss).await;
    let mut body = boss.open("/billing/exports/orders").await;
    let first = body.next().await.unwrap().unwrap();
    assert!(!first.is_empty());

    // What is on the way is full, and PostgreSQL waits for its client to read on.
    eventually(PATIENCE, "the list is stuck, and ended", async || {
        let ended: Vec<bool> = sqlx::query_scalar(
            "select pg_terminate_backend(pid) from pg_stat_activity
            where datname = current_database() and query ilike 'copy%' and wait_event = 'ClientWrite'",
        )
        .fetch_all(&app.platform.db)
        .await?;
        anyhow::ensure!(ended == [true], "{ended:?}");
        Ok(())
    })
    .await;

    let rest: Vec<_> = body.collect().await;
    let (pieces, failures): (Vec<_>, Vec<_>) = rest.into_iter().partition(Result::is_ok);
    assert_eq!(failures.len(), 1);
    let lines = pieces.iter().flatten().flat_map(|piece| piece.iter());
    assert!(lines.filter(|byte| **byte == b'\n').count() < 20_000);
    // Its place is free for the next one, which comes whole.
    let again = boss.get("/billing/exports/orders").await;
    assert_eq!(again.text.lines().count(), 20_002);
}

/// One order, and twenty thousand copies with names so long that no socket holds all of them.
async fn many_orders(app: &TestApp, boss: &Client) {
    let template = boss.order("basic").await;
    sqlx::query(
        "insert into billing.orders (id, order_no, user_id, plan_id, plan_name, terms, amount, final_amount, state, expires_at, created_at, updated_at)
        select 'copy-' || n, 'N' || n, user_id, plan_id, repeat('x', 1000), terms, amount, final_amount, state, expires_at, created_at, updated_at
        from billing.orders, generate_series(1, 20000) n where id = $1",
    )
    .bind(&template)
    .execute(&app.platform.db)
    .await
    .unwrap();
}
