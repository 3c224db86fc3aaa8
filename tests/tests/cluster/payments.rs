//! Payments: told as often as a provider likes, to whichever replica, had once.

use std::sync::Arc;

use cluster_tests::{BILLING, GATEWAY, PATIENCE, all_instances, call, notice, place_order, text};
use fred::interfaces::ClientLike as _;
use futures::StreamExt;
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use testkit::{Cluster, eventually};

/// What one paid order leaves behind, and nothing more.
pub async fn assert_paid_once(db: &PgPool, order: &str, user: &str) {
    let state: String = scalar(db, "select state from billing.orders where id = $1", order).await;
    assert_eq!(state, "PAID");
    let applied: i64 = scalar(
        db,
        "select count(*) from billing.payments where order_id = $1 and applied",
        order,
    )
    .await;
    assert_eq!(applied, 1, "payments of {order}");
    let legs: i64 = scalar(
        db,
        "select count(*) from billing.postings p join billing.transactions t on t.id = p.transaction_id where t.order_id = $1",
        order,
    )
    .await;
    assert_eq!(legs, 2, "one pair of postings for {order}");
    let events: i64 = scalar(
        db,
        "select count(*) from platform.outbox where kind = 'order.paid' and event->'data'->>'orderId' = $1",
        order,
    )
    .await;
    assert_eq!(events, 1, "order.paid events of {order}");
    eventually(
        PATIENCE,
        "the user is notified of the payment",
        async || {
            let count = notifications_of(db, user, "order.paid").await?;
            anyhow::ensure!(count == 1, "{count} notifications");
            Ok(())
        },
    )
    .await;
}

pub async fn notifications_of(db: &PgPool, user: &str, event: &str) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "select count(*) from notifications.notifications where user_id = $1 and event = $2",
    )
    .bind(user)
    .bind(event)
    .fetch_one(db)
    .await
}

async fn scalar<T>(db: &PgPool, statement: &'static str, order: &str) -> T
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    sqlx::query_scalar(statement)
        .bind(order)
        .fetch_one(db)
        .await
        .expect("billing's tables are read")
}

/// Delivers a notice many times to instances in turn, and again to the well-known port where an instance is gone.
pub async fn deliver(
    cluster: &Cluster,
    addresses: &[String],
    order: &str,
    times: usize,
    at_once: usize,
) -> Vec<Value> {
    let addresses = Arc::new(addresses.to_vec());
    let shared = format!("{}:{BILLING}", cluster.address());
    futures::stream::iter(0..times)
        .map(|number| {
            let (addresses, shared) = (addresses.clone(), shared.clone());
            async move {
                let own = addresses[number % addresses.len()].clone();
                let mut targets = std::iter::once(own).chain(std::iter::repeat(shared));
                eventually(PATIENCE, "a notice is answered", async || {
                    let reply = notice(
                        &targets.next().unwrap_or_default(),
                        order,
                        Some(&format!("event-of-{order}")),
                    )
                    .await?;
                    anyhow::ensure!(reply.status.is_success(), "{reply:?}");
                    Ok(reply.body)
                })
                .await
            }
        })
        .buffer_unordered(at_once)
        .collect()
        .await
}

#[tokio::test]
async fn two_hundred_deliveries_of_one_event_pay_once() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let addresses = all_instances(&cluster, "billing", 3).await;
    let order = text(&place_order(&cluster, "payer").await?, "id");

    let answers = deliver(&cluster, &addresses, &order, 200, 50).await;

    let first = answers
        .iter()
        .filter(|answer| answer["duplicate"] == false)
        .count();
    assert_eq!((answers.len(), first), (200, 1));
    assert!(answers.iter().all(|answer| answer["status"] == "PAID"));
    assert_paid_once(&cluster.database().await?, &order, "payer").await;
    Ok(())
}

#[tokio::test]
async fn twenty_deliveries_each_for_a_thousand_orders_are_a_thousand_payments() -> anyhow::Result<()>
{
    const ORDERS: usize = 1_000;
    const DELIVERIES: usize = 20;
    let cluster = Cluster::start(3).await?;
    let addresses = all_instances(&cluster, "billing", 3).await;
    let orders: Vec<String> = futures::stream::iter(0..ORDERS)
        .map(|number| place_order(&cluster, if number % 2 == 0 { "even" } else { "odd" }))
        .buffer_unordered(16)
        .map(|order| text(&order.expect("an order is placed"), "id"))
        .collect()
        .await;

    // A stride that shares no factor with their number passes all of them, in no order.
    let turns = (0..ORDERS * DELIVERIES).map(|turn| turn * 7_919 % (ORDERS * DELIVERIES));
    // One that keeps its connections: twenty thousand clients would take longer than what they ask for.
    let provider = testkit::client();
    let first: usize = futures::stream::iter(turns)
        .map(|turn| {
            let (order, address) = (&orders[turn % ORDERS], &addresses[turn % addresses.len()]);
            let (provider, url) = (&provider, format!("http://{address}/webhooks/payment"));
            async move {
                eventually(PATIENCE, "a notice is answered", async || {
                    let told = json!({ "orderId": order, "status": "paid", "eventId": order });
                    let reply = provider.post(&url).json(&told).send().await?;
                    let body: Value = reply.error_for_status()?.json().await?;
                    Ok(usize::from(body["duplicate"] == false))
                })
                .await
            }
        })
        .buffer_unordered(32)
        .fold(0, async |sum, first| sum + first)
        .await;

    assert_eq!(first, ORDERS);
    let db = cluster.database().await?;
    for (what, count) in [
        (
            "orders",
            "select count(*) from billing.orders where state = 'PAID'",
        ),
        (
            "payments",
            "select count(*) from billing.payments where applied",
        ),
        (
            "movements",
            "select count(*) from billing.transactions where type = 'payment'",
        ),
        (
            "events",
            "select count(*) from platform.outbox where kind = 'order.paid'",
        ),
    ] {
        let found: i64 = sqlx::query_scalar(count).fetch_one(&db).await?;
        assert_eq!(found, i64::try_from(ORDERS)?, "{what}");
    }
    let deliveries: i64 =
        sqlx::query_scalar("select sum(deliveries)::bigint from billing.webhook_events")
            .fetch_one(&db)
            .await?;
    // An answer that was lost is asked for again.
    assert!(
        deliveries >= i64::try_from(ORDERS * DELIVERIES)?,
        "{deliveries}"
    );
    Ok(())
}

