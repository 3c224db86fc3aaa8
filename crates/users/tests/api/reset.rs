//! Forgotten passwords.

use chrono::TimeDelta;
use futures::future::join_all;
use http::{Method, StatusCode};
use platform::testing;
use serde_json::json;
use sqlx::PgPool;
use testkit::MailServer;

use crate::app::{PASSWORD, Reply, TestApp};
use crate::manage::somebody;

const OK: StatusCode = StatusCode::OK;
const NEW: &str = "Another1pw";

async fn mailing(db: PgPool, mail: &MailServer) -> TestApp {
    let url = format!("smtp://{}", mail.address);
    let settings = [
        ("SMTP_URL", url.as_str()),
        (
            "PASSWORD_RESET_URL",
            "https://example.com/reset?token={token}",
        ),
    ];
    TestApp::costing(db, settings).await
}

async fn forgot(app: &TestApp, email: &str) -> Reply {
    app.post(
        "/auth/forgot-password",
        json!({ "type": "email", "email": email }),
    )
    .await
}

async fn reset(app: &TestApp, token: &str) -> Reply {
    app.post(
        "/auth/reset-password",
        json!({ "token": token, "password": NEW }),
    )
    .await
}

fn token(mail: &str) -> String {
    // Long lines are folded, with `=` at their ends.
    let mail = mail.replace("=\n", "").replace("=3D", "=");
    let (_, rest) = mail.split_once("reset?token=").expect("a link");
    rest.chars().take_while(char::is_ascii_hexdigit).collect()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn who_forgot_a_password_sets_another_one_once_by_what_was_mailed(db: PgPool) {
    let mail = MailServer::open().await;
    let app = mailing(db, &mail).await;
    app.register("alice").await;
    let session = app.login("alice").await.text("/token");

    let known = forgot(&app, "Alice@Example.com").await.expect(OK);
    let unknown = forgot(&app, "nobody@example.com").await.expect(OK);
    assert_eq!(known.body, unknown.body);
    app.users.run_jobs().await.unwrap();

    let mails = mail.after(1).await;
    assert_eq!(mails.len(), 1);
    let token = token(&mails[0]);
    let verify = || app.post("/auth/verify-reset-token", json!({ "token": token }));
    assert_eq!(verify().await.expect(OK).body, json!({ "valid": true }));
    // The token stands nowhere but in the mail.
    let everything: String = sqlx::query_scalar(
        "select concat((select string_agg(t::text, '') from users.password_resets t),
            (select string_agg(t::text, '') from users.reset_tokens t), (select string_agg(t::text, '') from users.audit_log t),
            (select string_agg(t::text, '') from platform.outbox t))",
    )
    .fetch_one(&app.platform.db)
    .await
    .unwrap();
    assert!(everything.contains("user.registered") && !everything.contains(&token));
    reset(&app, "wrong").await.refused(400, "VALIDATION_FAILED");
    reset(&app, &token).await.expect(OK);

    assert!(!app.accepts(&session).await);
    app.try_login("alice", PASSWORD)
        .await
        .refused(401, "BAD_CREDENTIALS");
    app.try_login("alice", NEW).await.expect(OK);
    let again = reset(&app, &token).await.refused(400, "VALIDATION_FAILED");
    assert_eq!(again.faults(), ["token"]);
    assert_eq!(verify().await.expect(OK).body["valid"], false);
    assert!(
        app.events()
            .await
            .contains(&"user.password_changed".to_owned())
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_token_is_spent_once_whoever_uses_it_at_the_same_time_and_ends_with_its_time(db: PgPool) {
    let mail = MailServer::open().await;
    let app = mailing(db, &mail).await;
    app.register("alice").await;
    forgot(&app, "alice@example.com").await.expect(OK);
    forgot(&app, "alice@example.com").await.expect(OK);
    app.users.run_jobs().await.unwrap();
    let tokens: Vec<String> = mail.after(2).await.iter().map(|mail| token(mail)).collect();

    let tries = join_all((0..6).map(|n| reset(&app, &tokens[n % 2]))).await;

    let set = tries.iter().filter(|reply| reply.status == OK).count();
    assert_eq!(set, 1, "{tries:?}");
    forgot(&app, "alice@example.com").await.expect(OK);
    app.users.run_jobs().await.unwrap();
    let late = token(&mail.after(3).await[2]);
    app.platform.clock.advance(TimeDelta::minutes(31));
    reset(&app, &late).await.refused(400, "VALIDATION_FAILED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_mail_that_is_not_taken_is_tried_again_by_whichever_replica(db: PgPool) {
    let mail = MailServer::open().await;
    let app = mailing(db, &mail).await;
    app.register("alice").await;
    forgot(&app, "alice@example.com").await.expect(OK);
    mail.refuses(Some("451 later"));
    app.users.run_jobs().await.unwrap();
    assert!(mail.mails().is_empty());

    mail.refuses(None);
    let url = format!("smtp://{}", mail.address);
    let other = TestApp::on_with(app.platform.clone(), [("SMTP_URL", url.as_str())]).await;
    other.users.run_jobs().await.unwrap();
    assert!(mail.mails().is_empty(), "before its time");
    app.platform.clock.advance(TimeDelta::seconds(30));
    other.users.run_jobs().await.unwrap();

    assert_eq!(mail.after(1).await.len(), 1);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn nobody_is_mailed_more_often_than_may_be(db: PgPool) {
    let platform = testing::with(db, |settings| settings.rate_limits = true).await;
    let app = TestApp::on(platform).await;
    for _ in 0..3 {
        forgot(&app, "alice@example.com").await.expect(OK);
    }
    forgot(&app, "alice@example.com")
        .await
        .refused(429, "RATE_LIMITED");
    let phone = json!({ "type": "phone", "phone": "12345" });
    app.post("/auth/forgot-password", phone)
        .await
        .refused(400, "VALIDATION_FAILED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_token_opens_nothing_once_the_password_or_the_address_is_another(db: PgPool) {
    let mail = MailServer::open().await;
    let app = mailing(db, &mail).await;
    let id = app.register("alice").await;
    let session = app.login("alice").await.text("/token");
    let (_, admin) = somebody(&app, &["admin"]).await;
    let (own, set) = (
        "/auth/change-password".to_owned(),
        format!("/users/{id}/change-password"),
    );
    let user = format!("/users/{id}");
    for (number, (token, method, path, body)) in [
        (
            &session,
            Method::POST,
            &own,
            json!({ "oldPassword": PASSWORD, "newPassword": "Changed1pw" }),
        ),
        (
            &session,
            Method::PATCH,
            &user,
            json!({ "email": "alice@example.org" }),
        ),
        (
            &admin,
            Method::POST,
            &set,
            json!({ "newPassword": "Setby1admin" }),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let address = ["alice@example.com", "alice@example.org"][usize::from(number == 2)];
        forgot(&app, address).await.expect(OK);
        app.users.run_jobs().await.unwrap();
        let mailed = self::token(&mail.after(number + 1).await[number]);
        app.send(method, path, Some(token), Some(body))
            .await
            .expect(OK);

        reset(&app, &mailed).await.refused(400, "VALIDATION_FAILED");
    }
    app.try_login("alice", "Setby1admin").await.expect(OK);
}
