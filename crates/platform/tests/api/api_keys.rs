//! API keys: believed within their scopes, in every service and at the door, and no longer than a second after they changed.

use axum::Router;
use axum::routing::{get, post};
use chrono::TimeDelta;
use contracts::{ApiKeyId, Timestamp, UserId};
use http::{HeaderMap, HeaderValue, Method};
use platform::auth::{API_KEY_HEADER, AuthError, Edge, Known, Occasion, Proof};
use platform::lifecycle::Tasks;
use platform::{Admin, Caller, CurrentUser, Platform, testing};
use sqlx::PgPool;

use crate::redis::PrivateRedis;
use crate::support::{App, until};

const ID: HeaderValue = HeaderValue::from_static("request-1");

/// A key of a user of its own, as the user service would make it.
struct Key {
    id: ApiKeyId,
    user: UserId,
    text: String,
}

async fn account(platform: &Platform) -> UserId {
    testing::account(platform, &["user"]).await
}

impl Key {
    async fn of(platform: &Platform, user: &UserId, scopes: &[&str]) -> Self {
        let (id, text) = testing::api_key(platform, user, scopes).await;
        let user = user.clone();
        Self { id, user, text }
    }

    async fn change(&self, db: &PgPool, change: &'static str) {
        let done = sqlx::query(change).bind(&self.id).execute(db).await;
        assert!(done.unwrap().rows_affected() > 0, "{change}");
    }

    /// Whether it is known without asking.
    fn is_remembered(&self, platform: &Platform) -> bool {
        let recalled = platform.auth.api_keys().recall(&self.text);
        recalled.is_some_and(|known| known.is_ok())
    }

    async fn uses(&self, db: &PgPool) -> Option<(i64, Timestamp)> {
        let uses = "select usage_count, last_used_at from platform.api_key_usage where key_id = $1";
        let uses = sqlx::query_as(uses).bind(&self.id);
        uses.fetch_optional(db).await.unwrap()
    }
}

fn app(platform: &Platform) -> App {
    let me = async |user: CurrentUser| user.id.to_string();
    let routes = Router::new()
        .route("/devices", get(me).post(me))
        .route("/devices/{id}", get(me))
        .route("/apps", get(me))
        .route("/auth/sessions", get(me))
        .route("/unheard-of", get(me))
        .route(
            "/gateway/cron",
            get(async |admin: Admin| admin.0.id.to_string()),
        )
        .route(
            "/orders",
            post(async |caller: Caller| {
                caller
                    .user()
                    .map_or_else(String::new, |user| user.id.to_string())
            }),
        );
    App::new(platform, routes)
}

/// Follows what changes, as every process does.
struct Following(Tasks);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.stopping().cancel();
    }
}

