//! Who is online, across instances.

use std::time::Duration;

use fred::interfaces::{KeysInterface, SetsInterface};
use http::StatusCode;
use platform::lifecycle::Tasks;
use platform::testing;
use serde_json::json;
use sqlx::PgPool;

use crate::app::{Cluster, Instance, beside, config_with, id, until};

const PATH: &str = "/notifications/presence";

fn quick() -> notifications::Config {
    config_with(&[("NOTIFICATIONS_PRESENCE_SECONDS", "0.2")])
}

/// Waits until a user is seen on so many sockets and instances.
async fn seen(instance: &Instance, token: &str, user: &str, (sockets, instances): (i64, i64)) {
    let what = format!("{user} on {sockets} sockets of {instances} instances");
    let expected = json!({ "userId": user, "online": sockets > 0, "sockets": sockets, "instances": instances });
    until(&what, async || {
        instance.get(&format!("{PATH}/{user}"), token).await.body == expected
    })
    .await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn sockets_of_all_instances_and_transports_are_counted_as_they_come_and_go(db: PgPool) {
    let cluster = Cluster::new(db, quick()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let bob = cluster.sign_in("bob", &["user"]).await;
    let admin = cluster.sign_in("root", &["admin"]).await;
    let (first, second) = (&cluster.first, &cluster.second);
    let path = format!("/notifications?token={alice}");
    let one = first.connect(&path).await;
    let _two = first.connect(&path).await;
    let _three = second.connect(&path).await;
    let _four = second.connect(&format!("/notifications?token={bob}")).await;

    seen(first, &admin, "alice", (3, 2)).await;
    seen(second, &alice, "alice", (3, 2)).await;
    seen(first, &bob, "bob", (1, 1)).await;
    seen(first, &admin, "carol", (0, 0)).await;
    let all = second.get(PATH, &admin).await.body;
    assert_eq!(all["total"], 2);
    assert_eq!(
        (&all["data"][0]["userId"], &all["data"][0]["sockets"]),
        (&json!("alice"), &json!(3))
    );
    let page = first
        .get(&format!("{PATH}?page=2&pageSize=1"), &admin)
        .await
        .body;
    assert_eq!(
        (&page["data"][0]["userId"], &page["totalPages"]),
        (&json!("bob"), &json!(2))
    );
    let own = first.get(PATH, &bob).await.body;
    assert_eq!(
        (&own["total"], &own["data"][0]["userId"]),
        (&json!(1), &json!("bob"))
    );
    let others = first.get(&format!("{PATH}/alice"), &bob).await;
    assert_eq!(others.status, StatusCode::FORBIDDEN);

    drop(one);
    seen(second, &admin, "alice", (2, 2)).await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn who_was_on_an_instance_that_died_is_gone_within_seconds(db: PgPool) {
    let platform = testing::platform(db).await;
    let (doomed, tasks) = (Tasks::new(), Tasks::new());
    let first = Instance::start(platform.clone(), quick(), &doomed).await;
    let other = beside(&platform, &platform.redis_url.clone()).await;
    let second = Instance::start(other, quick(), &tasks).await;
    let admin = testing::sign_in(&platform, &id("root"), &["admin"]).await;
    let path = "/notifications?userId=alice";
    let (_dead, _alive) = (first.connect(path).await, second.connect(path).await);
    seen(&second, &admin, "alice", (2, 2)).await;

    // Nobody says goodbye for it.
    doomed.stop(Duration::from_millis(100)).await;

    seen(&second, &admin, "alice", (1, 1)).await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_redis_lost_is_written_anew(db: PgPool) {
    let cluster = Cluster::new(db, quick()).await;
    let admin = cluster.sign_in("root", &["admin"]).await;
    let path = "/notifications?userId=alice";
    let _sockets = (
        cluster.first.connect(path).await,
        cluster.second.connect(path).await,
    );
    seen(&cluster.first, &admin, "alice", (2, 2)).await;
    let platform = &cluster.first.platform;

    let names = platform.keys.key("presence:instances");
    let found: Vec<String> = platform.redis.smembers(&names).await.unwrap();
    for name in found {
        let key = platform.keys.key(&format!("presence:instance:{name}"));
        platform.redis.del::<(), _>(key).await.unwrap();
    }
    platform.redis.del::<(), _>(names).await.unwrap();

    seen(&cluster.second, &admin, "alice", (2, 2)).await;
}
