//! What must hold after any fault, asked of PostgreSQL and of the devices' own ports.

use std::net::Ipv4Addr;

use anyhow::{Context as _, ensure};
use cluster_tests::sockets::{connect, next, send};
use cluster_tests::{GATEWAY, all_instances};
use sqlx::{PgPool, Row as _};
use testkit::Cluster;

use crate::load::{Load, Told, event_of, until};

/// Each counts what must not be, whatever happened: name and statement.
const NEVER: &[(&str, &str)] = &[
    (
        "orders expired twice, which a job that ran twice would have done",
        "select count(*) from (select event->'data'->>'orderId' from platform.outbox where kind = 'order.expired' group by 1 having count(*) > 1) twice",
    ),
    (
        "paid orders without exactly one movement of money",
        "select count(*) from billing.orders o where state = 'PAID'
            and (select count(*) from billing.transactions t where t.order_id = o.id and t.type = 'payment') <> 1",
    ),
    (
        "movements of money whose legs do not sum to zero",
        "select count(*) from (select transaction_id from billing.postings group by 1 having sum(amount) <> 0 or count(*) < 2) wrong",
    ),
    (
        "movements of money for orders that are not paid",
        "select count(*) from billing.transactions t join billing.orders o on o.id = t.order_id where t.type = 'payment' and o.paid_at is null",
    ),
    (
        "paid orders that were told of more or less than once",
        "select count(*) from billing.orders o where state = 'PAID'
            and (select count(*) from platform.outbox where kind = 'order.paid' and event->'data'->>'orderId' = o.id) <> 1",
    ),
];

/// What PostgreSQL itself refuses, whatever a replica believes; the test asks that it still does.
const REFUSED: &[(&str, &str)] = &[
    ("a port for two devices", "devices.devices_adb_port_key"),
    ("a port for two devices", "devices.devices_webrtc_port_key"),
    ("a port for two devices", "devices.devices_scrcpy_port_key"),
    ("a slot for two runs", "coordination.cron_runs_once_a_slot"),
    ("an order paid twice", "billing.payments_once_an_order"),
    (
        "an order paid twice",
        "billing.transactions_pay_an_order_once",
    ),
];

/// Each counts what must come to nothing by itself.
const IN_THE_END: &[(&str, &str)] = &[
    (
        "orders past their time that nobody closed",
        "select count(*) from billing.orders where state = 'PENDING' and expires_at < now() - interval '3 seconds'",
    ),
    (
        "orders that nobody pays and that are open",
        "select count(*) from billing.orders where state = 'PENDING'",
    ),
    (
        "paid or expired orders of which the user was not notified exactly once",
        "select count(*) from billing.orders o where state in ('PAID', 'EXPIRED')
            and (select count(*) from notifications.notifications n
                where n.event in ('order.paid', 'order.expired') and n.user_id = o.user_id and n.data->>'orderId' = o.id) <> 1",
    ),
    (
        "devices between two states",
        "select count(*) from devices.devices where status not in ('running', 'deleted')",
    ),
];

/// Ends the load after the fault, and fails unless everything holds and the system serves again, by itself.
pub async fn all_holds(cluster: &Cluster, load: Load) -> anyhow::Result<()> {
    // Those who ask already are served, and so are those who come.
    load.goes_on(30).await;
    let told = load.end().await;
    assert!(
        told.kept.len() > 3 && told.deleted.len() > 3 && told.paid.len() > 3,
        "too little load: {told:?}"
    );
    let db = cluster.database().await?;
    serves(cluster, &db).await?;
    for (what, count) in IN_THE_END {
        until(&format!("no {what}"), async || {
            let found = number(&db, count).await?;
            ensure!(found == 0, "{found}");
            Ok(())
        })
        .await;
    }
    for (what, count) in NEVER {
        assert_eq!(number(&db, count).await?, 0, "{what}");
    }
    for (what, index) in REFUSED {
        let refuses: Option<bool> = sqlx::query_scalar(
            "select indisunique and indisvalid from pg_index where indexrelid = to_regclass($1)",
        )
        .bind(index)
        .fetch_optional(&db)
        .await?;
        assert_eq!(refuses, Some(true), "{what} is refused by {index}");
    }
    nothing_is_lost(&db, &told).await?;
    ports_are_those_of_devices(cluster, &db).await;
    devices_answer(cluster, &db, &told).await
}

/// Every effect that a client was told of is in the database, once.
async fn nothing_is_lost(db: &PgPool, told: &Told) -> anyhow::Result<()> {
    let key = |order: &String| format!("event:{}", event_of(order));
    let events: Vec<String> = told.paid.iter().map(key).collect();
    let kept: i64 = sqlx::query_scalar(
        "select count(*) from billing.webhook_events where event_id = any($1) and outcome in ('paid', 'refunded')",
    )
    .bind(&events)
    .fetch_one(db)
    .await?;
    assert_eq!(
        kept,
        i64::try_from(events.len())?,
        "payments that were acknowledged"
    );
    let states: Vec<(String, i64)> = sqlx::query_as(
        "select o.state, count(*) from billing.orders o where o.id = any($1)
            and (select count(*) from billing.payments p where p.order_id = o.id
                and (case when o.state = 'PAID' then p.applied else p.status = 'refunded' end)) = 1
            group by 1",
    )
    .bind(&told.paid)
    .fetch_all(db)
    .await?;
    let settled: i64 = states.iter().map(|(_, count)| count).sum();
    assert_eq!(
        settled,
        i64::try_from(told.paid.len())?,
        "paid, or late and given back: {states:?}"
    );
    let expired: i64 = sqlx::query_scalar(
        "select count(*) from billing.orders where id = any($1) and state = 'EXPIRED'",
    )
    .bind(&told.unpaid)
    .fetch_one(db)
    .await?;
    assert_eq!(expired, i64::try_from(told.unpaid.len())?, "unpaid orders");
    let rented: i64 =
        sqlx::query_scalar("select count(*) from devices.devices where name like 'phone %'")
            .fetch_one(db)
            .await?;
    assert_eq!(
        rented,
        i64::try_from(told.kept.len() + told.deleted.len())?,
        "devices, each created once"
    );
    Ok(())
}

