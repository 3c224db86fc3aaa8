//! Whatever many clients do at once on three replicas: money is conserved, no order is paid twice, no coupon is used
//! twice, no invoice's number is missing. `SCHEDULE_SEED` repeats what is asked; the seed of each run stands in its output.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{Days, NaiveDate};
use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{Client, Reply, TestApp};

const USERS: [&str; 3] = ["alice", "bob", "carol"];
const STEPS: usize = 40;
const CLAIMS: i32 = 9;

/// What the clients know of together.
#[derive(Default)]
struct World {
    orders: Mutex<Vec<String>>,
    coupons: Mutex<Vec<String>>,
    invoices: Mutex<Vec<String>>,
    /// In fen, as the replies told.
    recharged: AtomicI64,
    consumed: AtomicI64,
    refunded: AtomicI64,
    notices: AtomicI64,
}

fn seed() -> u64 {
    let given = std::env::var("SCHEDULE_SEED").ok();
    let seed = given.map_or_else(rand::random, |seed| seed.parse().unwrap());
    eprintln!("SCHEDULE_SEED={seed}");
    seed
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a test's amounts are small"
)]
fn fen(amount: &Value) -> i64 {
    (amount.as_f64().unwrap() * 100.0).round() as i64
}

fn one_of(random: &mut StdRng, ids: &Mutex<Vec<String>>) -> String {
    let ids = ids.lock().unwrap();
    match ids.len() {
        0 => "none".to_owned(),
        count => ids[random.random_range(0..count)].clone(),
    }
}

fn keep(ids: &Mutex<Vec<String>>, reply: &Reply) {
    if reply.status == 201 {
        let id = reply.body["id"].as_str().unwrap();
        ids.lock().unwrap().push(id.to_owned());
    }
}

fn add(sum: &AtomicI64, reply: &Reply, amount: &Value) {
    if reply.status == 200 {
        sum.fetch_add(fen(amount), Ordering::Relaxed);
    }
}

