//! Captchas at sign-in.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use fred::interfaces::KeysInterface;
use futures::future::join_all;
use http::StatusCode;
use serde_json::json;
use sqlx::PgPool;

use crate::app::{PASSWORD, Reply, TestApp};
use crate::two_factor::shown;

const OK: StatusCode = StatusCode::OK;
const ASKED: [(&str, &str); 1] = [("USERS_CAPTCHA", "true")];

impl TestApp {
    /// Asks for a captcha and reads it, as a person would: its id and what it shows.
    async fn read_captcha(&self) -> (String, String) {
        let reply = self.call(
            http::Request::get("/auth/captcha")
                .body(axum::body::Body::empty())
                .unwrap(),
        );
        let reply = reply.await.expect(OK);
        assert!(reply.text("/svg").starts_with("<svg "));
        assert_eq!(reply.headers["cache-control"], "no-store");
        let id = reply.text("/id");
        let text = self.kept(&id).await.unwrap();
        assert_eq!(text.len(), 5);
        assert!(!reply.body.to_string().contains(&text));
        (id, text)
    }

    async fn kept(&self, id: &str) -> Option<String> {
        use sha2::{Digest, Sha256};
        let key = format!("captcha:{}", hex::encode(&Sha256::digest(id)[..16]));
        let key = self.platform.keys.key(&key);
        let seconds: i64 = self.platform.redis.ttl(&key).await.unwrap();
        let text: Option<String> = self.platform.redis.get(&key).await.unwrap();
        assert!(text.is_none() || (1..=300).contains(&seconds), "{seconds}");
        text
    }

    async fn login_reading(&self, name: &str, (id, text): &(String, String)) -> Reply {
        let body =
            json!({ "username": name, "password": PASSWORD, "captcha": text, "captchaId": id });
        self.post("/auth/login", body).await
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn where_it_is_asked_for_a_captcha_opens_one_sign_in_on_any_instance(db: PgPool) {
    let app = TestApp::costing(db, ASKED).await;
    let other = TestApp::on_with(app.platform.clone(), ASKED).await;
    app.register("alice").await;
    let missing = app.try_login("alice", PASSWORD).await;
    assert_eq!(
        missing.refused(400, "VALIDATION_FAILED").faults(),
        ["captcha"]
    );
    let captcha = app.read_captcha().await;
    let lower = (captcha.0.clone(), format!(" {} ", captcha.1.to_lowercase()));

    let tries =
        (0..6).map(|n| if n % 2 == 0 { &app } else { &other }.login_reading("alice", &lower));
    let replies = join_all(tries).await;

    let opened = replies.iter().filter(|reply| reply.status == OK).count();
    assert_eq!(opened, 1);
    let used = other.login_reading("alice", &captcha).await;
    assert_eq!(used.refused(400, "VALIDATION_FAILED").faults(), ["captcha"]);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_wrong_answer_spends_the_captcha_and_compares_no_password(db: PgPool) {
    let app = TestApp::costing(db.clone(), ASKED).await;
    app.register("alice").await;
    let (id, text) = app.read_captcha().await;

    for n in 0..8 {
        let sent = (id.clone(), format!("{n}{text}"));
        app.login_reading("alice", &sent)
            .await
            .refused(400, "VALIDATION_FAILED");
    }

    app.login_reading("alice", &(id.clone(), text))
        .await
        .refused(400, "VALIDATION_FAILED");
    assert_eq!(app.kept(&id).await, None);
    let failed: i32 = sqlx::query_scalar("select failed_logins from users.accounts")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(failed, 0);
    for captcha in [json!(7), json!(["A"]), json!({})] {
        let body = json!({ "username": "alice", "password": PASSWORD, "captcha": captcha, "captchaId": id });
        app.post("/auth/login", body)
            .await
            .refused(400, "VALIDATION_FAILED");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_captcha_of_a_sign_in_counts_for_its_second_factor_and_for_nobody_else(db: PgPool) {
    let plain = TestApp::new(db).await;
    let alice = plain.guarded("alice").await;
    plain.register("bob").await;
    let app = TestApp::on_with(plain.platform.clone(), ASKED).await;
    let captcha = app.read_captcha().await;
    let asked = app.login_reading("alice", &captcha).await.expect(OK);
    assert_eq!(asked.body["requiresTwoFactor"], true);
    let verify = async |name: &str, code: &str| {
        let body = json!({ "username": name, "password": PASSWORD, "twoFactorToken": code,
            "captcha": captcha.1, "captchaId": captcha.0 });
        app.post("/auth/2fa/verify", body).await
    };

    verify("bob", "123456")
        .await
        .refused(400, "VALIDATION_FAILED");
    let code = shown(&alice.secret, &app.platform);
    verify("Alice", &code).await.expect(OK);

    let none = json!({ "username": "alice", "password": PASSWORD, "twoFactorToken": code });
    app.post("/auth/2fa/verify", none)
        .await
        .refused(400, "VALIDATION_FAILED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn production_asks_for_one_and_development_does_not(db: PgPool) {
    let app = TestApp::new(db).await;
    app.register("alice").await;
    let production = TestApp::on_with(app.platform.clone(), [("PROFILE", "production")]).await;
    let unasked = TestApp::on_with(
        app.platform.clone(),
        [("PROFILE", "production"), ("USERS_CAPTCHA", "false")],
    )
    .await;

    production
        .try_login("alice", PASSWORD)
        .await
        .refused(400, "VALIDATION_FAILED");

    app.login("alice").await;
    unasked.login("alice").await;
    let captcha = production.read_captcha().await;
    production.login_reading("alice", &captcha).await.expect(OK);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn ten_captchas_a_minute_are_given_to_an_address(db: PgPool) {
    let app = TestApp::with(db, |settings| settings.rate_limits = true).await;
    for _ in 0..10 {
        app.read_captcha().await;
    }

    let request = || {
        http::Request::get("/auth/captcha")
            .body(axum::body::Body::empty())
            .unwrap()
    };
    app.call(request()).await.refused(429, "RATE_LIMITED");
}
