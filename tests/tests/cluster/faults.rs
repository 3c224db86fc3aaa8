//! `kill -9` of any replica in the middle of everything: nothing is lost, and others take over.

use cluster_tests::{GATEWAY, PATIENCE, all_instances, place_order, sockets, text};
use testkit::{Cluster, eventually};

use crate::expiry::{assert_expired_once, assert_no_slot_twice, place_orders, quick_expiry};
use crate::payments::{assert_paid_once, deliver};
use crate::ports::{assert_distinct, count_devices, create_devices};

#[tokio::test]
async fn killing_any_replica_while_devices_are_created_loses_none() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let addresses = all_instances(&cluster, "devices", 3).await;

    // The first one is among the killed: it was the one that started the stores.
    let creating = create_devices(&cluster, addresses, 60, 30);
    let killing = async {
        for (number, wanted) in [(0, 8), (1, 24), (2, 40)] {
            eventually(PATIENCE, "some devices are created", async || {
                let count = count_devices(&cluster).await?;
                anyhow::ensure!(count >= wanted, "{count}");
                Ok(())
            })
            .await;
            cluster.replica(number).kill9();
            cluster.replica(number).restart().await.unwrap();
        }
    };
    let (devices, ()) = tokio::join!(creating, killing);

    assert_distinct(&devices);
    assert_eq!(count_devices(&cluster).await?, 60, "each was created once");
    let db = cluster.database().await?;
    eventually(
        PATIENCE * 2,
        "every device runs, whoever began to make it",
        async || {
            let running: i64 =
                sqlx::query_scalar("select count(*) from devices.devices where status = 'running'")
                    .fetch_one(&db)
                    .await?;
            anyhow::ensure!(running == 60, "{running} of 60");
            Ok(())
        },
    )
    .await;
    for device in &devices {
        let address = format!("{}:{}", cluster.address(), device["adbPort"]);
        eventually(
            PATIENCE,
            &format!("the device at {address} is hosted by a living replica"),
            async || {
                tokio::net::TcpStream::connect(&address).await?;
                Ok(())
            },
        )
        .await;
    }
    Ok(())
}

#[tokio::test]
async fn killing_any_replica_while_a_payment_is_told_pays_once() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let db = cluster.database().await?;
    for number in 0..3 {
        let addresses = all_instances(&cluster, "billing", 3).await;
        let user = format!("payer{number}");
        let order = text(&place_order(&cluster, &user).await?, "id");

        let paying = deliver(&cluster, &addresses, &order, 60, 20);
        let killing = async {
            eventually(PATIENCE, "a notice has come", async || {
                let count: i64 = sqlx::query_scalar(
                    "select count(*) from billing.webhook_events where order_id = $1",
                )
                .bind(&order)
                .fetch_one(&db)
                .await?;
                anyhow::ensure!(count > 0, "none");
                Ok(())
            })
            .await;
            cluster.replica(number).kill9();
        };
        tokio::join!(paying, killing);

        assert_paid_once(&db, &order, &user).await;
        cluster.replica(number).restart().await?;
    }
    Ok(())
}

#[tokio::test]
async fn killing_any_replica_while_orders_expire_expires_each_once() -> anyhow::Result<()> {
    let cluster = quick_expiry().start().await?;
    let db = cluster.database().await?;

    let placing = place_orders(&cluster, 50);
    let killing = async {
        for number in 0..3 {
            eventually(PATIENCE, "some orders are placed", async || {
                let count: i64 = sqlx::query_scalar("select count(*) from billing.orders")
                    .fetch_one(&db)
                    .await?;
                anyhow::ensure!(count >= 10 * (number + 1), "{count}");
                Ok(())
            })
            .await;
            let replica = cluster.replica(usize::try_from(number).unwrap());
            replica.kill9();
            replica.restart().await.unwrap();
        }
    };
    let (orders, ()) = tokio::join!(placing, killing);

    // An order whose answer was lost with its replica was placed as well.
    let all: Vec<String> = sqlx::query_scalar("select id from billing.orders")
        .fetch_all(&db)
        .await?;
    assert!(orders.iter().all(|order| all.contains(order)));
    assert_expired_once(&db, &all).await;
    assert_no_slot_twice(&db, "cancel-expired-orders").await;
    Ok(())
}

#[tokio::test]
async fn killing_the_replica_of_a_socket_loses_no_notification() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let send_url = cluster.url(GATEWAY, "/api/notifications/send");
    let mut last_seen = 0;
    for number in 0..3 {
        let addresses = all_instances(&cluster, "notifications", 3).await;
        let url =
            |address: &str| format!("ws://{address}/notifications?userId=test&lastSeq={last_seen}");
        // One socket on each: the one on the killed replica is cut, the others hear on.
        let mut connected = Vec::new();
        for address in &addresses {
            connected.push(sockets::connect(&url(address)).await?);
        }
        cluster.replica(number).kill9();

        let text = format!("after the end of {number}");
        let sent = eventually(PATIENCE, "a notification is sent", async || {
            sockets::send(send_url.clone(), "test", &text).await
        })
        .await;
        let mut heard = 0;
        for socket in &mut connected {
            if let Ok(frame) = sockets::next(socket, "notification").await {
                assert_eq!(frame["message"], text.as_str());
                heard += 1;
            }
        }

        assert_eq!(heard, 2, "the sockets on the living replicas hear on");
        let mut back = eventually(PATIENCE, "the cut client comes back", async || {
            sockets::connect(&format!(
                "{}?userId=test&lastSeq={last_seen}",
                cluster.websocket_url(cluster_tests::NOTIFICATIONS, "/notifications")
            ))
            .await
        })
        .await;
        assert_eq!(
            sockets::next(&mut back, "notification").await?["seq"],
            sent["seq"]
        );
        last_seen = sent["seq"].as_i64().unwrap();
        cluster.replica(number).restart().await?;
    }
    Ok(())
}
