//! Sending, listing, reading and deleting.

use futures::future::join_all;
use http::{Request, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{Cluster, FAR, NEAR, with_sweep};

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_notification_has_the_shape_that_clients_know(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;

    let sent = cluster.first.send("test", "Hello").await;

    assert_eq!(sent["seq"], 1);
    for (member, value) in [
        ("userId", json!("test")),
        ("type", json!("system")),
        ("title", json!("Notification")),
        ("message", json!("Hello")),
        ("content", json!("Hello")),
        ("priority", json!("normal")),
        ("status", json!("unread")),
        ("isRead", json!(false)),
        ("deliveryStatus", json!("sent")),
        ("channels", json!(["websocket"])),
        ("metadata", json!({})),
    ] {
        assert_eq!(sent[member], value, "{member}");
    }
    let members = sent.as_object().unwrap();
    assert!(
        !members.values().any(Value::is_null) && !members.contains_key("data"),
        "{sent}"
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn numbers_grow_by_one_whoever_sends_at_once(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;

    let sent = join_all((0..40).map(|n| {
        let instance = if n % 2 == 0 {
            &cluster.first
        } else {
            &cluster.second
        };
        async move {
            instance.send("alice", &format!("{n}")).await["seq"]
                .as_i64()
                .unwrap()
        }
    }));
    let mut numbers = sent.await;

    numbers.sort_unstable();
    assert_eq!(numbers, (1..=40).collect::<Vec<_>>());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn every_fault_of_a_body_is_told_and_nothing_is_stored(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let long = "ä".repeat(1001);
    let big = json!({ "text": "x".repeat(17 * 1024) });

    for (body, field) in [
        (json!({ "message": "m" }), "userId"),
        (json!({ "userId": "alice" }), "message"),
        (json!({ "userId": "alice", "message": "" }), "message"),
        (json!({ "userId": "alice", "message": long }), "message"),
        (json!({ "userId": "a b", "message": "m" }), "userId"),
        (
            json!({ "userId": "alice", "message": "m", "type": "other" }),
            "type",
        ),
        (
            json!({ "userId": "alice", "message": "m", "priority": 3 }),
            "priority",
        ),
        (
            json!({ "userId": "alice", "message": "m", "channels": [] }),
            "channels",
        ),
        (
            json!({ "userId": "alice", "message": "m", "title": "" }),
            "title",
        ),
        (
            json!({ "userId": "alice", "message": "m", "expiresAt": "soon" }),
            "expiresAt",
        ),
        (
            json!({ "userId": "alice", "message": "m", "data": big }),
            "data",
        ),
    ] {
        let reply = cluster
            .first
            .ask("POST", "/notifications", &alice, body)
            .await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{field}");
        assert_eq!(reply.body["details"][0]["field"], field, "{}", reply.body);
    }

    let page = cluster.first.get("/notifications", &alice).await.body;
    assert_eq!(
        (&page["total"], &page["unreadCount"]),
        (&json!(0), &json!(0))
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn without_the_sandbox_a_user_writes_only_to_themself(db: PgPool) {
    let cluster = Cluster::closed_sandbox(db).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let admin = cluster.sign_in("root", &["admin"]).await;
    let to = |user: &str| json!({ "userId": user, "message": "m" });

    let anonymous = Request::builder().method("POST").uri("/notifications/send");
    assert_eq!(
        cluster
            .first
            .call(anonymous, to("alice"), NEAR)
            .await
            .status,
        StatusCode::UNAUTHORIZED
    );
    for (token, user, expected) in [
        (&alice, "alice", StatusCode::CREATED),
        (&alice, "bob", StatusCode::FORBIDDEN),
        (&admin, "bob", StatusCode::CREATED),
    ] {
        let reply = cluster
            .first
            .ask("POST", "/notifications/send", token, to(user))
            .await;
        assert_eq!(reply.status, expected, "{}", reply.body);
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_sandbox_is_open_to_this_machine_alone(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let body = json!({ "userId": "test", "message": "m" });
    let send = || Request::builder().method("POST").uri("/notifications/send");

    let far = cluster.first.call(send(), body.clone(), FAR).await;
    let forwarded = cluster
        .first
        .call(
            send().header("x-forwarded-for", "203.0.113.7"),
            body.clone(),
            NEAR,
        )
        .await;
    let near = cluster.first.call(send(), body, NEAR).await;

    assert_eq!(far.status, StatusCode::UNAUTHORIZED);
    assert_eq!(forwarded.status, StatusCode::UNAUTHORIZED);
    assert_eq!(near.status, StatusCode::CREATED);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_same_key_sends_once(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let send = |instance, message: &'static str| {
        let request = Request::builder()
            .method("POST")
            .uri("/notifications/send")
            .header("idempotency-key", "k1");
        let instance: &crate::app::Instance = instance;
        instance.call(
            request,
            json!({ "userId": "alice", "message": message }),
            NEAR,
        )
    };

    let first = send(&cluster.first, "once").await;
    let again = send(&cluster.second, "once").await;
    let other = send(&cluster.second, "another").await;

    assert!(!first.replayed && again.replayed);
    assert_eq!(first.body, again.body);
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn lists_are_newest_first_paged_and_filtered(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    for n in 1..=5 {
        cluster.first.send("alice", &format!("m{n}")).await;
    }
    cluster.first.send("bob", "not alice's").await;
    let billing = json!({ "userId": "alice", "message": "m6", "type": "billing" });
    let sixth = cluster
        .first
        .ask("POST", "/notifications", &alice, billing)
        .await
        .body;
    let path = format!("/notifications/{}/read", sixth["id"].as_str().unwrap());
    cluster
        .second
        .ask("PATCH", &path, &alice, Value::Null)
        .await;

    let messages = |body: &Value| {
        let data = body["data"].as_array().unwrap().iter();
        data.map(|one| one["message"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let list = async |query: &str| {
        cluster
            .second
            .get(&format!("/notifications?{query}"), &alice)
            .await
            .body
    };

    let page = list("page=2&pageSize=2").await;
    assert_eq!(messages(&page), ["m4", "m3"]);
    assert_eq!(page["items"], page["data"]);
    assert_eq!(
        [&page["total"], &page["totalPages"], &page["unreadCount"]],
        [&json!(6), &json!(3), &json!(5)]
    );
    assert_eq!(messages(&list("type=billing").await), ["m6"]);
    assert_eq!(messages(&list("status=read").await), ["m6"]);
    assert_eq!(list("unreadOnly=true").await["total"], 5);
    assert_eq!(list("unreadOnly=1").await["total"], 5);
    assert_eq!(list("endDate=2001-01-01").await["total"], 0);
    assert_eq!(list("startDate=2001-01-01").await["total"], 6);
    let own = cluster
        .first
        .get("/notifications/user/alice?limit=1", &alice)
        .await
        .body;
    assert_eq!(messages(&own), ["m6"]);
    for query in [
        "status=other",
        "type=other",
        "page=0",
        "startDate=then",
        "unreadOnly=maybe",
    ] {
        let reply = cluster
            .first
            .get(&format!("/notifications?{query}"), &alice)
            .await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{query}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn reading_and_deleting_count(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let mut ids = Vec::new();
    for n in 1..=4 {
        ids.push(
            cluster.first.send("alice", &format!("m{n}")).await["id"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    let unread = async || {
        cluster
            .second
            .get("/notifications/unread/count", &alice)
            .await
            .body["count"]
            .clone()
    };
    let (one, two) = (
        format!("/notifications/{}", ids[0]),
        format!("/notifications/{}", ids[1]),
    );

    let read = cluster
        .first
        .ask("PATCH", &format!("{one}/read"), &alice, Value::Null)
        .await;
    let again = cluster
        .second
        .ask("POST", &format!("{one}/read"), &alice, Value::Null)
        .await;
    assert_eq!((read.status, &read.body), (StatusCode::OK, &again.body));
    assert_eq!(
        (&read.body["status"], &read.body["isRead"]),
        (&json!("read"), &json!(true))
    );
    assert!(read.body["readAt"].is_string());
    assert_eq!(unread().await, 3);

    let deleted = cluster.first.ask("DELETE", &two, &alice, Value::Null).await;
    assert_eq!(
        (deleted.status, deleted.body["message"].is_string()),
        (StatusCode::OK, true)
    );
    assert_eq!(unread().await, 2);
    assert_eq!(
        cluster.second.get(&two, &alice).await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        cluster
            .second
            .ask("DELETE", &two, &alice, Value::Null)
            .await
            .status,
        StatusCode::NOT_FOUND
    );

    let all = cluster
        .first
        .ask("POST", "/notifications/read-all", &alice, Value::Null)
        .await;
    assert_eq!(
        (all.status, &all.body["updated"]),
        (StatusCode::OK, &json!(2))
    );
    assert_eq!(unread().await, 0);
    assert_eq!(cluster.first.send("alice", "m5").await["seq"], 5);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn readers_that_race_count_each_notification_once(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;
    let first = cluster.first.send("alice", "m1").await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    cluster.first.send("alice", "m2").await;
    let path = format!("/notifications/{first}/read");

    let replies = join_all((0..20).map(|n| {
        let instance = if n % 2 == 0 {
            &cluster.first
        } else {
            &cluster.second
        };
        instance.ask("POST", &path, &alice, Value::Null)
    }));

    assert!(
        replies
            .await
            .iter()
            .all(|reply| reply.status == StatusCode::OK)
    );
    assert_eq!(
        cluster
            .first
            .get("/notifications/unread/count", &alice)
            .await
            .body["count"],
        1
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_anothers_is_not_there(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let bob = cluster.sign_in("bob", &["user"]).await;
    let admin = cluster.sign_in("root", &["admin"]).await;
    let id = cluster.first.send("alice", "secret").await["id"]
        .as_str()
        .unwrap()
        .to_owned();

    for (method, path) in [
        ("GET", format!("/notifications/{id}")),
        ("DELETE", format!("/notifications/{id}")),
        ("PATCH", format!("/notifications/{id}/read")),
        ("POST", format!("/notifications/{id}/read")),
        ("GET", "/notifications/no%20id".to_owned()),
    ] {
        assert_eq!(
            cluster
                .first
                .ask(method, &path, &bob, Value::Null)
                .await
                .status,
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
    for (method, path, body) in [
        ("GET", "/notifications/user/alice", Value::Null),
        ("GET", "/notifications?userId=alice", Value::Null),
        (
            "GET",
            "/notifications/unread/count?userId=alice",
            Value::Null,
        ),
        (
            "POST",
            "/notifications/read-all",
            json!({ "userId": "alice" }),
        ),
    ] {
        assert_eq!(
            cluster.first.ask(method, path, &bob, body).await.status,
            StatusCode::FORBIDDEN,
            "{path}"
        );
    }
    assert_eq!(
        cluster
            .first
            .get("/notifications/user/alice", &admin)
            .await
            .body["total"],
        1
    );
    assert_eq!(
        cluster
            .first
            .get(&format!("/notifications/{id}"), &admin)
            .await
            .status,
        StatusCode::OK
    );
    for path in ["/notifications", "/notifications/unread/count"] {
        let reply = cluster
            .first
            .call(Request::builder().uri(path), Value::Null, FAR)
            .await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{path}");
    }
}
