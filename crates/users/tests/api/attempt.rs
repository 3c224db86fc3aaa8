//! Wrong passwords: one answer for all of them, five in a row, and the rate limits.

use chrono::TimeDelta;
use futures::future::join_all;
use http::{StatusCode, header};
use serde_json::json;
use sqlx::PgPool;

use crate::app::{PASSWORD, TestApp};

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_unknown_user_and_a_wrong_password_get_the_same_answer(db: PgPool) {
    let app = TestApp::new(db).await;
    app.register("alice").await;

    let unknown = app
        .try_login("nobody", PASSWORD)
        .await
        .refused(401, "BAD_CREDENTIALS");
    let wrong = app
        .try_login("alice", "Wrong1234")
        .await
        .refused(401, "BAD_CREDENTIALS");

    assert_eq!(unknown.body["message"], wrong.body["message"]);
    let none = app
        .post("/auth/login", json!({}))
        .await
        .refused(400, "VALIDATION_FAILED");
    assert_eq!(none.faults(), ["password", "username"]);
    app.try_login("a\u{0}b", PASSWORD)
        .await
        .refused(400, "VALIDATION_FAILED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn five_wrong_passwords_in_a_row_lock_the_account_for_half_an_hour(db: PgPool) {
    let app = TestApp::new(db).await;
    app.register("alice").await;
    for _ in 0..4 {
        app.try_login("alice", "Wrong1234")
            .await
            .refused(401, "BAD_CREDENTIALS");
    }
    app.login("alice").await;
    for _ in 0..5 {
        app.try_login("alice", "Wrong1234")
            .await
            .refused(401, "BAD_CREDENTIALS");
    }

    let locked = app
        .try_login("alice", PASSWORD)
        .await
        .refused(401, "BAD_CREDENTIALS");
    app.platform.clock.advance(TimeDelta::minutes(29));
    app.try_login("alice", PASSWORD)
        .await
        .refused(401, "BAD_CREDENTIALS");
    app.platform.clock.advance(TimeDelta::minutes(1));

    assert!(locked.text("/message").contains("locked"));
    app.login("alice").await;
    assert_eq!(app.events().await, ["user.locked", "user.registered"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn of_twenty_guesses_at_once_no_more_than_five_are_compared(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    let other = TestApp::on(app.platform.clone()).await;
    app.register("alice").await;
    let guesses =
        (0..20).map(|n| if n % 2 == 0 { &app } else { &other }.try_login("alice", "Wrong1234"));

    let replies = join_all(guesses).await;

    assert!(
        replies
            .iter()
            .all(|reply| reply.status == StatusCode::UNAUTHORIZED)
    );
    let compared = replies
        .iter()
        .filter(|reply| !reply.text("/message").contains("locked"))
        .count();
    assert_eq!(compared, 5);
    let (failed, open): (i32, i32) =
        sqlx::query_as("select failed_logins, open_attempts from users.accounts")
            .fetch_one(&db)
            .await
            .unwrap();
    assert_eq!((failed, open), (5, 0));
    assert_eq!(app.events().await, ["user.locked", "user.registered"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn any_number_of_right_passwords_at_once_gets_in(db: PgPool) {
    let app = TestApp::new(db).await;
    app.register("alice").await;
    for _ in 0..4 {
        app.try_login("alice", "Wrong1234")
            .await
            .refused(401, "BAD_CREDENTIALS");
    }

    let replies = join_all((0..12).map(|_| app.try_login("alice", PASSWORD))).await;

    assert!(replies.iter().all(|reply| reply.status == StatusCode::OK));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn attempts_of_a_process_that_died_stand_in_nobodys_way_for_long(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    app.register("alice").await;
    sqlx::query("update users.accounts set open_attempts = 5, open_attempts_until = $1")
        .bind(app.platform.clock.now() + TimeDelta::seconds(10))
        .execute(&db)
        .await
        .unwrap();

    let crowded = app
        .try_login("alice", PASSWORD)
        .await
        .refused(503, "NOT_READY");
    app.platform.clock.advance(TimeDelta::seconds(10));

    assert!(crowded.headers.contains_key(header::RETRY_AFTER));
    app.login("alice").await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn wrong_old_passwords_count_too(db: PgPool) {
    let app = TestApp::new(db).await;
    app.register("alice").await;
    let token = app.login("alice").await.text("/token");
    let ask = || json!({ "oldPassword": "Wrong1234", "newPassword": "Newpass12" });
    let change = async || {
        app.send(
            http::Method::POST,
            "/auth/change-password",
            Some(&token),
            Some(ask()),
        )
        .await
    };
    for _ in 0..5 {
        change().await.refused(400, "VALIDATION_FAILED");
    }

    let locked = change().await.refused(400, "VALIDATION_FAILED");

    assert!(locked.text("/message").contains("locked"));
    app.try_login("alice", PASSWORD)
        .await
        .refused(401, "BAD_CREDENTIALS");
    assert!(app.accepts(&token).await);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_disabled_account_is_told_to_who_knows_its_password_alone(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    app.register("alice").await;
    sqlx::query("update users.accounts set status = 'suspended'")
        .execute(&db)
        .await
        .unwrap();

    let right = app
        .try_login("alice", PASSWORD)
        .await
        .refused(401, "BAD_CREDENTIALS");
    let wrong = app
        .try_login("alice", "Wrong1234")
        .await
        .refused(401, "BAD_CREDENTIALS");

    assert!(
        right.text("/message").contains("disabled") && !wrong.text("/message").contains("disabled")
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn sign_ins_and_registrations_are_limited_over_all_instances(db: PgPool) {
    let app = TestApp::with(db, |settings| settings.rate_limits = true).await;
    let other = TestApp::on(app.platform.clone()).await;
    let instance = |n: usize| if n.is_multiple_of(2) { &app } else { &other };
    let register = |n: usize| {
        let body = json!({ "username": format!("user{n}"), "email": "x@example.com", "password": PASSWORD });
        instance(n).post("/auth/register", body)
    };

    let logins =
        join_all((0..12).map(|n| instance(n).try_login(["nobody", "Nobody"][n % 2], PASSWORD)))
            .await;
    let registrations = join_all((0..40).map(register)).await;

    for (replies, burst) in [(logins, 5), (registrations, 20)] {
        let limited: Vec<_> = replies
            .iter()
            .filter(|reply| reply.status.as_u16() == 429)
            .collect();
        assert!(
            limited.len() <= replies.len() - burst && !limited.is_empty(),
            "{} limited",
            limited.len()
        );
        assert!(
            limited
                .iter()
                .all(|reply| reply.headers.contains_key(header::RETRY_AFTER))
        );
        // Refused or not, an answer says where its caller stands.
        for reply in &replies {
            let field = |name: &str| reply.headers[name].to_str().unwrap();
            assert_eq!(field("ratelimit-limit"), burst.to_string());
            assert!(field("ratelimit-policy").ends_with(&format!(";q={burst};w=60")));
            let left: usize = field("ratelimit-remaining").parse().unwrap();
            assert!(left < burst && (left == 0 || reply.status.as_u16() != 429));
        }
    }
    other
        .try_login("somebody", PASSWORD)
        .await
        .refused(401, "BAD_CREDENTIALS");
}