/// One step of a client: whatever comes of it, it is an answer and not a failure.
async fn step(world: &World, random: &mut StdRng, client: &Client, boss: &Client) {
    let amount = random.random_range(1..6_000_i32);
    let money = json!({ "amount": f64::from(amount) / 100.0 });
    let reply = match random.random_range(0..14_u32) {
        0 | 1 => {
            let reply = client.post("/balance/recharge", money.clone()).await;
            add(&world.recharged, &reply, &money["amount"]);
            reply
        }
        2 => {
            let reply = client.post("/balance/consume", money.clone()).await;
            add(&world.consumed, &reply, &money["amount"]);
            reply
        }
        3 => client.post("/balance/freeze", money).await,
        4 => client.post("/balance/unfreeze", money).await,
        5 | 6 => {
            let plan = ["basic", "pro", "free"][random.random_range(0..3)];
            let mut body = json!({ "planId": plan });
            if random.random_bool(0.5) {
                body["couponId"] = json!(one_of(random, &world.coupons));
            }
            let reply = client.post("/orders", body).await;
            keep(&world.orders, &reply);
            reply
        }
        7 => {
            let body = json!({ "orderId": one_of(random, &world.orders), "method": "balance" });
            let reply = client.post("/payments", body).await;
            if reply.status == 201 {
                let paid = fen(&reply.body["amount"]);
                world.consumed.fetch_add(paid, Ordering::Relaxed);
            }
            reply
        }
        8 => {
            let order = one_of(random, &world.orders);
            let body = format!("orderId={order}&status=paid&transactionId=t-{order}");
            world.notices.fetch_add(1, Ordering::Relaxed);
            client.form("/webhooks/payment", &body).await
        }
        9 => {
            let path = format!("/orders/{}/cancel", one_of(random, &world.orders));
            client.post(&path, json!({})).await
        }
        10 => {
            let path = format!("/orders/{}/refund", one_of(random, &world.orders));
            let body = if random.random_bool(0.5) {
                json!({})
            } else {
                money
            };
            let reply = boss.post(&path, body).await;
            let refunded = reply.body["refund"]["amount"].clone();
            add(&world.refunded, &reply, &refunded);
            reply
        }
        11 => {
            let reply = client
                .post("/coupons/claim", json!({ "code": "RANDOM" }))
                .await;
            keep(&world.coupons, &reply);
            reply
        }
        12 => {
            let path = format!("/coupons/{}/use", one_of(random, &world.coupons));
            let body = json!({ "orderId": one_of(random, &world.orders) });
            client.post(&path, body).await
        }
        _ if random.random_bool(0.6) => {
            let first = NaiveDate::from_ymd_opt(2024, 1, 1).unwrap();
            let day = first + Days::new(random.random_range(0..6));
            let reply = client
                .post(
                    "/invoices/generate",
                    json!({ "startDate": day, "endDate": day }),
                )
                .await;
            keep(&world.invoices, &reply);
            reply
        }
        _ => {
            let path = format!("/invoices/{}/pay", one_of(random, &world.invoices));
            let reply = client.post(&path, json!({})).await;
            let total = reply.body["total"].clone();
            add(&world.consumed, &reply, &total);
            reply
        }
    };
    assert!(reply.status.as_u16() < 500, "{}", reply.body);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn whatever_many_do_at_once_everything_adds_up(db: PgPool) {
    let seed = seed();
    let replicas = [
        TestApp::replica(&db).await,
        TestApp::replica(&db).await,
        TestApp::replica(&db).await,
    ];
    let app = &replicas[0];
    let boss = app.admin().await;
    let code = json!({ "name": "Random", "type": "discount", "value": 40, "validDays": 7, "code": "RANDOM",
        "maxUses": CLAIMS, "perUser": 4 });
    boss.post("/coupons", code).await.is(201);
    let world = World::default();
    for user in USERS {
        for (kind, value) in [("amount", 500), ("discount", 100), ("trial", 3)] {
            let coupon = json!({ "userId": user, "name": "c", "type": kind, "value": value, "validDays": 7 });
            keep(&world.coupons, &boss.post("/coupons", coupon).await);
        }
        // Invoices with something to pay, written by hand.
        let invoice = json!({ "userId": user, "items": [{ "description": "Setup", "quantity": 1, "unitPrice": 25 }],
            "startDate": "2023-01-01", "endDate": "2023-01-31" });
        let reply = boss.post("/invoices", invoice).await;
        keep(&world.invoices, &reply);
        let path = format!("/invoices/{}/publish", reply.body["id"].as_str().unwrap());
        let put = http::Request::put(path);
        boss.send(put, String::new()).await.is(200);
    }

    let mut clients = Vec::new();
    for replica in &replicas {
        let boss = replica.admin().await;
        for user in USERS {
            clients.push((replica.user(user).await, boss.clone()));
        }
    }
    let running = clients.iter().zip(0..).map(|((client, boss), place)| {
        let (world, mut random) = (&world, StdRng::seed_from_u64(seed.wrapping_add(place)));
        async move {
            for _ in 0..STEPS {
                step(world, &mut random, client, boss).await;
            }
        }
    });
    join_all(running).await;

    let verdict = boss.get("/admin/ledger/verify").await.is(200);
    assert_eq!(verdict["ok"], true, "{verdict}");
    let of = |name: &'static str| {
        let sum = "select coalesce(sum(p.amount), 0)::bigint from billing.postings p join billing.accounts a
            on a.id = p.account_id where a.kind = $1";
        let sum = sqlx::query_scalar::<_, i64>(sum).bind(name);
        let pool = &app.platform.db;
        async move { sum.fetch_one(pool).await.unwrap() }
    };
    let told = |sum: &AtomicI64| sum.load(Ordering::Relaxed);
    let from_outside = app
        .count("select coalesce(sum(amount), 0)::bigint from billing.payments where paid_at is not null and method <> 'balance'")
        .await;
    let kept = app
        .count("select coalesce(sum(available + frozen), 0)::bigint from billing.balances")
        .await;
    let applied_outside = app
        .count("select coalesce(sum(amount), 0)::bigint from billing.payments where applied and method <> 'balance'")
        .await;

    // What came in is what was recharged and what providers told of; all of it is in balances, or earned, or given back.
    let paid_in = told(&world.recharged) + from_outside;
    assert_eq!(of("cash_in").await, -paid_in);
    assert_eq!(of("available").await + of("frozen").await, kept);
    assert_eq!(of("refunds").await, -told(&world.refunded));
    assert_eq!(of("revenue").await, told(&world.consumed) + applied_outside);
    assert_eq!(paid_in, kept + of("revenue").await + of("refunds").await);
    for (promise, sql) in [
        ("an order is paid once", "select count(*) from (select order_id from billing.payments where applied group by 1 having count(*) > 1) twice"),
        ("an order that is paid says so once", "select (select count(*) from platform.outbox where kind = 'order.paid')
            - (select count(*) from billing.orders where paid_at is not null)"),
        ("a coupon is used by one order", "select count(*) from (select coupon_id from billing.orders
            where coupon_id is not null and state not in ('CANCELLED', 'EXPIRED') group by 1 having count(*) > 1) twice"),
        ("a coupon is used by its user", "select count(*) from billing.orders o join billing.coupons c on c.id = o.coupon_id where o.user_id <> c.user_id"),
        ("a code gives what it has", "select count(*) from billing.campaigns c where claimed > max_uses
            or claimed <> (select count(*) from billing.coupons where campaign_id = c.id)"),
        ("invoices are numbered without gaps", "select count(*) from billing.invoice_counters c
            where last <> (select count(*) from billing.invoices) or last <> (select max(right(invoice_number, 8)::bigint) from billing.invoices)"),
    ] {
        assert_eq!(app.count(sql).await, 0, "{promise}");
    }
    assert!(told(&world.notices) > 0 && paid_in > 0, "nothing happened");
}