/// Every device that a client still has runs, and it is that device which answers on its port; those that were deleted
/// hold none.
async fn devices_answer(cluster: &Cluster, db: &PgPool, told: &Told) -> anyhow::Result<()> {
    let rows = sqlx::query("select id, webrtc_port, adb_port, released_at is null as held from devices.devices where id = any($1)")
        .bind([&told.kept[..], &told.deleted[..]].concat())
        .fetch_all(db)
        .await?;
    for row in rows {
        let (id, held): (String, bool) = (row.get("id"), row.get("held"));
        assert_eq!(
            held,
            told.kept.contains(&id),
            "whether device {id} holds its ports"
        );
        if !held {
            continue;
        }
        let (page, adb): (i32, i32) = (row.get("webrtc_port"), row.get("adb_port"));
        until(&format!("device {id} answers at its ports"), async || {
            tokio::net::TcpStream::connect((cluster.address(), u16::try_from(adb)?)).await?;
            let url = format!("http://{}:{page}/", cluster.address());
            let text = testkit::fresh().get(url).send().await?.text().await?;
            ensure!(text.contains(&id), "another one answers: {text}");
            Ok(())
        })
        .await;
    }
    Ok(())
}

/// On the ports of devices listens one process each, for the devices there are, and none for those that are gone.
async fn ports_are_those_of_devices(cluster: &Cluster, db: &PgPool) {
    until("only devices that exist listen", async || {
        let rows = sqlx::query("select adb_port, webrtc_port, scrcpy_port from devices.devices where released_at is null")
            .fetch_all(db)
            .await?;
        let mut held: Vec<i32> = Vec::new();
        for row in rows {
            held.extend((0..3).map(|column| row.get::<i32, _>(column)));
        }
        held.sort_unstable();
        let heard = listening(cluster.address())?;
        ensure!(held == heard, "held: {held:?}, heard: {heard:?}");
        Ok(())
    })
    .await;
}

/// The ports below the services' on which somebody listens at an address, as often as somebody does, in order.
fn listening(address: Ipv4Addr) -> anyhow::Result<Vec<i32>> {
    const LISTEN: &str = "0A";
    let wanted = format!("{:08X}", u32::from_le_bytes(address.octets()));
    let mut ports = Vec::new();
    for line in std::fs::read_to_string("/proc/net/tcp")?.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(local), Some(state)) = (fields.get(1), fields.get(3)) else {
            continue;
        };
        let (host, port) = local.split_once(':').context("no port")?;
        let port = i32::from_str_radix(port, 16)?;
        if host == wanted && *state == LISTEN && port < i32::from(GATEWAY) {
            ports.push(port);
        }
    }
    ports.sort_unstable();
    Ok(ports)
}

/// All replicas are there, a cron runs, and a notification told to one replica is heard at another.
async fn serves(cluster: &Cluster, db: &PgPool) -> anyhow::Result<()> {
    let replicas = cluster
        .replicas()
        .iter()
        .filter(|replica| replica.is_running())
        .count();
    assert!(replicas >= 3, "{replicas} replicas run");
    let addresses = all_instances(cluster, "notifications", replicas).await;
    let since: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("select now()").fetch_one(db).await?;
    until("a cron runs again", async || {
        let last: Option<chrono::DateTime<chrono::Utc>> = sqlx::query_scalar(
            "select max(started_at) from coordination.cron_runs where job = 'cancel-expired-orders' and state = 'succeeded'",
        )
        .fetch_one(db)
        .await?;
        ensure!(last > Some(since), "the last one at {last:?}");
        Ok(())
    })
    .await;
    let mut socket = until("a socket is opened", async || {
        connect(&format!(
            "ws://{}/notifications?userId=listener",
            addresses[0]
        ))
        .await
    })
    .await;
    next(&mut socket, "welcome").await?;
    let door = cluster.url(GATEWAY, "/api/notifications/send");
    for url in addresses[1..]
        .iter()
        .map(|address| format!("http://{address}/notifications/send"))
        .chain([door])
    {
        let text = format!("sent through {url}");
        until("a notification is sent", async || {
            send(url.clone(), "listener", &text).await
        })
        .await;
        let heard = next(&mut socket, "notification")
            .await
            .context("serving again")?;
        assert_eq!(heard["message"], text.as_str());
    }
    Ok(())
}

async fn number(db: &PgPool, statement: &'static str) -> sqlx::Result<i64> {
    sqlx::query_scalar(statement).fetch_one(db).await
}
