//! Registration, profile, password, and what admins see.

use axum::body::Body;
use contracts::UserId;
use futures::future::join_all;
use http::{Method, Request, StatusCode};
use platform::testing::sign_in;
use serde_json::json;
use sqlx::PgPool;

use crate::app::{PASSWORD, TestApp};

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn who_registers_can_sign_in_at_once_by_name_or_address(db: PgPool) {
    let app = TestApp::new(db).await;
    let body = json!({ "username": " Alice.B ", "email": "Alice@Example.com", "password": PASSWORD, "fullName": "Alice Ü", "phone": "+86 138-000" });

    let reply = app
        .post("/auth/register", body)
        .await
        .expect(StatusCode::CREATED);

    let user = &reply.body["user"];
    assert_eq!(
        (&user["username"], &user["email"]),
        (&json!("alice.b"), &json!("alice@example.com"))
    );
    assert_eq!(
        (&user["roles"], &user["status"]),
        (&json!(["user"]), &json!("active"))
    );
    assert_eq!(
        (&user["isSuperAdmin"], &user["twoFactorEnabled"]),
        (&json!(false), &json!(false))
    );
    assert!(user.get("lastLoginAt").is_none() && user.get("avatar").is_none());
    assert!(!reply.body.to_string().to_lowercase().contains("password"));
    for name in ["ALICE.B", "alice@example.COM", " alice.b"] {
        app.login(name).await;
    }
    assert_eq!(app.events().await, ["user.registered"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn every_fault_of_a_registration_is_told_and_nothing_stored(db: PgPool) {
    let app = TestApp::new(db).await;
    let body = json!({ "username": "a", "email": "no", "password": 12345678, "fullName": "a\u{0}b", "phone": "x" });

    let reply = app
        .post("/auth/register", body)
        .await
        .refused(400, "VALIDATION_FAILED");

    assert_eq!(
        reply.faults(),
        ["email", "fullName", "password", "phone", "username"]
    );
    assert!(!reply.body.to_string().contains("12345678"));
    assert_eq!(
        app.post("/auth/register", json!({})).await.faults(),
        ["email", "password", "username"]
    );
    assert!(app.events().await.is_empty());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_taken_name_or_address_is_told_by_its_field(db: PgPool) {
    let app = TestApp::new(db).await;
    app.register("alice").await;
    let ask =
        |name: &str, email: &str| json!({ "username": name, "email": email, "password": PASSWORD });

    let name = app
        .post("/auth/register", ask("ALICE", "other@example.com"))
        .await
        .refused(409, "CONFLICT");
    let email = app
        .post("/auth/register", ask("other", "Alice@example.com"))
        .await
        .refused(409, "CONFLICT");

    assert_eq!(
        (name.faults(), email.faults()),
        (vec!["username".to_owned()], vec!["email".to_owned()])
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn of_registrations_that_race_for_a_name_one_wins(db: PgPool) {
    let app = TestApp::new(db).await;
    let other = TestApp::on(app.platform.clone()).await;
    let asks = (0..8).map(|n| {
        let body = json!({ "username": "alice", "email": format!("a{n}@example.com"), "password": PASSWORD });
        if n % 2 == 0 { app.post("/auth/register", body) } else { other.post("/auth/register", body) }
    });

    let mut statuses: Vec<u16> = join_all(asks)
        .await
        .iter()
        .map(|reply| reply.status.as_u16())
        .collect();

    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409, 409, 409, 409, 409]);
    assert_eq!(app.events().await, ["user.registered"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_registration_that_is_repeated_with_its_key_happens_once(db: PgPool) {
    let app = TestApp::new(db).await;
    let ask = || {
        let body = json!({ "username": "alice", "email": "a@example.com", "password": PASSWORD });
        Request::post("/auth/register")
            .header("idempotency-key", "k1")
            .header("content-type", "application/json")
            .body(Body::from(body.to_string()))
            .unwrap()
    };

    let first = app.call(ask()).await.expect(StatusCode::CREATED);
    let again = app.call(ask()).await.expect(StatusCode::CREATED);

    assert_eq!(first.body, again.body);
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(app.events().await, ["user.registered"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_profile_changes_in_the_fields_named(db: PgPool) {
    let app = TestApp::new(db).await;
    app.register("alice").await;
    app.register("bob").await;
    let token = app.login("alice").await.text("/token");
    let patch = async |body| {
        app.send(Method::PATCH, "/users/profile", Some(&token), Some(body))
            .await
    };

    patch(json!({ "fullName": "Alice", "phone": "+86 138", "avatar": "https://example.com/a.png", "preferences": { "theme": "dark", "a": 1 } }))
        .await
        .expect(StatusCode::OK);
    let changed = patch(json!({ "email": "New@example.com", "preferences": { "a": null, "b": 2 }, "roles": ["admin"], "status": "deleted" })).await;

    assert_eq!(changed.body["email"], "new@example.com");
    assert_eq!(
        changed.body["preferences"],
        json!({ "theme": "dark", "b": 2 })
    );
    assert_eq!(
        (&changed.body["fullName"], &changed.body["roles"]),
        (&json!("Alice"), &json!(["user"]))
    );
    for path in ["/auth/me", "/users/me", "/users/profile", "/users/profile/"] {
        assert_eq!(app.get(path, &token).await.body, changed.body, "{path}");
    }
    let taken = patch(json!({ "email": "BOB@example.com" }))
        .await
        .refused(409, "CONFLICT");
    assert_eq!(taken.faults(), ["email"]);
    let wrong = patch(
        json!({ "phone": "12", "avatar": "javascript:x", "preferences": "dark", "email": "x" }),
    )
    .await;
    assert_eq!(
        wrong.refused(400, "VALIDATION_FAILED").faults(),
        ["avatar", "email", "phone", "preferences"]
    );
    app.send(Method::PATCH, "/users/profile", None, Some(json!({})))
        .await
        .refused(401, "UNAUTHENTICATED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn preferences_do_not_grow_without_end(db: PgPool) {
    let app = TestApp::new(db).await;
    app.register("alice").await;
    let token = app.login("alice").await.text("/token");
    let patch = async |key: &str| {
        let body = json!({ "fullName": key, "preferences": { key: "x".repeat(15_000) } });
        app.send(Method::PATCH, "/users/profile", Some(&token), Some(body))
            .await
    };

    for key in ["a", "b", "c", "d"] {
        patch(key).await.expect(StatusCode::OK);
    }
    let refused = patch("e").await.refused(400, "VALIDATION_FAILED");

    assert_eq!(refused.faults(), ["preferences"]);
    assert_eq!(app.get("/users/me", &token).await.body["fullName"], "d");
    patch("a").await.expect(StatusCode::OK);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_changed_password_ends_the_other_sessions_and_keeps_this_one(db: PgPool) {
    let app = TestApp::new(db).await;
    let other = TestApp::on(app.platform.clone()).await;
    app.register("alice").await;
    let (mine, theirs) = (app.login("alice").await, other.login("alice").await);
    let (token, stale) = (mine.text("/token"), theirs.text("/token"));
    assert!(app.accepts(&stale).await && other.accepts(&stale).await);
    let change = async |old: &str, new: &str| {
        let body = json!({ "oldPassword": old, "newPassword": new });
        app.send(
            Method::POST,
            "/auth/change-password",
            Some(&token),
            Some(body),
        )
        .await
    };

    for weak in ["abcdefg1", "ABCDEFG1", "Abcdefgh", "Abc1", PASSWORD] {
        assert_eq!(
            change(PASSWORD, weak)
                .await
                .refused(400, "VALIDATION_FAILED")
                .faults(),
            ["newPassword"]
        );
    }
    assert_eq!(
        change("Wrong1234", "Newpass12")
            .await
            .refused(400, "VALIDATION_FAILED")
            .faults(),
        ["oldPassword"]
    );
    change(PASSWORD, "Newpass12").await.expect(StatusCode::OK);

    assert!(app.accepts(&token).await && other.accepts(&token).await);
    assert!(!app.accepts(&stale).await && !other.accepts(&stale).await);
    let renewed = app
        .post(
            "/auth/refresh",
            json!({ "refresh_token": theirs.text("/refresh_token") }),
        )
        .await;
    renewed.refused(401, "UNAUTHENTICATED");
    app.try_login("alice", PASSWORD)
        .await
        .refused(401, "BAD_CREDENTIALS");
    app.try_login("alice", "Newpass12")
        .await
        .expect(StatusCode::OK);
    assert_eq!(
        app.events().await,
        ["session.ended", "user.password_changed", "user.registered"]
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn of_sign_ins_that_race_a_change_of_password_no_session_outlives_it(db: PgPool) {
    let app = TestApp::new(db).await;
    app.register("alice").await;
    let token = app.login("alice").await.text("/token");
    let body = json!({ "oldPassword": PASSWORD, "newPassword": "Newpass12" });

    let change = app.send(
        Method::POST,
        "/auth/change-password",
        Some(&token),
        Some(body),
    );
    let (change, logins) = futures::join!(
        change,
        join_all((0..8).map(|_| app.try_login("alice", PASSWORD)))
    );

    change.expect(StatusCode::OK);
    for login in logins.iter().filter(|login| login.status == StatusCode::OK) {
        assert!(!app.accepts(&login.text("/token")).await);
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn users_see_themselves_and_admins_see_everybody(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob) = (app.register("alice").await, app.register("bob").await);
    let token = app.login("alice").await.text("/token");
    let admin = sign_in(&app.platform, &UserId::new(), &["admin"]).await;

    let own = app
        .get(&format!("/users/{alice}"), &token)
        .await
        .expect(StatusCode::OK);
    let seen = app
        .get(&format!("/users/{bob}"), &admin)
        .await
        .expect(StatusCode::OK);

    assert_eq!(own.body, app.get("/auth/me", &token).await.body);
    assert_eq!(
        (&seen.body["roles"][0]["name"], &seen.body["balance"]),
        (&json!("user"), &json!(0))
    );
    assert_eq!(
        (&seen.body["loginAttempts"], seen.body.get("lockedUntil")),
        (&json!(0), None)
    );
    assert!(seen.body["roles"][0]["permissions"].is_array());
    app.get(&format!("/users/{bob}"), &token)
        .await
        .refused(403, "FORBIDDEN");
    app.get("/users/nobody", &admin)
        .await
        .refused(404, "NOT_FOUND");
    app.get("/users/a%00b", &admin)
        .await
        .refused(404, "NOT_FOUND");
    app.send(Method::GET, &format!("/users/{alice}"), None, None)
        .await
        .refused(401, "UNAUTHENTICATED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn admins_list_users_in_pages_that_do_not_overlap(db: PgPool) {
    let app = TestApp::new(db).await;
    for name in ["carol", "alice", "dave", "bob"] {
        app.register(name).await;
    }
    let admin = sign_in(&app.platform, &UserId::new(), &["super_admin"]).await;
    let names = async |query: &str| -> Vec<String> {
        let reply = app
            .get(&format!("/users?{query}"), &admin)
            .await
            .expect(StatusCode::OK);
        assert_eq!(reply.body["data"], reply.body["items"]);
        let items = reply.body["items"].as_array().unwrap().clone();
        items
            .iter()
            .map(|user| user["username"].as_str().unwrap().to_owned())
            .collect()
    };

    assert_eq!(names("").await, ["bob", "dave", "alice", "carol"]);
    assert_eq!(names("pageSize=3&page=2").await, ["carol"]);
    assert_eq!(names("sortOrder=asc&limit=2").await, ["carol", "alice"]);
    assert_eq!(
        names("sortBy=username&sortOrder=asc").await,
        ["alice", "bob", "carol", "dave"]
    );
    assert_eq!(
        names("sortBy=email&sortOrder=desc").await,
        ["dave", "carol", "bob", "alice"]
    );
    assert_eq!(names("sortBy=lastLoginAt").await.len(), 4);
    assert_eq!(names("search=AL&status=active").await, ["alice"]);
    assert_eq!(names("search=al%25").await.len(), 0);
    assert_eq!(
        names("roleId=0198f3c2-0000-7000-8000-000000000004")
            .await
            .len(),
        4
    );
    assert_eq!(
        names("roleId=0198f3c2-0000-7000-8000-000000000002")
            .await
            .len(),
        0
    );
    let page = app.get("/users?pageSize=3", &admin).await.body;
    assert_eq!(
        (&page["total"], &page["totalPages"], &page["pageSize"]),
        (&json!(4), &json!(2), &json!(3))
    );
    app.get("/users?status=gone", &admin)
        .await
        .refused(400, "VALIDATION_FAILED");
    app.get("/users?search=%00", &admin)
        .await
        .refused(400, "VALIDATION_FAILED");
    let token = app.login("alice").await.text("/token");
    app.get("/users", &token).await.refused(403, "FORBIDDEN");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_first_admin_is_made_by_command(db: PgPool) {
    let app = TestApp::new(db).await;
    let make = |name: &'static str, password: &'static str| {
        users::create_admin(&app.platform, name, "Root@example.com", password.into())
    };

    let weak = make("root", "short").await.unwrap_err();
    let id = make("Root", PASSWORD).await.unwrap();

    assert!(format!("{weak:#}").contains("password") && !format!("{weak:#}").contains("short"));
    let login = app.login("root").await;
    assert_eq!(
        (login.text("/user/id"), &login.body["user"]["isSuperAdmin"]),
        (id.to_string(), &json!(true))
    );
    app.get("/users", &login.text("/token"))
        .await
        .expect(StatusCode::OK);
    assert!(make("root", PASSWORD).await.is_err());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn addresses_are_given_to_services_alone_and_only_of_active_users(db: PgPool) {
    let app = TestApp::new(db).await;
    let user = app.register("alice").await;
    let ask = async |signed: bool| {
        let path = format!("/internal/users/{user}/contact");
        let mut request = Request::get(&path);
        if signed {
            let now = app.platform.clock.now();
            let service = contracts::Service::Notifications;
            let proof = app
                .platform
                .auth
                .service_credential(service, now, &Method::GET, &path);
            request = request.header(platform::auth::SERVICE_HEADER, proof);
        }
        app.call(request.body(Body::empty()).unwrap()).await
    };

    let told = ask(true).await.expect(StatusCode::OK).body;
    assert_eq!(told, json!({ "email": "alice@example.com" }));
    ask(false).await.expect(StatusCode::UNAUTHORIZED);
    sqlx::query("update users.accounts set status = 'suspended' where id = $1")
        .bind(&user)
        .execute(&app.platform.db)
        .await
        .unwrap();
    ask(true).await.expect(StatusCode::NOT_FOUND);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn services_go_through_active_accounts_page_by_page(db: PgPool) {
    let app = TestApp::new(db).await;
    let mut users = Vec::new();
    for name in ["ann", "ben", "cat"] {
        users.push(app.register(name).await);
    }
    sqlx::query("update users.accounts set status = 'inactive' where id = $1")
        .bind(&users[1])
        .execute(&app.platform.db)
        .await
        .unwrap();
    let ask = async |path: &str, query: &str| {
        let now = app.platform.clock.now();
        let service = contracts::Service::Notifications;
        let auth = &app.platform.auth;
        let proof = auth.service_credential(service, now, &Method::GET, path);
        let request = Request::get(format!("{path}?{query}"));
        let request = request.header(platform::auth::SERVICE_HEADER, proof);
        let reply = app.call(request.body(Body::empty()).unwrap()).await;
        reply.expect(StatusCode::OK).body
    };

    let census = ask("/internal/users/census", "role=user").await;
    assert_eq!(census["count"], 2);
    assert_eq!(
        ask("/internal/users/census", "role=admin").await["count"],
        0
    );
    let upto = &census["lastSeq"];
    let first = ask("/internal/users", &format!("after=0&upto={upto}&limit=1")).await;
    assert_eq!(first[0]["id"], users[0].as_str());
    let after = &first[0]["seq"];
    let rest = ask(
        "/internal/users",
        &format!("after={after}&upto={upto}&limit=9&role=user"),
    )
    .await;
    assert_eq!(
        (rest.as_array().unwrap().len(), &rest[0]["id"]),
        (1, &json!(users[2].as_str()))
    );
    for path in [
        "/internal/users/census",
        "/internal/users?after=0&upto=1&limit=1",
    ] {
        let token = sign_in(&app.platform, &users[0], &["admin"]).await;
        app.get(path, &token).await.expect(StatusCode::UNAUTHORIZED);
    }
}
