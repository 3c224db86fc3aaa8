//! One message for many users, each of whom is told once.

use std::collections::BTreeSet;
use std::time::Duration;

use http::{Request, StatusCode};
use platform::lifecycle::Tasks;
use platform::testing;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{Cluster, FAR, Instance, beside, id, until, with_sweep};
use crate::sinks::Users;

const PATH: &str = "/notifications/broadcast";

async fn begin(instance: &Instance, admin: &str, more: Value) -> Value {
    let mut body = json!({ "title": "News", "message": "Hello all" });
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let reply = instance.ask("POST", PATH, admin, body).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
    reply.body
}

async fn show(instance: &Instance, admin: &str, begun: &Value) -> Value {
    let path = format!(
        "/notifications/broadcasts/{}",
        begun["id"].as_str().unwrap()
    );
    instance.get(&path, admin).await.body
}

async fn over(instance: &Instance, admin: &str, begun: &Value) -> Value {
    until("its end", async || {
        show(instance, admin, begun).await["state"] == "done"
    })
    .await;
    show(instance, admin, begun).await
}

/// Who was told, once for each notification.
async fn told(db: &PgPool) -> Vec<String> {
    sqlx::query_scalar("select user_id from notifications.notifications order by user_id")
        .fetch_all(db)
        .await
        .unwrap()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn everybody_is_told_once_and_live_sockets_on_every_instance(db: PgPool) {
    let cluster = Cluster::new(db.clone(), with_sweep()).await;
    let _users = Users::with(&cluster.first.platform, 250).await;
    let admin = cluster.sign_in("root", &["admin"]).await;
    let token = cluster.sign_in("u7", &["user"]).await;
    let mut socket = cluster
        .second
        .connect(&format!("/notifications?token={token}"))
        .await;
    socket.event("unread-count").await;

    let begun = begin(&cluster.first, &admin, json!({ "data": { "a": 1 } })).await;

    assert_eq!(begun["recipients"], 250);
    let shown = over(&cluster.second, &admin, &begun).await;
    assert_eq!(
        (&shown["told"], &shown["unwanted"]),
        (&json!(250), &json!(0))
    );
    let told = told(&db).await;
    assert_eq!(
        (told.len(), told.iter().collect::<BTreeSet<_>>().len()),
        (250, 250)
    );
    let frame = socket.event("notification").await;
    for (member, value) in [
        ("title", json!("News")),
        ("message", json!("Hello all")),
        ("type", json!("system")),
        ("data", json!({ "a": 1 })),
        ("seq", json!(1)),
        ("broadcastId", begun["id"].clone()),
    ] {
        assert_eq!(frame[member], value, "{member}");
    }
    assert_eq!(frame["timestamp"], frame["createdAt"]);
    assert!(socket.is_quiet().await);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_role_or_a_list_is_told_and_not_who_wants_nothing_of_the_kind(db: PgPool) {
    let cluster = Cluster::new(db.clone(), with_sweep()).await;
    let _users = Users::with(&cluster.first.platform, 30).await;
    let admin = cluster.sign_in("root", &["admin"]).await;
    let token = cluster.sign_in("u20", &["user"]).await;
    let path = "/notifications/preferences/promotion";
    cluster
        .first
        .ask("PUT", path, &token, json!({ "enabled": false }))
        .await;

    let role = begin(
        &cluster.first,
        &admin,
        json!({ "role": "tenth", "type": "promotion" }),
    )
    .await;
    let shown = over(&cluster.second, &admin, &role).await;
    assert_eq!(
        (&shown["recipients"], &shown["told"], &shown["unwanted"]),
        (&json!(3), &json!(2), &json!(1))
    );
    assert_eq!(told(&db).await, ["u10", "u30"]);
    let list = begin(
        &cluster.second,
        &admin,
        json!({ "userIds": ["x", "y", "x"] }),
    )
    .await;
    assert_eq!(list["recipients"], 2);
    over(&cluster.first, &admin, &list).await;
    assert_eq!(told(&db).await, ["u10", "u30", "x", "y"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_a_killed_replica_began_another_one_ends_and_nobody_is_told_twice(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let (doomed, tasks) = (Tasks::new(), Tasks::new());
    let first = Instance::start(platform.clone(), with_sweep(), &doomed).await;
    let users = Users::with(&platform, 350).await;
    let admin = testing::sign_in(&platform, &id("root"), &["admin"]).await;
    // The second batch is begun, and does not come.
    users.stop_after(0);
    let begun = begin(&first, &admin, json!({})).await;
    users.asked_after(100).await;

    doomed.stop(Duration::from_secs(1)).await;
    // A user deletes it meanwhile, and is not told again.
    sqlx::query("delete from notifications.notifications where user_id = 'u5'")
        .execute(&db)
        .await
        .unwrap();
    // Its lease is over, and it comes to be told again from its beginning.
    let lost = sqlx::query(
        "update notifications.broadcasts set lease_until = clock_timestamp() - interval '1 second', cursor = 0 where state = 'running'",
    );
    assert_eq!(lost.execute(&db).await.unwrap().rows_affected(), 1);
    users.stop_after(i64::MAX);
    let other = beside(&platform, &platform.redis_url.clone()).await;
    let second = Instance::start(other, with_sweep(), &tasks).await;

    let shown = over(&second, &admin, &begun).await;
    assert_eq!(shown["told"], 350);
    let told = told(&db).await;
    assert_eq!(
        (told.len(), told.iter().collect::<BTreeSet<_>>().len()),
        (349, 349)
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_cancelled_broadcast_ends_after_its_batch_and_the_same_key_begins_one(db: PgPool) {
    let cluster = Cluster::new(db.clone(), with_sweep()).await;
    let users = Users::with(&cluster.first.platform, 350).await;
    let admin = cluster.sign_in("root", &["admin"]).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    users.stop_after(0);
    let ask = async |instance: &Instance| {
        let request = Request::builder()
            .method("POST")
            .uri(PATH)
            .header("authorization", format!("Bearer {admin}"))
            .header("idempotency-key", "once");
        instance
            .call(request, json!({ "title": "t", "message": "m" }), FAR)
            .await
    };
    let begun = ask(&cluster.first).await;
    assert!(ask(&cluster.second).await.replayed);
    users.asked_after(100).await;

    let cancel = format!(
        "/notifications/broadcasts/{}/cancel",
        begun.body["id"].as_str().unwrap()
    );
    let reply = cluster
        .second
        .ask("POST", &cancel, &admin, Value::Null)
        .await;
    users.stop_after(i64::MAX);

    assert_eq!(
        (&reply.body["state"], &reply.body["told"]),
        (&json!("cancelled"), &json!(100))
    );
    let again = cluster
        .first
        .ask("POST", &cancel, &admin, Value::Null)
        .await;
    assert_eq!(again.status, StatusCode::CONFLICT);
    // One that is begun afterwards is told whole, and the other one no further.
    let next = begin(&cluster.first, &admin, json!({ "userIds": ["z"] })).await;
    over(&cluster.first, &admin, &next).await;
    assert_eq!(told(&db).await.len(), 101);
    let list = cluster
        .first
        .get("/notifications/broadcasts", &admin)
        .await
        .body;
    assert_eq!(
        (&list["total"], &list["data"][1]["state"]),
        (&json!(2), &json!("cancelled"))
    );
    for (method, path) in [
        ("POST", PATH),
        ("GET", "/notifications/broadcasts"),
        ("POST", cancel.as_str()),
    ] {
        let body = json!({ "title": "t", "message": "m" });
        let reply = cluster.first.ask(method, path, &alice, body).await;
        assert_eq!(reply.status, StatusCode::FORBIDDEN, "{path}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn without_the_service_of_users_nothing_is_begun(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let admin = cluster.sign_in("root", &["admin"]).await;

    let body = json!({ "title": "t", "message": "m" });
    let reply = cluster.first.ask("POST", PATH, &admin, body).await;

    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    let list = cluster
        .first
        .get("/notifications/broadcasts", &admin)
        .await
        .body;
    assert_eq!(list["total"], 0);
    let both = json!({ "title": "t", "message": "m", "role": "user", "userIds": ["a"] });
    let reply = cluster.first.ask("POST", PATH, &admin, both).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
}
