//! Invoices: what was consumed is stated once, numbered without gaps; what is owed is paid once.

use billing::{Meter, UnitPrice};
use chrono::{DateTime, TimeDelta, Utc};
use contracts::{Event, EventBody};
use futures::future::join_all;
use http::Request;
use platform::events::Consumer;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{Client, TestApp};

fn now() -> DateTime<Utc> {
    platform::Clock::system().now().utc()
}

/// A span that ended a minute ago by the clocks that hold still, which are put on.
fn closed(replicas: &[&TestApp], days: i64) -> Value {
    for replica in replicas {
        replica.platform.clock.advance(TimeDelta::minutes(1));
    }
    let now = replicas[0].platform.clock.now().utc();
    json!({ "startDate": now - TimeDelta::days(days), "endDate": now - TimeDelta::minutes(1) })
}

/// Days of the past, each a period of its own.
fn period(n: i64) -> Value {
    let day = (now() - TimeDelta::days(30 + n)).date_naive();
    json!({ "startDate": day, "endDate": day })
}

/// A device of alice ran for an hour that cost 3 yuan, the n-th of now.
async fn hour(app: &TestApp, n: i64) {
    let now = app.platform.clock.now();
    let began = now + TimeDelta::hours(-n);
    let body = EventBody::DeviceUsed {
        device_id: "d1".parse().unwrap(),
        began_at: began,
        ended_at: began + TimeDelta::hours(1),
        minutes: 60,
    };
    let event = Event::new("alice".parse().unwrap(), now, body);
    let price = UnitPrice::from_yuan(0.05).unwrap();
    let mut tx = app.platform.db.begin().await.unwrap();
    Meter { price }.apply(&mut tx, &event).await.unwrap();
    tx.commit().await.unwrap();
}

async fn recharge(client: &Client, amount: i64) {
    let body = json!({ "amount": amount });
    client.post("/balance/recharge", body).await.is(200);
}

