//! Users as admins make, change and delete them.

use chrono::TimeDelta;
use contracts::UserId;
use http::{Method, StatusCode};
use platform::testing::{account, sign_in};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{PASSWORD, Reply, TestApp};

const OK: StatusCode = StatusCode::OK;

/// The token of a new user with these roles.
pub async fn somebody(app: &TestApp, roles: &[&str]) -> (UserId, String) {
    let id = account(&app.platform, roles).await;
    let token = sign_in(&app.platform, &id, roles).await;
    (id, token)
}

pub async fn ask(app: &TestApp, token: &str, what: (Method, &str), body: Value) -> Reply {
    app.send(what.0, what.1, Some(token), Some(body)).await
}

async fn role_id(app: &TestApp, name: &str) -> String {
    let find = sqlx::query_scalar("select id from users.roles where name = $1").bind(name);
    find.fetch_one(&app.platform.db).await.expect("a role")
}

fn user_named(name: &str) -> Value {
    json!({ "username": name, "email": format!("{name}@example.com"), "password": PASSWORD })
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_admin_makes_users_who_can_sign_in_and_counts_them(db: PgPool) {
    let app = TestApp::new(db).await;
    let (_, admin) = somebody(&app, &["admin"]).await;
    let (_, nobody) = somebody(&app, &["user"]).await;
    let make = (Method::POST, "/users");

    ask(&app, &nobody, make.clone(), user_named("alice"))
        .await
        .refused(403, "FORBIDDEN");
    let made = ask(&app, &admin, make.clone(), user_named("alice"))
        .await
        .expect(StatusCode::CREATED);
    assert_eq!(made.body["roles"][0]["name"], "user", "{}", made.body);
    app.login("alice").await;
    ask(&app, &admin, make.clone(), user_named("alice"))
        .await
        .refused(409, "CONFLICT");
    let mut suspended = user_named("bob");
    suspended["status"] = json!("suspended");
    suspended["tenantId"] = json!("acme");
    let bob = ask(&app, &admin, make.clone(), suspended)
        .await
        .expect(StatusCode::CREATED);
    assert_eq!(bob.body["tenantId"], "acme");
    app.try_login("bob", PASSWORD)
        .await
        .refused(401, "BAD_CREDENTIALS");
    let mut wrong = user_named("carol");
    wrong["roleIds"] = json!(["none"]);
    let wrong = ask(&app, &admin, make.clone(), wrong).await;
    assert_eq!(
        wrong.refused(400, "VALIDATION_FAILED").faults(),
        ["roleIds"]
    );

    let stats = app.get("/users/stats", &admin).await.expect(OK);
    assert_eq!(
        stats.body,
        json!({ "total": 4, "active": 3, "inactive": 0, "banned": 1 })
    );
    let count = app.get("/users/count?status=suspended", &admin).await;
    assert_eq!(count.expect(OK).body, json!({ "count": 1 }));
    let named = format!("/users/batch?ids={},none", bob.text("/id"));
    let named = app.get(&named, &admin).await.expect(OK);
    assert_eq!(
        named.body,
        json!([{ "id": bob.text("/id"), "username": "bob", "email": "bob@example.com" }])
    );
    for path in ["/users/stats", "/users/count", "/users/batch?ids=a"] {
        app.get(path, &nobody).await.refused(403, "FORBIDDEN");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn who_is_switched_off_or_loses_a_role_is_signed_out_at_once(db: PgPool) {
    let app = TestApp::new(db).await;
    let (_, admin) = somebody(&app, &["super_admin"]).await;
    let id = app.register("alice").await;
    let path = format!("/users/{id}");
    let change = (Method::PATCH, &*path);
    let (user, support) = (role_id(&app, "user").await, role_id(&app, "support").await);
    let token = app.login("alice").await.text("/token");

    // A role more takes nothing away.
    let both = json!({ "roleIds": [user, support] });
    let reply = ask(&app, &admin, change.clone(), both).await.expect(OK);
    assert_eq!(reply.body["roles"].as_array().map(Vec::len), Some(2));
    assert!(app.accepts(&token).await);
    let one = json!({ "roleIds": [user] });
    ask(&app, &admin, change.clone(), one).await.expect(OK);
    assert!(!app.accepts(&token).await);

    let token = app.login("alice").await.text("/token");
    let off = json!({ "status": "suspended", "fullName": "Alice" });
    let off = ask(&app, &admin, change.clone(), off).await.expect(OK);
    assert_eq!(
        (&off.body["status"], &off.body["fullName"]),
        (&json!("suspended"), &json!("Alice"))
    );
    assert!(!app.accepts(&token).await);
    app.try_login("alice", PASSWORD)
        .await
        .refused(401, "BAD_CREDENTIALS");
    let on = json!({ "status": "active" });
    ask(&app, &admin, change.clone(), on).await.expect(OK);
    let token = app.login("alice").await.text("/token");

    // Of oneself one changes what is one's own.
    let own = json!({ "fullName": "Alice B", "phone": "12345" });
    ask(&app, &token, change.clone(), own).await.expect(OK);
    for forbidden in [
        json!({ "status": "active" }),
        json!({ "roleIds": [support] }),
    ] {
        ask(&app, &token, change.clone(), forbidden)
            .await
            .refused(403, "FORBIDDEN");
    }
    let preferences = format!("{path}/preferences");
    let set = json!({ "language": "zh-CN", "theme": "dark" });
    let set = ask(&app, &token, (Method::PATCH, &preferences), set).await;
    assert_eq!(
        set.expect(OK).body["preferences"],
        json!({ "language": "zh-CN", "theme": "dark" })
    );
    let no = json!({ "theme": "pink" });
    ask(&app, &token, (Method::PATCH, &preferences), no)
        .await
        .refused(400, "VALIDATION_FAILED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn only_a_super_admin_manages_admins_and_tokens_of_former_admins_manage_nobody(db: PgPool) {
    let app = TestApp::new(db).await;
    let (_, admin) = somebody(&app, &["admin"]).await;
    let (boss, chief) = somebody(&app, &["super_admin"]).await;
    let (other, _) = somebody(&app, &["admin"]).await;
    let id = app.register("alice").await;
    let admins = role_id(&app, "admin").await;
    let of = |id: &UserId| format!("/users/{id}");

    for (path, body) in [
        (of(&other), json!({ "status": "suspended" })),
        (of(&boss), json!({ "fullName": "x" })),
        (of(&id), json!({ "roleIds": [admins] })),
    ] {
        ask(&app, &admin, (Method::PATCH, &path), body)
            .await
            .refused(403, "FORBIDDEN");
    }
    let set = json!({ "newPassword": "Another1pw" });
    let path = format!("{}/change-password", of(&other));
    ask(&app, &admin, (Method::POST, &path), set.clone())
        .await
        .refused(403, "FORBIDDEN");
    ask(&app, &admin, (Method::DELETE, &of(&boss)), json!({}))
        .await
        .refused(403, "FORBIDDEN");
    // What a token says may be a day old; what it asks for here is decided by what is so now.
    let former = account(&app.platform, &["user"]).await;
    let former = sign_in(&app.platform, &former, &["super_admin"]).await;
    ask(
        &app,
        &former,
        (Method::PATCH, &of(&id)),
        json!({ "roleIds": [admins] }),
    )
    .await
    .refused(403, "FORBIDDEN");

    let raise = json!({ "roleIds": [admins] });
    ask(&app, &chief, (Method::PATCH, &of(&id)), raise)
        .await
        .expect(OK);
    let token = app.login("alice").await.text("/token");
    app.get("/users/stats", &token).await.expect(OK);
    let path = format!("{}/change-password", of(&id));
    ask(&app, &chief, (Method::POST, &path), set)
        .await
        .expect(OK);
    assert!(!app.accepts(&token).await);
    app.try_login("alice", "Another1pw").await.expect(OK);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_super_admin_is_left_whoever_takes_whom_at_the_same_time(db: PgPool) {
    let apps = [TestApp::new(db.clone()).await, TestApp::new(db).await];
    for round in 0..8 {
        let (one, one_token) = somebody(&apps[0], &["super_admin"]).await;
        let (two, two_token) = somebody(&apps[0], &["super_admin"]).await;
        let user = role_id(&apps[0], "user").await;
        let demote = json!({ "roleIds": [user] });
        let (path_one, path_two) = (format!("/users/{one}"), format!("/users/{two}"));

        let (first, second) = match round % 2 {
            0 => tokio::join!(
                ask(
                    &apps[0],
                    &one_token,
                    (Method::PATCH, &path_two),
                    demote.clone()
                ),
                ask(
                    &apps[1],
                    &two_token,
                    (Method::PATCH, &path_one),
                    demote.clone()
                ),
            ),
            _ => tokio::join!(
                ask(&apps[0], &one_token, (Method::DELETE, &path_one), json!({})),
                ask(&apps[1], &two_token, (Method::DELETE, &path_two), json!({})),
            ),
        };

        let left: i64 = sqlx::query_scalar(
            "select count(*) from users.profiles where 'super_admin' = any(roles) and status = 'active'",
        )
        .fetch_one(&apps[0].platform.db)
        .await
        .unwrap();
        let told = format!("round {round}: {} {}", first.body, second.body);
        assert_eq!(left, 1, "{told}");
        assert!([first.status, second.status].contains(&OK), "{told}");
        // Who is left makes way for the next round.
        sqlx::query("delete from users.user_roles")
            .execute(&apps[0].platform.db)
            .await
            .unwrap();
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_deleted_account_lets_nobody_in_and_says_nothing_of_who_it_was_a_month_later(db: PgPool) {
    let app = TestApp::new(db).await;
    let id = app.register("alice").await;
    let token = app.login("alice").await.text("/token");
    let path = format!("/users/{id}");

    app.send(Method::DELETE, &path, Some(&token), None)
        .await
        .expect(OK);

    assert!(!app.accepts(&token).await);
    app.try_login("alice", PASSWORD)
        .await
        .refused(401, "BAD_CREDENTIALS");
    assert!(app.events().await.contains(&"user.deleted".to_owned()));
    let (_, admin) = somebody(&app, &["admin"]).await;
    app.send(Method::DELETE, &path, Some(&admin), None)
        .await
        .refused(404, "NOT_FOUND");
    // Nobody takes the place of who left.
    app.platform.clock.advance(TimeDelta::days(29));
    app.users.run_jobs().await.unwrap();
    app.post("/auth/register", user_named("alice"))
        .await
        .refused(409, "CONFLICT");
    app.platform.clock.advance(TimeDelta::days(2));
    app.users.run_jobs().await.unwrap();
    let (_, admin) = somebody(&app, &["admin"]).await;
    let kept = app.get(&path, &admin).await.expect(OK).body.to_string();
    assert!(!kept.contains("alice"), "{kept}");
    app.register("alice").await;
    app.login("alice").await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn of_many_accounts_each_is_deleted_or_told_why_not(db: PgPool) {
    let app = TestApp::new(db).await;
    let (_, admin) = somebody(&app, &["admin"]).await;
    let (boss, _) = somebody(&app, &["super_admin"]).await;
    let alice = app.register("alice").await;
    let all = json!({ "ids": [alice, boss, "none"] });

    let reply = ask(&app, &admin, (Method::POST, "/users/batch-delete"), all)
        .await
        .expect(OK);

    assert_eq!(reply.body["succeeded"], json!([alice]));
    assert_eq!(reply.body["failed"].as_array().map(Vec::len), Some(2));
    assert_eq!(reply.body["failed"][1]["error"], "there is no such user");
}
