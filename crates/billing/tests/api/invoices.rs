//! Invoices: billed once a period, numbered without gaps, paid once.

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;
use http::Request;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{Client, TestApp};

fn now() -> DateTime<Utc> {
    platform::Clock::system().now().utc()
}

fn this_month() -> Value {
    json!({ "startDate": now() - TimeDelta::days(20), "endDate": now() + TimeDelta::days(1) })
}

/// Days of the past, each a period of its own.
fn period(n: i64) -> Value {
    let day = (now() - TimeDelta::days(30 + n)).date_naive();
    json!({ "startDate": day, "endDate": day })
}

async fn spend(client: &Client, recharge: i64, consume: i64) {
    client
        .post("/balance/recharge", json!({ "amount": recharge }))
        .await
        .is(200);
    client
        .post("/balance/consume", json!({ "amount": consume }))
        .await
        .is(200);
}

fn id(invoice: &Value) -> &str {
    invoice["id"].as_str().unwrap()
}

async fn numbers(app: &TestApp) -> Vec<i64> {
    sqlx::query_scalar(
        "select right(invoice_number, 8)::bigint from billing.invoices order by invoice_number",
    )
    .fetch_all(&app.platform.db)
    .await
    .unwrap()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_was_consumed_is_billed_once_and_paid_once(db: PgPool) {
    let replicas = [TestApp::replica(&db).await, TestApp::replica(&db).await];
    let app = &replicas[0];
    let (alice, bob, boss) = (
        app.user("alice").await,
        app.user("bob").await,
        app.admin().await,
    );
    let elsewhere = replicas[1].user("alice").await;
    spend(&alice, 100, 30).await;
    alice.pay(&alice.order("basic").await).await;
    let period = this_month();

    let asked =
        (0..8).map(|n| [&alice, &elsewhere][n % 2].post("/invoices/generate", period.clone()));
    let replies = join_all(asked).await;

    let made = replies.iter().filter(|reply| reply.status == 201).count();
    assert_eq!(made, 1);
    assert!(
        replies
            .iter()
            .all(|reply| reply.body["id"] == replies[0].body["id"])
    );
    let invoice = &replies[0].body;
    assert_eq!(
        json!([
            invoice["total"],
            invoice["status"],
            invoice["type"],
            invoice["overdue"]
        ]),
        json!([129, "unpaid", "monthly", false])
    );
    assert_eq!(invoice["items"].as_array().unwrap().len(), 2);
    assert!(
        invoice["invoiceNumber"]
            .as_str()
            .unwrap()
            .ends_with("00000001")
    );
    let path = format!("/invoices/{}", id(invoice));
    bob.get(&path).await.refused(404, "NOT_FOUND");
    let pay = format!("{path}/pay");
    bob.post(&pay, json!({})).await.refused(404, "NOT_FOUND");
    alice
        .post(&pay, json!({ "paymentMethod": "balance" }))
        .await
        .refused(402, "INSUFFICIENT_BALANCE");
    alice
        .post("/balance/recharge", json!({ "amount": 200 }))
        .await
        .is(200);
    let replies = join_all((0..6).map(|n| [&alice, &elsewhere][n % 2].post(&pay, json!({})))).await;
    let paid: Vec<_> = replies.iter().filter(|reply| reply.status == 200).collect();
    assert_eq!(paid.len(), 1);
    assert_eq!(paid[0].body["status"], "paid");
    let balance = alice.get("/balance/user/alice").await.is(200);
    assert_eq!(balance["balance"], 141);

    // What paid an invoice is not billed by the next one.
    let wider =
        json!({ "startDate": now() - TimeDelta::days(40), "endDate": now() + TimeDelta::days(2) });
    let wider = alice.post("/invoices/generate", wider).await.is(201);
    assert_eq!(wider["total"], 129);
    let statistics = alice.get("/invoices/statistics/alice").await.is(200);
    assert_eq!(
        json!([
            statistics["totalCount"],
            statistics["paidAmount"],
            statistics["totalUnpaid"]
        ]),
        json!([2, 129, 129])
    );
    assert_eq!(boss.get("/admin/ledger/verify").await.is(200)["ok"], true);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_payment_pays_one_invoice_of_its_user_and_amount(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob) = (app.user("alice").await, app.user("bob").await);
    alice.pay(&alice.order("basic").await).await;
    bob.pay(&bob.order("basic").await).await;
    let payments = alice.get("/payments").await.is(200);
    let payment = json!({ "paymentId": payments["data"][0]["id"] });
    let theirs =
        json!({ "paymentId": bob.get("/payments").await.is(200)["data"][0]["id"].clone() });
    let pending = alice
        .post(
            "/payments",
            json!({ "orderId": alice.order("basic").await, "method": "stripe" }),
        )
        .await
        .is(201);
    let generate = |period: Value| alice.post("/invoices/generate", period);
    let due = generate(this_month()).await.is(201);
    let wider =
        json!({ "startDate": now() - TimeDelta::days(40), "endDate": now() + TimeDelta::days(2) });
    let again = generate(wider).await.is(201);
    let nothing = generate(period(1)).await.is(201);
    let path = |invoice: &Value| format!("/invoices/{}/pay", id(invoice));

    for (invoice, body, status) in [
        (&due, theirs, 404),
        (&due, json!({ "paymentId": "none" }), 404),
        (&due, json!({ "paymentId": pending["id"] }), 409),
        (&due, json!({ "paymentMethod": "stripe" }), 400),
        (&nothing, payment.clone(), 400),
        (&due, payment.clone(), 200),
        (&again, payment.clone(), 409),
        (&due, payment, 409),
        (&nothing, json!({}), 200),
    ] {
        alice.post(&path(invoice), body).await.is(status);
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn no_number_is_missing_or_doubled_whatever_is_rolled_back_or_killed(db: PgPool) {
    let replicas = [
        TestApp::replica(&db).await,
        TestApp::replica(&db).await,
        TestApp::replica(&db).await,
    ];
    let app = &replicas[0];
    let mut clients = Vec::new();
    for replica in &replicas {
        clients.push(replica.user("alice").await);
    }
    let counted = "insert into billing.invoice_counters as c (year, last)
        values (extract(year from now() at time zone 'UTC')::integer, 1) on conflict (year) do update set last = c.last + 1";
    // Two at work with a number of their own: one gives up, the other is killed by the server.
    let giving_up = async {
        let mut tx = db.begin().await.unwrap();
        sqlx::query(counted).execute(&mut *tx).await.unwrap();
        tx.rollback().await.unwrap();
    };
    let killed = async {
        let mut tx = db.begin().await.unwrap();
        sqlx::query(counted).execute(&mut *tx).await.unwrap();
        // By itself: another connection of the pool may wait for the row that this one holds.
        let kill = "select pg_terminate_backend(pg_backend_pid())";
        _ = sqlx::query(kill).execute(&mut *tx).await;
        assert!(sqlx::query("select 1").execute(&mut *tx).await.is_err());
    };

    // Every period is asked for on all replicas at once, so that most of the takers of a number have to give it back.
    let asking = (0..45).map(|n| clients[n % 3].post("/invoices/generate", period(n as i64 / 3)));
    let (replies, (), ()) = tokio::join!(join_all(asking), giving_up, killed);

    let made = replies.iter().filter(|reply| reply.status == 201).count();
    assert_eq!(made, 15);
    assert!(replies.iter().all(|reply| reply.status.is_success()));
    assert_eq!(numbers(app).await, (1..=15).collect::<Vec<_>>());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_admin_writes_publishes_and_cancels(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, boss) = (app.user("alice").await, app.admin().await);
    let body = json!({ "userId": "alice", "items": [{ "description": "搬家 Setup", "quantity": 3, "unitPrice": 1.5 }],
        "tax": 0.45, "startDate": "2025-10-01", "endDate": "2025-10-31" });

    alice
        .post("/invoices", body.clone())
        .await
        .refused(403, "FORBIDDEN");
    let invoice = boss.post("/invoices", body.clone()).await.is(201);
    assert_eq!(
        json!([
            invoice["subtotal"],
            invoice["total"],
            invoice["items"][0]["amount"]
        ]),
        json!([4.5, 4.95, 4.5])
    );
    let path = format!("/invoices/{}", id(&invoice));
    alice.get(&path).await.refused(404, "NOT_FOUND");
    assert_eq!(alice.get("/invoices/user/alice").await.is(200), json!([]));
    boss.post(&format!("{path}/pay"), json!({}))
        .await
        .refused(409, "CONFLICT");
    let put = |client: &Client, path: String| {
        let client = client.clone();
        async move {
            let request = Request::put(path).header("content-type", "application/json");
            client.send(request, "{}".to_owned()).await
        }
    };
    put(&alice, format!("{path}/publish"))
        .await
        .refused(403, "FORBIDDEN");
    put(&boss, format!("{path}/publish")).await.is(200);
    put(&boss, format!("{path}/publish"))
        .await
        .refused(409, "CONFLICT");
    assert_eq!(alice.get(&path).await.is(200)["status"], "unpaid");
    app.platform.clock.advance(TimeDelta::days(16));
    let (alice, boss) = (app.user("alice").await, app.admin().await);
    assert_eq!(alice.get(&path).await.is(200)["overdue"], true);
    let statistics = alice.get("/invoices/statistics/alice").await.is(200);
    assert_eq!(statistics["overdueAmount"], 4.95);
    assert_eq!(
        put(&boss, format!("{path}/cancel")).await.is(200)["status"],
        "cancelled"
    );
    put(&boss, format!("{path}/cancel"))
        .await
        .refused(409, "CONFLICT");
    put(&boss, "/invoices/none/cancel".into())
        .await
        .refused(404, "NOT_FOUND");

    for (query, total) in [("", 1), ("?status=cancelled", 1), ("?type=monthly", 0)] {
        let page = boss.get(&format!("/invoices{query}")).await.is(200);
        assert_eq!(page["total"], total, "{query}");
    }
    let pdf = alice.get(&format!("{path}/pdf")).await;
    assert_eq!(pdf.headers["content-type"], "application/pdf");
    for bad in [
        json!({ "startDate": "2025-10-02", "endDate": "2025-10-01" }),
        json!({ "startDate": "2024-10-02", "endDate": "2025-10-31" }),
        json!({ "startDate": "2025-10-02" }),
    ] {
        alice
            .post("/invoices/generate", bad)
            .await
            .refused(400, "VALIDATION_FAILED");
    }
    alice
        .post(
            "/invoices/generate",
            json!({ "userId": "bob", "startDate": "2025-10-01", "endDate": "2025-10-31" }),
        )
        .await
        .refused(403, "FORBIDDEN");
}
