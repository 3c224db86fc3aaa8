//! Unpaid orders: expired once each, by whichever replica's turn it is.

use std::time::Duration;

use cluster_tests::{PATIENCE, place_order, text};
use futures::StreamExt;
use sqlx::PgPool;
use testkit::{Cluster, eventually};

/// Orders that live for a second, and a tick of the cron every second.
pub fn quick_expiry() -> testkit::Builder {
    Cluster::builder(3)
        .env("BILLING_ORDER_MINUTES", "0.02")
        .env("BILLING_EXPIRY_SCHEDULE", "* * * * * *")
}

/// Waits until all orders are expired, and fails where one was so more than once.
pub async fn assert_expired_once(db: &PgPool, orders: &[String]) {
    eventually(
        PATIENCE * 2,
        "every order is expired and told of",
        async || {
            let (states, events, notices): (i64, i64, i64) = sqlx::query_as(
                "select (select count(*) from billing.orders where state = 'EXPIRED'),
                (select count(*) from platform.outbox where kind = 'order.expired'),
                (select count(*) from notifications.notifications where event = 'order.expired')",
            )
            .fetch_one(db)
            .await?;
            let wanted = orders.len() as i64;
            anyhow::ensure!(
                (states, events, notices) == (wanted, wanted, wanted),
                "{states} expired, {events} events, {notices} notifications of {wanted}"
            );
            Ok(())
        },
    )
    .await;
    let twice: i64 = sqlx::query_scalar(
        "select count(*) from (select event->'data'->>'orderId' from platform.outbox where kind = 'order.expired' group by 1 having count(*) > 1) twice",
    )
    .fetch_one(db)
    .await
    .expect("the outbox is read");
    assert_eq!(twice, 0, "orders expired more than once");
}

/// Every slot of a job was run at most once to its end.
pub async fn assert_no_slot_twice(db: &PgPool, job: &str) {
    let (runs, slots): (i64, i64) =
        sqlx::query_as("select count(*), count(distinct slot) from coordination.cron_runs where job = $1 and state = 'succeeded'")
            .bind(job)
            .fetch_one(db)
            .await
            .expect("the history of the job is read");
    assert_eq!(runs, slots);
    assert!(runs > 0, "{job} never ran");
}

pub async fn place_orders(cluster: &Cluster, count: usize) -> Vec<String> {
    futures::stream::iter(0..count)
        .map(|number| async move {
            eventually(PATIENCE, "an order is placed", async || {
                Ok(text(
                    &place_order(cluster, &format!("late{}", number % 5)).await?,
                    "id",
                ))
            })
            .await
        })
        .buffer_unordered(10)
        .collect()
        .await
}

#[tokio::test]
async fn fifty_orders_expire_once_each_while_three_replicas_tick() -> anyhow::Result<()> {
    let cluster = quick_expiry().start().await?;
    let db = cluster.database().await?;

    let orders = place_orders(&cluster, 50).await;

    assert_expired_once(&db, &orders).await;
    assert_no_slot_twice(&db, "cancel-expired-orders").await;
    Ok(())
}

#[tokio::test]
async fn a_payment_for_an_expired_order_is_kept_and_given_back() -> anyhow::Result<()> {
    let cluster = quick_expiry().start().await?;
    let db = cluster.database().await?;
    let orders = place_orders(&cluster, 1).await;
    assert_expired_once(&db, &orders).await;

    let address = format!("{}:{}", cluster.address(), cluster_tests::BILLING);
    let reply = cluster_tests::notice(&address, &orders[0], Some("late")).await?;

    assert_eq!(reply.expect(200)["status"], "EXPIRED");
    let refunded: i64 = sqlx::query_scalar("select count(*) from billing.payments where order_id = $1 and status = 'refunded' and not applied")
        .bind(&orders[0])
        .fetch_one(&db)
        .await?;
    assert_eq!(refunded, 1);
    eventually(
        Duration::from_secs(30),
        "the user is told of the refund",
        async || {
            let count = super::payments::notifications_of(&db, "late0", "payment.refunded").await?;
            anyhow::ensure!(count == 1, "{count}");
            Ok(())
        },
    )
    .await;
    Ok(())
}
