//! Replicas that do not agree on the time.

use anyhow::Context as _;
use chrono::{DateTime, TimeDelta, Utc};
use cluster_tests::all_instances;
use serde_json::Value;
use sqlx::PgPool;
use testkit::{Cluster, RedisServers, shifted};

use crate::audit::all_holds;
use crate::load::{Load, replicas};

#[tokio::test]
async fn a_clock_five_minutes_ahead_and_one_five_minutes_behind() -> anyhow::Result<()> {
    let redis = RedisServers::start(1, &[]).await?;
    let mut cluster = replicas()
        .redis(redis.server(0).url())
        // Nobody is so slow that an order is late; each of five minutes' error would make it so.
        .env("BILLING_ORDER_MINUTES", "0.4")
        .replicas(1)
        .start()
        .await?;
    cluster.add_replica_with(&[], shifted("+5m")?).await?;
    cluster.add_replica_with(&[], shifted("-5m")?).await?;
    let db = cluster.database().await?;
    let started = now(&db).await?;
    let errors = errors(&cluster, &db).await?;
    assert!(
        errors[0] < -240 && errors[1].abs() < 60 && errors[2] > 240,
        "{errors:?}"
    );

    let load = Load::start(&cluster).await?;
    load.goes_on(60).await;

    all_holds(&cluster, load).await?;
    // All of them go by the database's clock for orders: none is born dead, none lives too long.
    let (orders, wrong): (i64, i64) = sqlx::query_as(
        "select count(*), count(*) filter (where created_at not between $1 and clock_timestamp()) from billing.orders",
    )
    .bind(started)
    .fetch_one(&db)
    .await?;
    assert!(orders > 10);
    assert_eq!(wrong, 0, "orders placed by a wrong clock, of {orders}");
    let refused: i64 = sqlx::query_scalar(
        "select count(*) from billing.payments p join billing.orders o on o.id = p.order_id
            where p.status = 'refunded' and p.created_at < o.expires_at - interval '5 seconds'",
    )
    .fetch_one(&db)
    .await?;
    assert_eq!(refused, 0, "payments given back although they were in time");
    // Nor does any replica write its own time into the life of a device: what is metered and moved goes by it.
    for (table, columns) in [
        (
            "devices.devices",
            &[
                "created_at",
                "updated_at",
                "last_started_at",
                "deleted_at",
                "released_at",
            ][..],
        ),
        (
            "devices.operations",
            &["created_at", "begun_at", "finished_at"],
        ),
        ("billing.usage", &["began_at"]),
    ] {
        for column in columns {
            let count = format!(
                "select count({column}), count(*) filter (where {column} not between $1 and clock_timestamp()) from {table}"
            );
            let (told, wrong): (i64, i64) = sqlx::query_as(sqlx::AssertSqlSafe(count))
                .bind(started)
                .fetch_one(&db)
                .await?;
            assert!(
                told > 0 || table == "billing.usage",
                "no {column} in {table}"
            );
            assert_eq!(wrong, 0, "{column} by a wrong clock in {table}, of {told}");
        }
    }
    Ok(())
}

/// How many seconds the clocks of the replicas' machines differ from the database's, in order. What they tell of the
/// time beside it does not.
async fn errors(cluster: &Cluster, db: &PgPool) -> anyhow::Result<Vec<i64>> {
    let mut errors = Vec::new();
    for address in all_instances(cluster, "notifications", 3).await {
        let reply = reqwest::get(format!("http://{address}/health")).await?;
        let own = reply.headers()["date"].to_str()?.to_owned();
        let own = DateTime::parse_from_rfc2822(&own)?.with_timezone(&Utc);
        let health: Value = reply.json().await?;
        let told = health["timestamp"].as_str().context("no timestamp")?;
        let now = now(db).await?;
        errors.push((own - now).num_seconds());
        let told = (told.parse::<DateTime<Utc>>()? - now).abs();
        assert!(told < TimeDelta::seconds(60), "{health}");
    }
    errors.sort_unstable();
    Ok(errors)
}

async fn now(db: &PgPool) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar("select clock_timestamp()")
        .fetch_one(db)
        .await
}
