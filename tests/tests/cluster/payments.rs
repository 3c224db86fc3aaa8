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

    let mut ids = std::collections::BTreeSet::new();
    for reply in replies {
        let reply = reply?;
        assert!(
            [201, 409].contains(&reply.status().as_u16()),
            "{}",
            reply.status()
        );
        if reply.status() == 201 {
            ids.insert(text(&reply.json().await?, "id"));
        }
    }
    assert_eq!(ids.len(), 1);
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
