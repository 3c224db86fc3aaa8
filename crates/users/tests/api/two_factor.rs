//! Signing in with a second factor.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use chrono::TimeDelta;
use futures::future::join_all;
use hmac::{Hmac, KeyInit, Mac};
use http::{Method, StatusCode};
use platform::Platform;
use serde_json::{Value, json};
use sha1::Sha1;
use sqlx::PgPool;

use crate::app::{PASSWORD, Reply, TestApp};
use crate::manage::{ask, somebody};

const OK: StatusCode = StatusCode::OK;
/// How long a code is shown.
const PERIOD: TimeDelta = TimeDelta::seconds(30);

/// What the app on a user's phone does, by the text of the specifications.
pub fn shown(secret: &str, platform: &Platform) -> String {
    const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let bits: String = secret
        .chars()
        .map(|letter| format!("{:05b}", LETTERS.find(letter).unwrap()))
        .collect();
    let bytes: Vec<u8> = (0..bits.len() / 8)
        .map(|at| u8::from_str_radix(&bits[at * 8..at * 8 + 8], 2).unwrap())
        .collect();
    let step = platform.clock.now().utc().timestamp() as u64 / 30;
    let mut mac = Hmac::<Sha1>::new_from_slice(&bytes).unwrap();
    mac.update(&step.to_be_bytes());
    let digest = mac.finalize().into_bytes();
    let at = usize::from(digest[19] & 15);
    let number = u32::from_be_bytes(digest[at..at + 4].try_into().unwrap()) & 0x7fff_ffff;
    format!("{:06}", number % 1_000_000)
}

/// A user with two factors.
pub struct Guarded {
    pub secret: String,
    pub recovery: Vec<String>,
    pub token: String,
}

impl TestApp {
    /// Registers a user and switches the second factor on; the next code counts a period later.
    pub async fn guarded(&self, name: &str) -> Guarded {
        self.register(name).await;
        let token = self.login(name).await.text("/token");
        let offered = self.get("/auth/2fa/generate", &token).await.expect(OK);
        let secret = offered.text("/secret");
        let code = shown(&secret, &self.platform);
        let enabled = self.two_factor(&token, "enable", &code).await.expect(OK);
        let codes = enabled.body["recoveryCodes"].as_array().unwrap();
        let recovery = codes.iter().map(|code| code.as_str().unwrap().to_owned());
        let recovery = recovery.collect();
        self.platform.clock.advance(PERIOD);
        Guarded {
            secret,
            recovery,
            token,
        }
    }

    async fn two_factor(&self, token: &str, verb: &str, code: &str) -> Reply {
        let path = format!("/auth/2fa/{verb}");
        ask(self, token, (Method::POST, &path), json!({ "token": code })).await
    }

    async fn verify(&self, name: &str, password: &str, code: &str) -> Reply {
        let body = json!({ "username": name, "password": password, "twoFactorToken": code });
        self.post("/auth/2fa/verify", body).await
    }
}