async fn balance(client: &Client) -> Value {
    client.get("/balance/user/alice").await.is(200)["balance"].clone()
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
async fn what_was_consumed_and_paid_is_stated_once_and_never_debited_again(db: PgPool) {
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
    let period = closed(&[app, &replicas[1]], 20);

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
            invoice["paidAmount"],
            invoice["amountDue"],
            invoice["status"],
            invoice["type"],
            invoice["overdue"]
        ]),
        json!([129, 129, 0, "paid", "monthly", false])
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
    alice.post(&pay, json!({})).await.refused(409, "CONFLICT");
    assert_eq!(balance(&alice).await, 70);

    // Spans that overlap, asked for at once on two replicas: each movement stands on one of them.
    spend(&alice, 10, 10).await;
    closed(&[app, &replicas[1]], 1);
    let spans = (0..6).map(|n| {
        let (start, end) = (now() - TimeDelta::days(40 + n), app.platform.clock.now());
        let span = json!({ "startDate": start, "endDate": end + TimeDelta::seconds(-20) });
        [&alice, &elsewhere][n as usize % 2].post("/invoices/generate", span)
    });
    let totals = join_all(spans).await.into_iter();
    let mut totals: Vec<_> = totals.map(|reply| reply.is(201)["total"].clone()).collect();
    totals.sort_by_key(|total| total.as_i64());
    assert_eq!(json!(totals), json!([0, 0, 0, 0, 0, 10]));
    let statistics = alice.get("/invoices/statistics/alice").await.is(200);
    assert_eq!(
        json!([
            statistics["totalCount"],
            statistics["paidAmount"],
            statistics["totalUnpaid"]
        ]),
        json!([7, 139, 0])
    );
    let proof = boss.get("/admin/ledger/verify").await.is(200);
    assert_eq!(proof["ok"], true, "{proof}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_span_that_is_not_over_is_not_stated(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.user("alice").await;
    let now = app.platform.clock.now();

    for end in [
        json!(now),
        json!(now + TimeDelta::seconds(-9)),
        json!(now.utc().date_naive()),
    ] {
        let span = json!({ "startDate": now + TimeDelta::days(-2), "endDate": end });
        let refused = alice.post("/invoices/generate", span).await;
        let refused = refused.refused(400, "VALIDATION_FAILED");
        assert_eq!(refused["details"][0]["field"], "endDate");
    }
    let span =
        json!({ "startDate": now + TimeDelta::days(-2), "endDate": now + TimeDelta::seconds(-10) });
    alice.post("/invoices/generate", span).await.is(201);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_debt_is_settled_once_whether_its_invoice_is_paid_or_the_cron_collects_it(db: PgPool) {
    let replicas = [TestApp::replica(&db).await, TestApp::replica(&db).await];
    let [app, other] = &replicas;
    let (alice, elsewhere) = (app.user("alice").await, other.user("alice").await);
    let boss = app.admin().await;
    for round in 0..4 {
        for n in 1..=5 {
            hour(app, 10 * round + n).await;
        }
        let span = closed(&[app, other], 1 + round);
        let invoice = alice.post("/invoices/generate", span).await.is(201);
        assert_eq!(
            json!([
                invoice["total"],
                invoice["paidAmount"],
                invoice["amountDue"],
                invoice["status"]
            ]),
            json!([15, 0, 15, "unpaid"])
        );
        let path = format!("/invoices/{}", id(&invoice));
        let pay = format!("{path}/pay");
        if round == 0 {
            alice
                .post(&pay, json!({}))
                .await
                .refused(402, "INSUFFICIENT_BALANCE");
        }

        let paying = join_all((0..6).map(|n| [&alice, &elsewhere][n % 2].post(&pay, json!({}))));
        let recharging = async {
            recharge(&elsewhere, 20).await;
            tokio::join!(other.run_job("collect-debts"), app.run_job("collect-debts"));
        };
        let (paid, ()) = tokio::join!(paying, recharging);

        assert!(
            paid.iter()
                .all(|reply| [200, 402, 409].contains(&reply.status.as_u16()))
        );
        assert!(paid.iter().filter(|reply| reply.status == 200).count() <= 1);
        app.run_job("collect-debts").await;
        let invoice = alice.get(&path).await.is(200);
        assert_eq!(
            json!([
                invoice["paidAmount"],
                invoice["amountDue"],
                invoice["status"]
            ]),
            json!([15, 0, "paid"])
        );
        // Of 20 yuan 15 were owed, each time.
        assert_eq!(balance(&alice).await, 5);
        let rest = json!({ "amount": 5 });
        alice.post("/balance/freeze", rest).await.is(200);
    }
    let proof = boss.get("/admin/ledger/verify").await.is(200);
    assert_eq!(proof["ok"], true, "{proof}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn paying_an_invoice_debits_what_is_left_of_its_debts(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, boss) = (app.user("alice").await, app.admin().await);
    spend(&alice, 7, 5).await;
    for n in 1..=3 {
        hour(&app, n).await;
    }
    let span = closed(&[&app], 1);
    let invoice = alice.post("/invoices/generate", span.clone()).await.is(201);
    let path = format!("/invoices/{}", id(&invoice));
    let shown = |invoice: &Value| {
        json!([
            invoice["total"],
            invoice["paidAmount"],
            invoice["amountDue"],
            invoice["status"]
        ])
    };
    assert_eq!(shown(&invoice), json!([14, 5, 9, "unpaid"]));

    recharge(&alice, 2).await;
    app.run_job("collect-debts").await;

    let invoice = alice.get(&path).await.is(200);
    assert_eq!(shown(&invoice), json!([14, 8, 6, "unpaid"]));
    let statistics = alice.get("/invoices/statistics/alice").await.is(200);
    assert_eq!(
        json!([statistics["paidAmount"], statistics["unpaidAmount"]]),
        json!([8, 6])
    );

    // A cancelled invoice frees what stood on it; what is owed stays owed.
    let cancel = Request::put(format!("{path}/cancel")).header("content-type", "application/json");
    boss.send(cancel, "{}".to_owned()).await.is(200);
    let again = alice.post("/invoices/generate", span).await.is(201);
    assert_eq!(shown(&again), json!([14, 8, 6, "unpaid"]));
    recharge(&alice, 10).await;
    let paid = alice
        .post(&format!("/invoices/{}/pay", id(&again)), json!({}))
        .await;
    assert_eq!(shown(&paid.is(200)), json!([14, 14, 0, "paid"]));
    assert_eq!(balance(&alice).await, 5);
    let open = "select count(*) from billing.debts where settled_at is null";
    assert_eq!(app.count(open).await, 0);

    // Neither the movement that paid it nor those that collected debts are stated anew.
    let wider = closed(&[&app], 40);
    let wider = alice.post("/invoices/generate", wider).await.is(201);
    assert_eq!(wider["total"], 0);
    let proof = boss.get("/admin/ledger/verify").await.is(200);
    assert_eq!(proof["ok"], true, "{proof}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn where_rates_are_limited_the_eleventh_invoice_waits(db: PgPool) {
    let platform = platform::testing::with(db, |settings| settings.rate_limits = true).await;
    let app = TestApp::around(platform).await;
    let alice = app.user("alice").await;

    for n in 0..10 {
        alice.post("/invoices/generate", period(n)).await.is(201);
    }

    alice
        .post("/invoices/generate", period(10))
        .await
        .refused(429, "RATE_LIMITED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_payment_pays_one_invoice_written_for_what_it_paid(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob) = (app.user("alice").await, app.user("bob").await);
    let boss = app.admin().await;
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
    let write = |price: f64| {
        let boss = boss.clone();
        async move {
            let span = (now() - TimeDelta::days(1), now() + TimeDelta::days(1));
            let body = json!({ "userId": "alice", "startDate": span.0, "endDate": span.1,
                "items": [{ "description": "Basic", "quantity": 1, "unitPrice": price }] });
            let invoice = boss.post("/invoices", body).await.is(201);
            let path = format!("/invoices/{}", id(&invoice));
            let publish =
                Request::put(format!("{path}/publish")).header("content-type", "application/json");
            boss.send(publish, "{}".to_owned()).await.is(200);
            format!("{path}/pay")
        }
    };
    let (due, again, other) = (write(99.0).await, write(99.0).await, write(98.0).await);
    hour(&app, 1).await;
    let stated = closed(&[&app], 1);
    let stated = alice.post("/invoices/generate", stated).await.is(201);
    let stated = format!("/invoices/{}/pay", id(&stated));

    for (path, body, status) in [
        (&due, theirs, 404),
        (&due, json!({ "paymentId": "none" }), 404),
        (&due, json!({ "paymentId": pending["id"] }), 409),
        (&due, json!({ "paymentMethod": "stripe" }), 400),
        (&other, payment.clone(), 400),
        (&stated, payment.clone(), 409),
        (&due, payment.clone(), 200),
        (&again, payment.clone(), 409),
        (&due, payment, 409),
        (&again, json!({}), 402),
    ] {
        alice.post(path, body).await.is(status);
    }
    // Written by hand, it is paid in full.
    recharge(&alice, 100).await;
    alice.post(&again, json!({})).await.is(200);
    assert_eq!(balance(&alice).await, 1);
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
