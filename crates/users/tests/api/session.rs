//! Sessions: their tokens, their renewal, their end on every instance.

use chrono::TimeDelta;
use futures::future::join_all;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::app::{PASSWORD, Reply, TestApp};

impl TestApp {
    async fn refresh(&self, token: &str) -> Reply {
        self.post("/auth/refresh", json!({ "refresh_token": token }))
            .await
    }

    async fn refresh_by_access(&self, token: &str) -> Reply {
        self.send(Method::POST, "/auth/refresh", Some(token), None)
            .await
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_login_replies_with_the_names_that_clients_know(db: PgPool) {
    let app = TestApp::new(db).await;
    app.register("alice").await;

    let day = app.login("alice").await.body;
    let week = app
        .post("/auth/login", json!({ "username": "alice", "password": PASSWORD, "remember": true, "captcha": "", "captchaId": 7 }))
        .await
        .body;

    assert_eq!(
        (&day["success"], &day["token_type"]),
        (&json!(true), &json!("Bearer"))
    );
    assert_eq!(
        (&day["expiresIn"], &week["expiresIn"]),
        (&json!(86_400), &json!(604_800))
    );
    assert_eq!(day["token"], day["access_token"]);
    assert!(day.get("data").is_none() && day["refresh_token"].is_string());
    assert_eq!(day["user"]["username"], "alice");
    assert!(day["user"]["lastLoginAt"].is_string());
    let claims = app
        .platform
        .auth
        .tokens()
        .verify_at_any_age(day["token"].as_str().unwrap())
        .unwrap();
    assert_eq!(claims.exp - claims.iat, 86_400);
    assert_eq!(claims.identity.roles, ["user"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_refresh_token_works_once_and_ends_the_session_when_it_comes_again(db: PgPool) {
    let app = TestApp::new(db).await;
    app.register("alice").await;
    let login = app.login("alice").await;

    let first = app
        .refresh(&login.text("/refresh_token"))
        .await
        .expect(StatusCode::OK);
    let second = app
        .refresh(&first.text("/refresh_token"))
        .await
        .expect(StatusCode::OK);

    assert_eq!(
        (&first.body["success"], &first.body["token"]),
        (&json!(true), &first.body["access_token"])
    );
    assert_eq!(first.body["expiresIn"], 86_400);
    assert!(app.accepts(&second.text("/token")).await);
    app.refresh(&login.text("/refresh_token"))
        .await
        .refused(401, "UNAUTHENTICATED");
    assert!(!app.accepts(&second.text("/token")).await);
    app.refresh(&second.text("/refresh_token"))
        .await
        .refused(401, "UNAUTHENTICATED");
    app.refresh_by_access(&second.text("/token"))
        .await
        .refused(401, "UNAUTHENTICATED");
    assert_eq!(app.events().await, ["session.ended", "user.registered"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn of_uses_of_a_refresh_token_that_race_one_gets_tokens_at_most(db: PgPool) {
    let app = TestApp::new(db).await;
    let other = TestApp::on(app.platform.clone()).await;
    app.register("alice").await;
    let token = app.login("alice").await.text("/refresh_token");

    let replies =
        join_all((0..8).map(|n| if n % 2 == 0 { &app } else { &other }.refresh(&token))).await;

    let renewed: Vec<_> = replies
        .iter()
        .filter(|reply| reply.status == StatusCode::OK)
        .collect();
    assert_eq!(renewed.len(), 1);
    assert!(!app.accepts(&renewed[0].text("/token")).await);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_access_token_renews_until_a_week_after_its_expiry(db: PgPool) {
    let app = TestApp::new(db).await;
    app.register("alice").await;
    let token = app.login("alice").await.text("/token");

    app.platform.clock.advance(TimeDelta::days(1));
    app.get("/auth/me", &token)
        .await
        .refused(401, "TOKEN_EXPIRED");
    app.platform.clock.advance(TimeDelta::days(7));
    let renewed = app.refresh_by_access(&token).await.expect(StatusCode::OK);
    app.platform.clock.advance(TimeDelta::seconds(1));

    assert!(app.accepts(&renewed.text("/token")).await);
    app.refresh_by_access(&token)
        .await
        .refused(401, "UNAUTHENTICATED");
    app.refresh_by_access("nonsense")
        .await
        .refused(401, "UNAUTHENTICATED");
    app.send(Method::POST, "/auth/refresh", None, None)
        .await
        .refused(401, "UNAUTHENTICATED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_session_is_not_renewed_beyond_its_time(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    app.register("alice").await;
    let mut token = app.login("alice").await.text("/refresh_token");
    app.platform
        .clock
        .advance(TimeDelta::days(29) + TimeDelta::hours(12));

    let last = app.refresh(&token).await.expect(StatusCode::OK);

    assert_eq!(last.body["expiresIn"], 43_200);
    token = last.text("/refresh_token");
    app.platform.clock.advance(TimeDelta::hours(12));
    app.refresh(&token).await.refused(401, "UNAUTHENTICATED");
    app.platform.clock.advance(TimeDelta::days(31));
    app.users.run_jobs().await.unwrap();
    let left: i64 = sqlx::query_scalar("select count(*) from users.refresh_tokens")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(left, 0);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_logout_ends_this_session_on_every_instance(db: PgPool) {
    let app = TestApp::new(db).await;
    let other = TestApp::on(app.platform.clone()).await;
    app.register("alice").await;
    let (mine, theirs) = (app.login("alice").await, app.login("alice").await);
    assert!(other.accepts(&mine.text("/token")).await);

    let reply = app
        .send(
            Method::POST,
            "/auth/logout",
            Some(&mine.text("/token")),
            None,
        )
        .await;

    assert_eq!(reply.expect(StatusCode::OK).body["success"], true);
    assert!(!other.accepts(&mine.text("/token")).await);
    assert!(other.accepts(&theirs.text("/token")).await);
    other
        .refresh(&mine.text("/refresh_token"))
        .await
        .refused(401, "UNAUTHENTICATED");
    other
        .refresh_by_access(&mine.text("/token"))
        .await
        .refused(401, "UNAUTHENTICATED");
    assert_eq!(app.events().await, ["session.ended", "user.registered"]);
    app.send(Method::POST, "/auth/logout", None, None)
        .await
        .refused(401, "UNAUTHENTICATED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_end_that_a_crash_kept_from_being_told_is_told_by_a_job(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    app.register("alice").await;
    let token = app.login("alice").await.text("/token");
    assert!(app.accepts(&token).await);
    sqlx::query("update users.sessions set ended_at = $1")
        .bind(app.platform.clock.now())
        .execute(&db)
        .await
        .unwrap();

    app.platform.clock.advance(TimeDelta::seconds(2));
    app.users.run_jobs().await.unwrap();

    assert!(!app.accepts(&token).await);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn users_see_and_end_their_own_sessions(db: PgPool) {
    let app = TestApp::new(db).await;
    app.register("alice").await;
    app.register("bob").await;
    let (bob, first) = (
        app.login("bob").await.text("/token"),
        app.login("alice").await.text("/token"),
    );
    app.platform.clock.advance(TimeDelta::seconds(1));
    let (second, third) = (
        app.login("alice").await.text("/token"),
        app.login("alice").await.text("/token"),
    );
    let list = async |token: &str| -> Vec<Value> {
        app.get("/auth/sessions", token)
            .await
            .expect(StatusCode::OK)
            .body
            .as_array()
            .unwrap()
            .clone()
    };
    let delete =
        async |path: &str, token: &str| app.send(Method::DELETE, path, Some(token), None).await;

    let sessions = list(&first).await;

    let current: Vec<bool> = sessions
        .iter()
        .map(|session| session["isCurrent"].as_bool().unwrap())
        .collect();
    assert_eq!(current, [false, false, true]);
    assert_eq!(
        (&sessions[0]["ip"], &sessions[0]["browser"]),
        (&json!("203.0.113.7"), &json!("unknown"))
    );
    let newest = format!("/auth/sessions/{}", sessions[0]["id"].as_str().unwrap());
    delete(&newest, &bob).await.refused(404, "NOT_FOUND");
    assert!(app.accepts(&third).await);
    delete(&newest, &first).await.expect(StatusCode::OK);
    delete(&newest, &first).await.refused(404, "NOT_FOUND");
    assert!(!app.accepts(&third).await && app.accepts(&second).await);
    delete("/auth/sessions", &first)
        .await
        .expect(StatusCode::OK);
    assert!(!app.accepts(&second).await && app.accepts(&first).await && app.accepts(&bob).await);
    assert_eq!(list(&first).await.len(), 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn tokens_are_kept_as_hashes_alone(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    app.register("alice").await;

    let login = app.login("alice").await;

    let dump: String =
        sqlx::query_scalar("select string_agg(t::text, ' ') from users.refresh_tokens t")
            .fetch_one(&db)
            .await
            .unwrap();
    let hash: String = sqlx::query_scalar("select password_hash from users.accounts")
        .fetch_one(&db)
        .await
        .unwrap();
    assert!(!dump.contains(&login.text("/refresh_token")));
    assert!(
        hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$")
            && !login.body.to_string().contains("argon2")
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_hash_of_another_cost_is_made_anew_by_a_sign_in_and_nobody_who_signs_in_beside_is_refused(
    db: PgPool,
) {
    let before = TestApp::new(db.clone()).await;
    let id = before.register("alice").await;
    let after = TestApp::costing(
        db,
        [
            ("USERS_HASH_MEMORY_KIB", "8192"),
            ("USERS_HASH_PASSES", "3"),
        ],
    )
    .await;
    let made_at = async |cost: &str| {
        let hash: String =
            sqlx::query_scalar("select password_hash from users.accounts where id = $1")
                .bind(&id)
                .fetch_one(&after.platform.db)
                .await
                .unwrap();
        assert!(hash.contains(cost), "not {cost}");
    };
    made_at("$m=19456,t=2,p=1$").await;

    let all = futures::future::join_all((0..4).map(|_| after.login("alice"))).await;

    assert_eq!(all.len(), 4);
    made_at("$m=8192,t=3,p=1$").await;
    after.login("alice").await;
    // Older replicas believe it, too, and a wrong one is wrong.
    after
        .try_login("alice", "Abcdefg2")
        .await
        .refused(401, "BAD_CREDENTIALS");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn in_production_a_password_that_is_guessed_soon_is_none(db: PgPool) {
    let app = TestApp::with(db, |settings| {
        settings.profile = platform::config::Profile::Production
    })
    .await;
    let register = |password: &str| {
        let body =
            json!({ "username": "marmalade", "email": "m@example.com", "password": password });
        let app = app.clone();
        async move { app.post("/auth/register", body).await }
    };

    for password in ["Passw0rd", "Marmalade1"] {
        let told = register(password).await.refused(400, "VALIDATION_FAILED");
        assert_eq!(told.faults(), ["password"]);
        assert!(!told.body.to_string().contains(password));
    }
    register("tK9vQ2x-pL4").await.expect(StatusCode::CREATED);
}