/// A code that is not the one shown now, nor those beside it.
fn wrong(secret: &str, platform: &Platform) -> String {
    let shown: u32 = shown(secret, platform).parse().unwrap();
    format!("{:06}", (shown + 500_000) % 1_000_000)
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn with_two_factors_the_password_alone_opens_nothing(db: PgPool) {
    let app = TestApp::new(db).await;
    let other = TestApp::on(app.platform.clone()).await;
    let alice = app.guarded("alice").await;

    let asked = app.try_login("alice", PASSWORD).await.expect(OK);
    assert_eq!(
        (&asked.body["success"], &asked.body["requiresTwoFactor"]),
        (&json!(true), &json!(true))
    );
    assert!(asked.body.get("token").is_none() && asked.body.get("refresh_token").is_none());
    let code = shown(&alice.secret, &app.platform);
    app.verify("alice", "Wrong1234", &code)
        .await
        .refused(401, "BAD_CREDENTIALS");
    let missing = json!({ "username": "alice", "password": PASSWORD });
    let missing = app.post("/auth/2fa/verify", missing).await;
    assert_eq!(
        missing.refused(400, "VALIDATION_FAILED").faults(),
        ["twoFactorToken"]
    );
    app.verify("alice", PASSWORD, "12345")
        .await
        .refused(400, "VALIDATION_FAILED");

    let login = other.verify("alice", PASSWORD, &code).await.expect(OK);

    assert!(app.accepts(&login.text("/token")).await);
    assert_eq!(login.body["user"]["twoFactorEnabled"], true);
    let me = app.get("/auth/me", &login.text("/token")).await;
    assert_eq!(me.body["twoFactorEnabled"], true);
    // Who has no second factor signs in by the same route.
    app.register("bob").await;
    app.verify("bob", PASSWORD, "123456").await.expect(OK);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_code_counts_once_however_many_instances_it_is_sent_to(db: PgPool) {
    let app = TestApp::new(db).await;
    let other = TestApp::on(app.platform.clone()).await;
    let alice = app.guarded("alice").await;
    let code = shown(&alice.secret, &app.platform);
    let tries =
        (0..4).map(|n| if n % 2 == 0 { &app } else { &other }.verify("alice", PASSWORD, &code));

    let replies = join_all(tries).await;

    let opened = replies.iter().filter(|reply| reply.status == OK).count();
    assert_eq!(opened, 1);
    // The one before it, which a clock that is behind still shows, counts no more, either.
    app.platform.clock.advance(PERIOD);
    app.verify("alice", PASSWORD, &code)
        .await
        .refused(401, "BAD_CREDENTIALS");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_clock_of_a_phone_may_be_half_a_minute_wrong_and_no_more(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = app.guarded("alice").await;
    let code = shown(&alice.secret, &app.platform);

    app.platform.clock.advance(PERIOD * 2);
    app.verify("alice", PASSWORD, &code)
        .await
        .refused(401, "BAD_CREDENTIALS");
    let code = shown(&alice.secret, &app.platform);
    app.platform.clock.advance(PERIOD);

    app.verify("alice", PASSWORD, &code).await.expect(OK);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn wrong_codes_lock_the_account_and_the_password_between_them_does_not_help(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    let other = TestApp::on(app.platform.clone()).await;
    let alice = app.guarded("alice").await;
    let guess = wrong(&alice.secret, &app.platform);

    for n in 0..5 {
        let app = if n % 2 == 0 { &app } else { &other };
        app.try_login("alice", PASSWORD).await.expect(OK);
        app.verify("alice", PASSWORD, &guess)
            .await
            .refused(401, "BAD_CREDENTIALS");
    }

    let right = shown(&alice.secret, &app.platform);
    let locked = app.verify("alice", PASSWORD, &right).await;
    let locked = locked.refused(401, "BAD_CREDENTIALS");
    assert!(locked.text("/message").contains("locked"));
    let locked = app.try_login("alice", PASSWORD).await;
    locked.refused(401, "BAD_CREDENTIALS");
    assert!(app.events().await.contains(&"user.locked".to_owned()));
    app.platform.clock.advance(TimeDelta::minutes(30));
    let right = shown(&alice.secret, &app.platform);
    app.verify("alice", PASSWORD, &right).await.expect(OK);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn of_guesses_that_race_no_more_than_five_are_compared(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    let other = TestApp::on(app.platform.clone()).await;
    let alice = app.guarded("alice").await;
    let guess = wrong(&alice.secret, &app.platform);

    let tries =
        (0..12).map(|n| if n % 2 == 0 { &app } else { &other }.verify("alice", PASSWORD, &guess));
    let replies = join_all(tries).await;

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
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_recovery_code_takes_the_place_of_a_code_once(db: PgPool) {
    let app = TestApp::new(db).await;
    let other = TestApp::on(app.platform.clone()).await;
    let alice = app.guarded("alice").await;
    assert_eq!(alice.recovery.len(), 10);
    let code = &alice.recovery[3];

    let tries = [&app, &other].map(|app| app.verify("alice", PASSWORD, code));
    let replies = join_all(tries).await;

    let opened = replies.iter().filter(|reply| reply.status == OK).count();
    assert_eq!(opened, 1);
    app.verify("alice", PASSWORD, &alice.recovery[4].to_lowercase())
        .await
        .expect(OK);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_offered_secret_counts_nothing_until_its_first_code(db: PgPool) {
    let app = TestApp::new(db).await;
    app.register("alice").await;
    let token = app.login("alice").await.text("/token");
    let status = async |enabled: bool, has_secret: bool| {
        let told = app.get("/auth/2fa/status", &token).await.expect(OK).body;
        assert_eq!(told, json!({ "enabled": enabled, "hasSecret": has_secret }));
    };
    status(false, false).await;
    app.two_factor(&token, "enable", "123456")
        .await
        .refused(409, "CONFLICT");

    let offered = app.get("/auth/2fa/generate", &token).await.expect(OK);
    let again = app.get("/auth/2fa/generate", &token).await.expect(OK);

    assert_eq!(offered.body, again.body);
    assert_eq!(offered.headers["cache-control"], "no-store");
    let secret = offered.text("/secret");
    assert_eq!(secret.len(), 32);
    assert!(
        offered
            .text("/qrCode")
            .starts_with("data:image/svg+xml;base64,")
    );
    let url = offered.text("/otpauthUrl");
    assert!(url.starts_with("otpauth://totp/Cloudphone:alice?secret=") && url.contains(&secret));
    status(false, true).await;
    app.login("alice").await;
    let guess = wrong(&secret, &app.platform);
    let refused = app.two_factor(&token, "enable", &guess).await;
    assert_eq!(
        refused.refused(400, "VALIDATION_FAILED").faults(),
        ["token"]
    );
    status(false, true).await;
    // After a while another one takes its place.
    app.platform.clock.advance(TimeDelta::minutes(10));
    let later = app.get("/auth/2fa/generate", &token).await.expect(OK);
    assert_ne!(later.text("/secret"), secret);
    let old = shown(&secret, &app.platform);
    app.two_factor(&token, "enable", &old)
        .await
        .refused(400, "VALIDATION_FAILED");
    let code = shown(&later.text("/secret"), &app.platform);
    app.two_factor(&token, "enable", &code).await.expect(OK);
    status(true, true).await;
    app.two_factor(&token, "enable", &code)
        .await
        .refused(409, "CONFLICT");
    app.get("/auth/2fa/generate", &token)
        .await
        .refused(409, "CONFLICT");
    // The code that switched it on was spent by that.
    app.verify("alice", PASSWORD, &code)
        .await
        .refused(401, "BAD_CREDENTIALS");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_factor_is_switched_off_by_its_code_alone_and_wrong_ones_count(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    let alice = app.guarded("alice").await;
    let guess = wrong(&alice.secret, &app.platform);
    for _ in 0..5 {
        app.two_factor(&alice.token, "disable", &guess)
            .await
            .refused(400, "VALIDATION_FAILED");
    }
    let right = shown(&alice.secret, &app.platform);
    let locked = app.two_factor(&alice.token, "disable", &right).await;
    let locked = locked.refused(400, "VALIDATION_FAILED");
    assert!(
        locked.body.to_string().contains("locked"),
        "{}",
        locked.body
    );
    app.platform.clock.advance(TimeDelta::minutes(30));

    let right = shown(&alice.secret, &app.platform);
    app.two_factor(&alice.token, "disable", &right)
        .await
        .expect(OK);

    app.login("alice").await;
    app.two_factor(&alice.token, "disable", &right)
        .await
        .refused(409, "CONFLICT");
    let left: i64 = sqlx::query_scalar("select count(*) from users.recovery_codes")
        .fetch_one(&db)
        .await
        .unwrap();
    let open: i32 = sqlx::query_scalar("select open_attempts from users.accounts")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!((left, open), (0, 0));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn no_sign_in_that_races_the_switch_gets_by_with_the_password_afterwards(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    let other = TestApp::on(app.platform.clone()).await;
    app.register("alice").await;
    let token = app.login("alice").await.text("/token");
    let offered = app.get("/auth/2fa/generate", &token).await.expect(OK);
    let code = shown(&offered.text("/secret"), &app.platform);

    let (enabled, sign_ins) = futures::join!(
        app.two_factor(&token, "enable", &code),
        join_all((0..4).map(|_| other.try_login("alice", PASSWORD)))
    );

    enabled.expect(OK);
    // By the log, whose entries are written while the account is locked.
    let actions: Vec<String> = sqlx::query_scalar(
        "select action from users.audit_log where seq > (
            select seq from users.audit_log where action = 'two_factor.enabled')",
    )
    .fetch_all(&db)
    .await
    .unwrap();
    assert!(!actions.contains(&"user.login".to_owned()), "{actions:?}");
    for reply in sign_ins {
        reply.expect(OK);
    }
    let asked = app.try_login("alice", PASSWORD).await.expect(OK);
    assert_eq!(asked.body["requiresTwoFactor"], true);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn secrets_stand_nowhere_in_the_clear_and_the_log_tells_of_the_switch(db: PgPool) {
    let app = TestApp::new(db.clone()).await;
    let alice = app.guarded("alice").await;
    let guess = wrong(&alice.secret, &app.platform);
    app.verify("alice", PASSWORD, &guess)
        .await
        .refused(401, "BAD_CREDENTIALS");

    let dump: String = sqlx::query_scalar(
        "select string_agg(t, ' ') from (
            select t::text from users.two_factors t union all select r::text from users.recovery_codes r
            union all select l::text from users.audit_log l union all select o::text from platform.outbox o) as every (t)",
    )
    .fetch_one(&db)
    .await
    .unwrap();

    assert!(dump.contains("two_factor.enabled") && dump.contains("the code is wrong"));
    let plain = alice.recovery.iter().map(|code| code.replace('-', ""));
    for secret in plain
        .chain(alice.recovery.clone())
        .chain([alice.secret, guess])
    {
        assert!(!dump.contains(&secret), "{secret}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_key_makes_way_for_another_one_and_without_keys_production_has_no_second_factor(
    db: PgPool,
) {
    const OLD: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const NEW: &str = "HwECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let app = TestApp::costing(db, [("TWO_FACTOR_KEYS", OLD)]).await;
    let alice = app.guarded("alice").await;
    let both = format!("{NEW},{OLD}");
    let next = TestApp::on_with(app.platform.clone(), [("TWO_FACTOR_KEYS", &both)]).await;
    let code = shown(&alice.secret, &app.platform);

    next.verify("alice", PASSWORD, &code).await.expect(OK);

    app.platform.clock.advance(PERIOD);
    let gone = TestApp::on_with(app.platform.clone(), [("TWO_FACTOR_KEYS", NEW)]).await;
    let code = shown(&alice.secret, &app.platform);
    // Nobody gets in because a key is missing.
    gone.verify("alice", PASSWORD, &code)
        .await
        .expect(StatusCode::INTERNAL_SERVER_ERROR);
    let mut platform = app.platform.clone();
    let mut settings = (*platform.settings).clone();
    settings.profile = platform::Profile::Production;
    platform.settings = settings.into();
    let bare = TestApp::on_with(platform, [("USERS_CAPTCHA", "false")]).await;
    app.register("bob").await;
    let token = bare.login("bob").await.text("/token");
    let refused: Value = bare
        .get("/auth/2fa/generate", &token)
        .await
        .refused(409, "CONFLICT")
        .body;
    assert!(refused.to_string().contains("TWO_FACTOR_KEYS"));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_lost_factor_is_taken_away_by_an_admin_and_that_of_an_admin_by_a_super_admin(db: PgPool) {
    let app = TestApp::new(db).await;
    let (_, admin) = somebody(&app, &["admin"]).await;
    let (boss_id, boss) = somebody(&app, &["super_admin"]).await;
    let alice = app.guarded("alice").await;
    let id = app.get("/auth/me", &alice.token).await.text("/id");
    let path = format!("/users/{id}/two-factor");
    let remove =
        async |token: &str, path: &str| app.send(Method::DELETE, path, Some(token), None).await;

    remove(&alice.token, &path).await.refused(403, "FORBIDDEN");
    remove(&admin, "/users/nobody/two-factor")
        .await
        .refused(404, "NOT_FOUND");
    remove(&boss, &format!("/users/{boss_id}/two-factor"))
        .await
        .refused(409, "CONFLICT");
    remove(&admin, &path).await.expect(OK);
    remove(&admin, &path).await.refused(409, "CONFLICT");

    assert!(!app.accepts(&alice.token).await);
    app.login("alice").await;
    let log = app
        .get("/audit-logs?action=two_factor.removed", &boss)
        .await
        .expect(OK)
        .body;
    assert_eq!(log["data"][0]["resourceId"], id.as_str());

    let carol = app.guarded("carol").await;
    let id = app.get("/auth/me", &carol.token).await.text("/id");
    sqlx::query("insert into users.user_roles select $1, id from users.roles where name = 'admin'")
        .bind(&id)
        .execute(&app.platform.db)
        .await
        .unwrap();
    let path = format!("/users/{id}/two-factor");
    remove(&admin, &path).await.refused(403, "FORBIDDEN");
    remove(&boss, &path).await.expect(OK);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn of_two_switches_by_the_same_code_one_gives_recovery_codes(db: PgPool) {
    let app = TestApp::new(db).await;
    let other = TestApp::on(app.platform.clone()).await;
    app.register("alice").await;
    let token = app.login("alice").await.text("/token");
    let secret = app
        .get("/auth/2fa/generate", &token)
        .await
        .expect(OK)
        .text("/secret");
    let code = shown(&secret, &app.platform);
    let tries =
        (0..6).map(|n| if n % 2 == 0 { &app } else { &other }.two_factor(&token, "enable", &code));

    let replies = join_all(tries).await;

    assert_eq!(replies.iter().filter(|reply| reply.status == OK).count(), 1);
    for reply in replies.into_iter().filter(|reply| reply.status != OK) {
        reply.refused(409, "CONFLICT");
    }
    let codes = sqlx::query_scalar::<_, i64>("select count(*) from users.recovery_codes");
    assert_eq!(codes.fetch_one(&app.platform.db).await.unwrap(), 10);
}
