//! The audit log: who did what, kept as it was written.

use chrono::TimeDelta;
use contracts::{Event, EventBody, OrderId};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{PASSWORD, TestApp};
use crate::manage::{ask, somebody};

const OK: StatusCode = StatusCode::OK;

/// Actions and outcomes, newest first.
fn told(page: &Value) -> Vec<(&str, &str)> {
    let entries = page["data"].as_array().into_iter().flatten();
    entries
        .filter_map(|entry| entry["action"].as_str().zip(entry["status"].as_str()))
        .collect()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_users_and_admins_do_is_told_with_where_it_came_from_and_without_secrets(db: PgPool) {
    let app = TestApp::new(db).await;
    let (_, admin) = somebody(&app, &["super_admin"]).await;
    let id = app.register("alice").await;
    app.try_login("alice", "Wrong1password").await;
    app.try_login("nobody", "Wrong1password").await;
    let token = app.login("alice").await.text("/token");
    let change = json!({ "oldPassword": PASSWORD, "newPassword": "Another1pw" });
    ask(
        &app,
        &token,
        (Method::POST, "/auth/change-password"),
        change,
    )
    .await
    .expect(OK);
    let key = json!({ "name": "ci", "scopes": ["devices:read"] });
    let key = ask(&app, &token, (Method::POST, "/api-keys"), key)
        .await
        .expect(StatusCode::CREATED);
    let user = format!("/users/{id}");
    let off = json!({ "status": "suspended" });
    ask(&app, &admin, (Method::PATCH, &user), off)
        .await
        .expect(OK);

    let own = format!("/audit-logs/user/{id}?pageSize=50");
    let own = app.get(&own, &admin).await.expect(OK).body;
    assert_eq!(
        told(&own),
        [
            ("api_key.created", "success"),
            ("user.password_changed", "success"),
            ("user.login", "success"),
            ("user.login_failed", "failed"),
            ("user.registered", "success"),
        ]
    );
    let login = &own["data"][2];
    assert_eq!(
        (
            &login["ipAddress"],
            &login["requestPath"],
            &login["method"],
            &login["userName"]
        ),
        (
            &json!("203.0.113.7"),
            &json!("/auth/login"),
            &json!("POST"),
            &json!("alice")
        )
    );
    assert!(login["requestId"].is_string(), "{login}");
    let of_resource = format!("/audit-logs/resource/user/{id}");
    let of_resource = app.get(&of_resource, &admin).await.expect(OK).body;
    let suspension = &of_resource["data"][0];
    assert_eq!(
        (&suspension["action"], &suspension["changes"]["status"]),
        (
            &json!("user.updated"),
            &json!({ "from": "active", "to": "suspended" })
        )
    );
    let all = app
        .get("/audit-logs?pageSize=500", &admin)
        .await
        .expect(OK)
        .body;
    let text = all.to_string();
    for secret in [
        PASSWORD,
        "Another1pw",
        "Wrong1password",
        &key.text("/key"),
        &token,
    ] {
        assert!(!text.contains(secret), "{secret} is in the log");
    }
    // What nobody with that name tried is told, too.
    let failed = app
        .get(
            "/audit-logs/search?level=error&action=user.login_failed",
            &admin,
        )
        .await
        .expect(OK)
        .body;
    assert_eq!(failed["total"], 2, "{failed}");
    for (query, total) in [
        ("success=false", 2),
        ("ipAddress=203.0.113.7&action=user.login", 1),
        ("ipAddress=203.0.113.8", 0),
        ("resourceType=api_key", 1),
        ("search=password", 1),
        ("startDate=2999-01-01T00:00:00Z", 0),
    ] {
        let found = app
            .get(&format!("/audit-logs?{query}"), &admin)
            .await
            .expect(OK);
        assert_eq!(found.body["total"], total, "{query}: {}", found.body);
    }
    let statistics = app.get("/audit-logs/statistics", &admin).await.expect(OK);
    assert_eq!(statistics.body["byAction"]["user.login_failed"], 2);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn users_see_their_own_part_and_nobody_changes_or_deletes_an_entry(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob) = (app.register("alice").await, app.register("bob").await);
    let token = app.login("alice").await.text("/token");

    let own = app.get(&format!("/audit-logs/user/{alice}"), &token).await;
    let own = own.expect(OK).body;
    assert_eq!(
        told(&own),
        [("user.login", "success"), ("user.registered", "success")]
    );
    let entry = format!("/audit-logs/{}", own["data"][0]["id"].as_str().unwrap());
    app.get(&entry, &token).await.expect(OK);
    app.get(&format!("/audit-logs/user/{bob}"), &token)
        .await
        .refused(403, "FORBIDDEN");
    app.get("/audit-logs", &token)
        .await
        .refused(403, "FORBIDDEN");
    let of_bob = app
        .get(&format!("/audit-logs/resource/user/{bob}"), &token)
        .await;
    assert_eq!(of_bob.expect(OK).body["total"], 0);
    let bobs = app.login("bob").await.text("/token");
    app.get(&entry, &bobs).await.refused(404, "NOT_FOUND");

    for statement in [
        "update users.audit_log set action = 'nothing'",
        "delete from users.audit_log",
        "truncate users.audit_log",
    ] {
        let done = sqlx::query(statement).execute(&app.platform.db).await;
        let told = done.unwrap_err().to_string();
        assert!(told.contains("cannot be changed"), "{statement}: {told}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_other_services_did_is_told_once_however_often_it_comes(db: PgPool) {
    use platform::events::Consumer;

    let app = TestApp::new(db).await;
    let (_, admin) = somebody(&app, &["admin"]).await;
    let alice = app.register("alice").await;
    let order = OrderId::new();
    let body = EventBody::OrderCancelled {
        order_id: order.clone(),
        order_no: "N1".to_owned(),
        amount: contracts::Money::yuan(1),
    };
    let event = Event::new(alice, app.platform.clock.now() - TimeDelta::hours(1), body);
    for _ in 0..3 {
        let mut conn = app.platform.db.acquire().await.unwrap();
        users::Recorder.apply(&mut conn, &event).await.unwrap();
    }

    let found = app
        .get(&format!("/audit-logs/resource/order/{order}"), &admin)
        .await;
    let found = found.expect(OK).body;
    assert_eq!(told(&found), [("order.cancelled", "success")]);
    assert_eq!(found["data"][0]["details"]["orderNo"], "N1", "{found}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn admins_take_the_log_as_a_file_by_the_same_filters(db: PgPool) {
    let app = TestApp::new(db).await;
    let (_, admin) = somebody(&app, &["admin"]).await;
    let (_, nobody) = somebody(&app, &["user"]).await;
    let id = app.register("alice").await;
    app.try_login("alice", "Wrong1password").await;
    app.login("alice").await;

    app.get("/audit-logs/export", &nobody)
        .await
        .refused(403, "FORBIDDEN");
    let lines = async |query: &str| {
        let reply = app
            .get(&format!("/audit-logs/export?{query}"), &admin)
            .await
            .expect(OK);
        assert!(
            reply.headers["content-type"]
                .to_str()
                .is_ok_and(|kind| kind.starts_with("text/csv"))
        );
        let text = reply.body.as_str().expect("a text").to_owned();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let own = lines(&format!("userId={id}")).await;
    assert!(
        own[0].starts_with("id,created_at,user_id,username,action,"),
        "{}",
        own[0]
    );
    let actions: Vec<_> = own[1..]
        .iter()
        .filter_map(|line| line.split(',').nth(4))
        .collect();
    assert_eq!(
        actions,
        ["user.registered", "user.login_failed", "user.login"]
    );
    assert_eq!(lines(&format!("userId={id}&success=false")).await.len(), 2);
    assert_eq!(
        lines("search=login&endDate=2020-01-01T00:00:00Z")
            .await
            .len(),
        1
    );
    // What somebody searches for is never a part of the statement.
    for nasty in [
        "%27%20or%20true--",
        "%5C%27%20or%20true--",
        "%27%29%20to%20stdout%3B--",
    ] {
        for field in [
            "action",
            "search",
            "ipAddress",
            "resourceId",
            "resourceType",
            "userId",
        ] {
            assert_eq!(
                lines(&format!("{field}={nasty}")).await.len(),
                1,
                "{field} {nasty}"
            );
        }
    }
    let told = app
        .get("/audit-logs?action=audit_log.exported", &admin)
        .await
        .expect(OK)
        .body;
    assert!(told["total"].as_i64() >= Some(3));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn users_see_their_sign_ins_and_who_else_tried(db: PgPool) {
    let app = TestApp::new(db).await;
    app.register("alice").await;
    app.register("bob").await;
    app.try_login("alice", "Wrong1password").await;
    app.login("bob").await;
    let token = app.login("alice").await.text("/token");

    let history = app
        .get("/auth/login-history?page=1", &token)
        .await
        .expect(OK)
        .body;

    let entries: Vec<_> = history["data"].as_array().into_iter().flatten().collect();
    assert_eq!((&history["total"], entries.len()), (&json!(2), 2));
    assert_eq!(entries[0]["success"], true);
    assert_eq!(entries[0]["ip"], "203.0.113.7");
    assert!(entries[0].get("reason").is_none());
    assert_eq!(entries[1]["success"], false);
    assert!(entries[1]["reason"].is_string());
}
