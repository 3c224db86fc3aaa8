//! Templates, and the words that they give to the notifications of domain events.

use contracts::{EventBody, Money, OrderId};
use futures::future::join_all;
use http::StatusCode;
use platform::events::spawn_relay;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{Cluster, until, with_sweep};

const PATH: &str = "/notification-templates";

fn expired() -> EventBody {
    EventBody::OrderExpired {
        order_id: OrderId::new(),
        order_no: "<77>".into(),
        amount: Money::yuan(9),
    }
}

fn template(code: &str, language: &str, body: &str) -> Value {
    json!({ "code": code, "name": "n", "type": "billing", "title": "T", "body": body, "language": language })
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_template_is_made_changed_with_its_past_and_deleted_on_any_instance(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let admin = cluster.sign_in("root", &["admin"]).await;
    let (first, second) = (&cluster.first, &cluster.second);

    let made = first
        .ask(
            "POST",
            PATH,
            &admin,
            json!({ "code": "hello", "name": "Hello", "title": "Hi {{name}}", "body": "Text" }),
        )
        .await;

    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    for (member, value) in [
        ("type", json!("system")),
        ("language", json!("zh-CN")),
        ("isActive", json!(true)),
        ("channels", json!(["websocket"])),
        ("version", json!(1)),
    ] {
        assert_eq!(made.body[member], value, "{member}");
    }
    let path = format!("{PATH}/{}", made.body["id"].as_str().unwrap());
    let changed = second
        .ask("PATCH", &path, &admin, json!({ "title": "Hello {{name}}" }))
        .await;
    assert_eq!(
        (&changed.body["version"], &changed.body["body"]),
        (&json!(2), &json!("Text"))
    );
    let toggled = second
        .ask("PATCH", &format!("{path}/toggle"), &admin, Value::Null)
        .await;
    assert_eq!(
        (&toggled.body["isActive"], &toggled.body["version"]),
        (&json!(false), &json!(2))
    );
    let versions = first.get(&format!("{path}/versions"), &admin).await.body;
    assert_eq!(versions["total"], 2);
    assert_eq!(versions["data"][1]["title"], "Hi {{name}}");
    assert_eq!(versions["data"][1]["changedBy"], "root");
    let former = second.get(&format!("{path}/versions/1"), &admin).await.body;
    assert_eq!(former["title"], "Hi {{name}}");
    let found = first
        .get(&format!("{PATH}/by-code/hello"), &admin)
        .await
        .body;
    assert_eq!(found["title"], "Hello {{name}}");
    let list = second
        .get(&format!("{PATH}?type=system&language=zh-CN"), &admin)
        .await
        .body;
    assert_eq!(
        (&list["total"], &list["items"][0]["code"]),
        (&json!(1), &json!("hello"))
    );
    let gone = first.ask("DELETE", &path, &admin, Value::Null).await;
    assert_eq!(gone.status, StatusCode::OK);
    for lost in [
        path.clone(),
        format!("{path}/versions"),
        format!("{path}/versions/1"),
    ] {
        assert_eq!(
            second.get(&lost, &admin).await.status,
            StatusCode::NOT_FOUND,
            "{lost}"
        );
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn of_many_who_make_one_code_at_once_one_does_and_changes_at_once_are_numbered(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let admin = cluster.sign_in("root", &["admin"]).await;
    let instance = |n: usize| {
        if n.is_multiple_of(2) {
            &cluster.first
        } else {
            &cluster.second
        }
    };

    let made = join_all((0..8).map(|n| {
        let (admin, instance) = (&admin, instance(n));
        async move {
            instance
                .ask("POST", PATH, admin, template("one", "en", "b"))
                .await
        }
    }))
    .await;

    let won: Vec<_> = made
        .iter()
        .filter(|reply| reply.status == StatusCode::CREATED)
        .collect();
    assert_eq!(won.len(), 1);
    assert!(
        made.iter()
            .all(|reply| matches!(reply.status.as_u16(), 201 | 409))
    );
    let path = format!("{PATH}/{}", won[0].body["id"].as_str().unwrap());
    let changed = join_all((0..8).map(|n| {
        let (admin, instance, path) = (&admin, instance(n), &path);
        async move {
            let reply = instance
                .ask("PUT", path, admin, json!({ "name": n.to_string() }))
                .await;
            reply.body["version"].as_i64().unwrap()
        }
    }));
    let mut numbers = changed.await;
    numbers.sort_unstable();
    assert_eq!(numbers, (2..=9).collect::<Vec<_>>());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn words_are_rendered_within_bounds_and_judged(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let admin = cluster.sign_in("root", &["admin"]).await;
    let ask = async |path: &str, body: Value| {
        let reply = cluster
            .second
            .ask("POST", &format!("{PATH}{path}"), &admin, body)
            .await;
        (reply.status.as_u16(), reply.body)
    };
    ask("", template("greet", "zh-CN", "Hello {{user.name}}")).await;

    let data = json!({ "user": { "name": "<script>" } });
    let (status, rendered) = ask("/render", json!({ "templateCode": "greet", "data": data })).await;
    assert_eq!(
        (status, rendered),
        (200, json!({ "title": "T", "body": "Hello &lt;script&gt;" }))
    );
    assert_eq!(
        ask("/render", json!({ "templateCode": "greet" })).await.0,
        400
    );
    assert_eq!(
        ask("/render", json!({ "templateCode": "absent" })).await.0,
        404
    );
    let big = json!({ "user": { "name": "x".repeat(17 * 1024) } });
    assert_eq!(
        ask("/render", json!({ "templateCode": "greet", "data": big }))
            .await
            .0,
        400
    );
    let (_, shown) = ask(
        "/preview",
        json!({ "title": "{{a}}", "body": "b", "data": { "a": 1 } }),
    )
    .await;
    assert_eq!(shown["title"], "1");
    let (_, judged) = ask(
        "/validate",
        json!({ "title": "{{a}}", "body": "{{b}} {{a}}" }),
    )
    .await;
    assert_eq!(
        judged,
        json!({ "valid": true, "errors": [], "placeholders": ["a", "b"] })
    );
    let (_, judged) = ask("/validate", json!({ "body": "{% include 'x' %}" })).await;
    assert_eq!(judged["valid"], false);
    for body in ["{% set x = 1 %}", "{{ x|safe }}", "{{ x"] {
        let (status, reply) = ask("", template("bad", "en", body)).await;
        assert_eq!(
            (status, &reply["details"][0]["field"]),
            (400, &json!("body")),
            "{body}"
        );
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn only_admins_meet_templates(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    let alice = cluster.sign_in("alice", &["user"]).await;

    for (method, path) in [
        ("GET", ""),
        ("POST", ""),
        ("GET", "/x"),
        ("PATCH", "/x"),
        ("PUT", "/x"),
        ("DELETE", "/x"),
        ("PATCH", "/x/toggle"),
        ("GET", "/x/versions"),
        ("GET", "/x/versions/1"),
        ("GET", "/by-code/x"),
        ("POST", "/render"),
        ("POST", "/preview"),
        ("POST", "/validate"),
    ] {
        let reply = cluster
            .first
            .ask(method, &format!("{PATH}{path}"), &alice, json!({}))
            .await;
        assert_eq!(reply.status, StatusCode::FORBIDDEN, "{method} {path}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_event_is_told_in_the_words_of_its_template_and_a_broken_one_loses_nothing(db: PgPool) {
    let cluster = Cluster::new(db, with_sweep()).await;
    spawn_relay(&cluster.first.platform, &cluster.tasks);
    let admin = cluster.sign_in("root", &["admin"]).await;
    let told = async |body: &str| {
        let made = cluster
            .first
            .ask(
                "POST",
                PATH,
                &admin,
                template("order.expired", "zh-CN", body),
            )
            .await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
        let before = cluster.second.get("/notifications", &admin).await.body["total"].clone();
        cluster.emit(&cluster.event("root", expired())).await;
        let list = async || cluster.second.get("/notifications", &admin).await.body;
        until("the notification", async || list().await["total"] != before).await;
        let path = format!("{PATH}/{}", made.body["id"].as_str().unwrap());
        cluster
            .second
            .ask("DELETE", &path, &admin, Value::Null)
            .await;
        list().await["data"][0]["message"]
            .as_str()
            .unwrap()
            .to_owned()
    };

    assert_eq!(
        told("Gone: {{orderNo}}, {{amount}}").await,
        "Gone: &lt;77&gt;, 9"
    );
    let built_in = "Order <77> was not paid in time";
    assert_eq!(told("{{absent}}").await, built_in);
    assert_eq!(told(&"long".repeat(300)).await, built_in);
}