#[tokio::test]
async fn a_redis_that_lost_everything_pays_nothing_twice() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let addresses = all_instances(&cluster, "billing", 3).await;
    let redis = cluster.redis().await?;
    let users: Vec<String> = (0..10).map(|number| format!("payer{number}")).collect();
    let orders = join_all(users.iter().map(|user| place_order(&cluster, user))).await;
    let orders: Vec<String> = orders
        .into_iter()
        .map(|order| text(&order.unwrap(), "id"))
        .collect();

    let paying = join_all(
        orders
            .iter()
            .map(|order| deliver(&cluster, &addresses, order, 10, 5)),
    );
    let flushing = async {
        for _ in 0..20 {
            redis.flushall::<()>(false).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(paying, flushing);
    redis.flushall::<()>(false).await?;

    let db = cluster.database().await?;
    for (order, user) in orders.iter().zip(&users) {
        assert_paid_once(&db, order, user).await;
    }
    Ok(())
}

#[tokio::test]
async fn an_order_is_placed_once_however_often_it_is_asked_for() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let addresses = all_instances(&cluster, "billing", 3).await;
    let client = testkit::fresh();
    let ask = json!({ "userId": "buyer", "planId": "pro" });

    let replies = join_all((0..12).map(|number| {
        let url = format!("http://{}/orders", addresses[number % 3]);
        client
            .post(url)
            .header("idempotency-key", "once")
            .json(&ask)
            .send()
    }))
    .await;

    let (mut ids, mut first) = (std::collections::BTreeSet::new(), 0);
    for reply in replies {
        let reply = reply?;
        if reply.status() == 201 {
            let replayed = reply.headers().get("idempotent-replayed");
            assert!(replayed.is_none_or(|replayed| replayed == "true"));
            first += usize::from(replayed.is_none());
            ids.insert(text(&reply.json().await?, "id"));
        } else {
            assert_eq!(reply.status(), 409);
            assert!(reply.headers().contains_key("retry-after"));
        }
    }
    assert_eq!((ids.len(), first), (1, 1));
    let other = client
        .post(cluster.url(BILLING, "/orders"))
        .header("idempotency-key", "once")
        .json(&json!({ "userId": "buyer", "planId": "basic" }))
        .send()
        .await?;
    assert_eq!(other.status(), 422);
    let page = call(
        Method::GET,
        cluster.url(GATEWAY, &format!("/api/orders/{}", ids.first().unwrap())),
        None,
    )
    .await?;
    assert_eq!(page.expect(200)["status"], "PENDING");
    Ok(())
}

#[tokio::test]
async fn while_the_first_request_is_at_work_others_are_told_to_come_again() -> anyhow::Result<()> {
    let cluster = Cluster::start(2).await?;
    let addresses = all_instances(&cluster, "billing", 2).await;
    let db = cluster.database().await?;
    let client = testkit::fresh();
    let post = async |address: &str, key: &str| {
        let request = client.post(format!("http://{address}/orders"));
        let request = request.header("idempotency-key", key);
        let body = json!({ "userId": "buyer", "planId": "pro" });
        request.json(&body).send().await
    };
    assert_eq!(post(&addresses[0], "before").await?.status(), 201);
    // A request that has claimed its key and not committed, as one on a slow replica.
    let mut slow = db.begin().await?;
    let claim = "insert into coordination.idempotency_keys (scope, key, fingerprint, expires_at)
        select scope, 'now', fingerprint, expires_at from coordination.idempotency_keys where key = 'before'";
    sqlx::query(claim).execute(&mut *slow).await?;

    for address in &addresses {
        let refused = post(address, "now").await?;
        assert_eq!(refused.status(), 409);
        assert_eq!(refused.headers()["retry-after"], "1");
    }
    slow.rollback().await?;
    let first = post(&addresses[0], "now").await?;
    let again = post(&addresses[1], "now").await?;

    assert_eq!(
        (first.status().as_u16(), again.status().as_u16()),
        (201, 201)
    );
    assert!(!first.headers().contains_key("idempotent-replayed"));
    assert_eq!(again.headers()["idempotent-replayed"], "true");
    let (first, again): (serde_json::Value, serde_json::Value) =
        (first.json().await?, again.json().await?);
    assert_eq!(first, again);
    let orders: i64 = sqlx::query_scalar("select count(*) from billing.orders")
        .fetch_one(&db)
        .await?;
    assert_eq!(orders, 2);
    Ok(())
}