fn follow(platform: &Platform) -> Following {
    let tasks = Tasks::new();
    platform.auth.api_keys().follow(&tasks);
    Following(tasks)
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_key_acts_for_its_user_on_the_routes_of_its_scopes_alone(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let (app, alice) = (app(&platform), account(&platform).await);
    let key = Key::of(&platform, &alice, &["devices:read", "orders:*"]).await;
    let call = |method, path| app.call(method, path).header("x-api-key", &key.text);

    for (method, path) in [
        ("GET", "/devices"),
        ("GET", "/devices/7"),
        ("POST", "/orders"),
    ] {
        let reply = call(method, path).send().await;
        assert_eq!(reply.text, alice.as_str(), "{method} {path}");
    }
    for (method, path) in [
        ("POST", "/devices"),
        ("GET", "/apps"),
        ("GET", "/auth/sessions"),
        ("GET", "/unheard-of"),
        ("GET", "/gateway/cron"),
    ] {
        let reply = call(method, path).send().await;
        reply.refused(403, "FORBIDDEN");
        assert!(!reply.text.contains(&key.text));
    }
    let narrow = call("POST", "/devices").send().await;
    assert!(narrow.text.contains("devices:write"), "{}", narrow.text);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_key_can_do_no_more_than_its_user_and_never_what_only_signing_in_allows(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let app = app(&platform);
    let (alice, root) = (
        account(&platform).await,
        testing::account(&platform, &["admin"]).await,
    );
    let of_alice = Key::of(&platform, &alice, &["*"]).await;
    let of_root = Key::of(&platform, &root, &["*"]).await;
    let ask = async |path: &str, key: &Key| {
        let call = app.get(path).header("x-api-key", &key.text);
        call.send().await
    };

    ask("/gateway/cron", &of_alice)
        .await
        .refused(403, "FORBIDDEN");
    assert_eq!(ask("/gateway/cron", &of_root).await.text, root.as_str());
    ask("/auth/sessions", &of_root)
        .await
        .refused(403, "FORBIDDEN");
    // The role counts as it is, not as it was when the key was made.
    sqlx::query("delete from users.user_roles where user_id = $1")
        .bind(&root)
        .execute(&db)
        .await
        .unwrap();
    ask("/gateway/cron", &of_root)
        .await
        .refused(403, "FORBIDDEN");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_is_no_key_and_who_sends_two_proofs_is_refused(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let (app, alice) = (app(&platform), account(&platform).await);
    let key = Key::of(&platform, &alice, &["*"]).await;
    let token = testing::sign_in(&platform, &alice, &[]).await;
    let never = platform.auth.api_key_secret(&[7; 32]);

    for text in [
        "",
        "x",
        &key.text[1..],
        &format!("{}0", key.text),
        never.expose(),
    ] {
        for _ in 0..2 {
            let reply = app.get("/devices").header("x-api-key", text).send().await;
            reply.refused(401, "UNAUTHENTICATED");
        }
    }
    let twice = app.get("/devices").header("x-api-key", &key.text);
    let twice = twice.header("x-api-key", &key.text).send().await;
    twice.refused(401, "UNAUTHENTICATED");
    // Nobody known is not let in by what the sandbox opens to nobody.
    let orders = app
        .post("/orders", "")
        .header("x-api-key", "x")
        .send()
        .await;
    orders.refused(401, "UNAUTHENTICATED");
    for token in [token.as_str(), "x.y.z"] {
        let both = app.get("/devices").header("x-api-key", &key.text);
        both.token(token)
            .send()
            .await
            .refused(400, "VALIDATION_FAILED");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_key_that_changes_is_judged_anew_everywhere_without_redis(db: PgPool) {
    let redis = PrivateRedis::start().await;
    let platform = testing::beside(db.clone(), &redis.url(), |_| {}).await;
    let (app, _following) = (app(&platform), follow(&platform));
    redis.freeze();
    let status = async |key: &Key| {
        let call = app.get("/devices").header("x-api-key", &key.text);
        call.send().await.status.as_u16()
    };

    for (change, wanted) in [
        (
            "update users.api_keys set status = 'revoked' where id = $1",
            401,
        ),
        (
            "update users.api_keys set status = 'inactive' where id = $1",
            401,
        ),
        (
            "update users.api_keys set key_hash = sha256('other') where id = $1",
            401,
        ),
        (
            "update users.api_keys set deleted_at = now() where id = $1",
            401,
        ),
        (
            "update users.api_keys set expires_at = '2020-01-01' where id = $1",
            401,
        ),
        (
            "update users.api_keys set scopes = '{devices:write}' where id = $1",
            403,
        ),
        (
            "update users.accounts set status = 'suspended' where id = (select user_id from users.api_keys where id = $1)",
            401,
        ),
        (
            "update users.accounts set status = 'deleted' where id = (select user_id from users.api_keys where id = $1)",
            401,
        ),
    ] {
        let alice = account(&platform).await;
        let key = Key::of(&platform, &alice, &["devices:read"]).await;
        until("the key is remembered", async || {
            status(&key).await == 200 && key.is_remembered(&platform)
        })
        .await;
        key.change(&db, change).await;
        until(change, async || status(&key).await == wanted).await;
    }
    // No row vanishes unheard.
    let delete = sqlx::query("delete from users.api_keys where deleted_at is null");
    delete.execute(&db).await.unwrap_err();
    // What was switched off comes back.
    let key = Key::of(&platform, &account(&platform).await, &["*"]).await;
    assert_eq!(status(&key).await, 200);
    key.change(
        &db,
        "update users.api_keys set status = 'inactive' where id = $1",
    )
    .await;
    until("it is off", async || status(&key).await == 401).await;
    key.change(
        &db,
        "update users.api_keys set status = 'active' where id = $1",
    )
    .await;
    until("it is on", async || status(&key).await == 200).await;
    redis.thaw();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_key_expires_by_the_clock_alone(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let (app, _following) = (app(&platform), follow(&platform));
    let soon = platform.clock.now() + TimeDelta::milliseconds(400);
    let key = Key::of(&platform, &account(&platform).await, &["*"]).await;
    sqlx::query("update users.api_keys set expires_at = $1")
        .bind(soon)
        .execute(&db)
        .await
        .unwrap();
    let ask = async || {
        let call = app.get("/devices").header("x-api-key", &key.text);
        call.send().await
    };

    until("the key is remembered", async || {
        ask().await.status == 200 && key.is_remembered(&platform)
    })
    .await;
    platform.clock.advance(TimeDelta::milliseconds(400));
    ask().await.refused(401, "UNAUTHENTICATED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn where_changes_cannot_be_read_each_call_looks_the_key_up(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    // Nothing follows what changes here.
    let app = app(&platform);
    let key = Key::of(&platform, &account(&platform).await, &["*"]).await;
    let ask = async || {
        let call = app.get("/devices").header("x-api-key", &key.text);
        call.send().await
    };

    assert_eq!(ask().await.status, 200);
    key.change(
        &db,
        "update users.api_keys set status = 'revoked' where id = $1",
    )
    .await;
    ask().await.refused(401, "UNAUTHENTICATED");
}

/// A gateway's view of the callers.
struct Door {
    edge: Edge,
    following: Following,
}

impl Door {
    fn before(platform: &Platform) -> Self {
        let following = follow(platform);
        let edge = Edge::new(platform, &following.0);
        Self { edge, following }
    }

    async fn present(&self, key: &Key) -> Result<Known, AuthError> {
        let value = HeaderValue::from_str(&key.text).unwrap();
        let headers = HeaderMap::from_iter([(API_KEY_HEADER, value)]);
        Ok(self.edge.present(&headers).await?.expect("it bears a key"))
    }

    async fn ask(&self, known: &Known, target: &str) -> Result<Option<String>, AuthError> {
        let occasion = Occasion {
            method: &Method::GET,
            target: &target.parse().unwrap(),
            request_id: &ID,
        };
        let word = self.edge.vouch(known, occasion).await?;
        Ok(word.map(|word| word.to_str().unwrap().to_owned()))
    }

    async fn word(&self, key: &Key, target: &str) -> String {
        let mut word = None;
        until("the door gives its word", async || {
            let known = self.present(key).await.unwrap();
            word = self.ask(&known, target).await.unwrap();
            word.is_some()
        })
        .await;
        word.unwrap()
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_word_for_a_key_holds_its_scopes_and_needs_no_store(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let (app, door) = (app(&platform), Door::before(&platform));
    let key = Key::of(&platform, &account(&platform).await, &["devices:read"]).await;
    let (good, other) = (
        door.word(&key, "/devices").await,
        door.word(&key, "/apps").await,
    );
    let mut silence = db.begin().await.unwrap();
    sqlx::query("lock table users.api_keys")
        .execute(&mut *silence)
        .await
        .unwrap();

    let call = |path, word: &str| {
        let call = app.get(path).header("x-request-id", ID.to_str().unwrap());
        call.header("x-cloudphone-identity", word)
    };
    assert_eq!(call("/devices", &good).send().await.text, key.user.as_str());
    call("/apps", &other).send().await.refused(403, "FORBIDDEN");
    assert!(!good.contains(&key.text));
    silence.rollback().await.unwrap();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_door_gives_no_word_for_a_key_that_changed_after_it_was_presented(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let door = Door::before(&platform);
    let key = Key::of(&platform, &account(&platform).await, &["*"]).await;
    door.word(&key, "/devices").await;

    // Its body is still on the way when the key is revoked.
    let known = door.present(&key).await.unwrap();
    key.change(
        &db,
        "update users.api_keys set status = 'revoked' where id = $1",
    )
    .await;
    until("the door knows of it", async || {
        let word = door.ask(&known, "/devices").await;
        word.is_err_and(|error| error == AuthError::Key)
    })
    .await;

    // While nobody knows what changed, services judge.
    let other = Key::of(&platform, &account(&platform).await, &["*"]).await;
    door.word(&other, "/devices").await;
    let known = door.present(&other).await.unwrap();
    let mut silence = db.begin().await.unwrap();
    sqlx::query("lock table users.api_keys")
        .execute(&mut *silence)
        .await
        .unwrap();
    until("the door gives no word", async || {
        let word = door.ask(&known, "/devices").await;
        word.is_ok_and(|word| word.is_none())
    })
    .await;
    silence.rollback().await.unwrap();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn uses_are_counted_once_and_written_when_the_process_leaves(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let (app, door) = (app(&platform), Door::before(&platform));
    let key = Key::of(&platform, &account(&platform).await, &["*"]).await;
    let word = door.word(&key, "/devices").await;
    let mut uses = 1;

    for _ in 0..3 {
        let call = app.get("/devices").header("x-api-key", &key.text);
        assert_eq!(call.send().await.status, 200);
        uses += 1;
    }
    // The door has counted this one.
    let call = app
        .get("/devices")
        .header("x-request-id", ID.to_str().unwrap());
    let call = call.header("x-cloudphone-identity", &word).send().await;
    assert_eq!(call.status, 200);

    let left = door
        .following
        .0
        .stop(std::time::Duration::from_secs(30))
        .await;
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(key.uses(&db).await, Some((uses, platform.clock.now())));

    // A second process adds its own.
    let prefix = platform.settings.key_prefix.clone();
    let second = testing::with(db.clone(), |settings| settings.key_prefix = prefix).await;
    second.clock.advance(TimeDelta::seconds(5));
    let tasks = Tasks::new();
    second.auth.api_keys().follow(&tasks);
    let call = self::app(&second)
        .get("/devices")
        .header("x-api-key", &key.text);
    assert_eq!(call.send().await.status, 200);
    tasks.stop(std::time::Duration::from_secs(30)).await;
    assert_eq!(key.uses(&db).await, Some((uses + 1, second.clock.now())));
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn handlers_tell_a_session_from_a_key(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let alice = account(&platform).await;
    let key = Key::of(&platform, &alice, &["*"]).await;
    let token = testing::sign_in(&platform, &alice, &[]).await;
    let proof = async |user: CurrentUser| match (&user.proof, user.session()) {
        (Proof::Session(session), Ok(same)) => format!("session {}", session == same),
        (Proof::Key(key), Err(problem)) => format!("key {key} {}", problem.code()),
        _ => "neither".to_owned(),
    };
    let app = App::new(&platform, Router::new().route("/devices", get(proof)));

    let by_key = app.get("/devices").header("x-api-key", &key.text);
    assert_eq!(
        by_key.send().await.text,
        format!("key {} FORBIDDEN", key.id)
    );
    let by_token = app.get("/devices").token(token);
    assert_eq!(by_token.send().await.text, "session true");
}
