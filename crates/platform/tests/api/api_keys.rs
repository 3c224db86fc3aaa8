//! API keys: believed within their scopes, in every service and at the door, and no longer than a second after they changed.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use chrono::TimeDelta;
use contracts::{ApiKeyId, Timestamp, UserId};
use futures::future::join_all;
use http::{HeaderMap, HeaderValue, Method};
use platform::auth::{API_KEY_HEADER, AuthError, Edge, Known, Occasion, Proof};
use platform::lifecycle::Tasks;
use platform::{Admin, Caller, CurrentUser, Platform, testing};
use sqlx::PgPool;

use crate::redis::PrivateRedis;
use crate::support::{App, until, within};

/// For so long a test waits until a change is heard of: ten times what is promised, and far less than the minute after which
/// a key is looked up anyway.
const HEARD: Duration = Duration::from_secs(10);
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
        within(HEARD, change, async || status(&key).await == wanted).await;
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
    within(HEARD, "it is off", async || status(&key).await == 401).await;
    key.change(
        &db,
        "update users.api_keys set status = 'active' where id = $1",
    )
    .await;
    within(HEARD, "it is on", async || status(&key).await == 200).await;
    redis.thaw();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_remembered_key_speaks_for_its_user_as_he_is_now(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let (keys, _following) = (platform.auth.api_keys(), follow(&platform));
    let mut roles = vec!["user"];
    let alice = testing::account(&platform, &["admin", "user"]).await;
    let key = Key::of(&platform, &alice, &["*"]).await;

    for (change, name, role) in [
        (
            "delete from users.user_roles where user_id = $1
                and role_id = (select id from users.roles where name = 'admin')",
            alice.as_str(),
            None,
        ),
        (
            "insert into users.user_roles select $1, id from users.roles where name = 'admin'",
            alice.as_str(),
            Some("admin"),
        ),
        (
            "update users.roles set name = 'root'
            where name = 'admin' and id in (select role_id from users.user_roles where user_id = $1)",
            alice.as_str(),
            Some("root"),
        ),
        (
            "update users.accounts set username = 'alice' where id = $1",
            "alice",
            Some("root"),
        ),
    ] {
        until("the key is remembered", async || {
            keys.find(&key.text).await.is_ok() && key.is_remembered(&platform)
        })
        .await;
        let done = sqlx::query(change).bind(&alice).execute(&db).await;
        assert_eq!(done.unwrap().rows_affected(), 1, "{change}");
        roles.retain(|role| *role == "user");
        roles.extend(role);
        roles.sort_unstable();
        within(HEARD, change, async || {
            let known = keys.find(&key.text).await;
            let known = known.unwrap();
            let identity = known.identity();
            identity.username == name && identity.roles == roles
        })
        .await;
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_role_that_is_taken_while_a_key_is_made_counts_no_more_for_that_key(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let (keys, _following) = (platform.auth.api_keys(), follow(&platform));
    let root = testing::account(&platform, &["admin"]).await;
    let key = Key::of(&platform, &root, &["*"]).await;
    let mut making = db.begin().await.unwrap();
    sqlx::query("select from users.accounts where id = $1 for no key update")
        .bind(&root)
        .execute(&mut *making)
        .await
        .unwrap();
    let made = sqlx::query_scalar(
        "insert into users.api_keys
            (id, user_id, name, prefix, key_hash, scopes, status, created_at, updated_at)
        select 'made', user_id, name, prefix, sha256('made'), scopes, status, created_at, updated_at
        from users.api_keys where id = $1 returning version",
    );
    let made: i64 = made.bind(&key.id).fetch_one(&mut *making).await.unwrap();

    let take = sqlx::query("delete from users.user_roles where user_id = $1").bind(&root);
    let make = async {
        until("it waits until the key is made", async || {
            let waiting = sqlx::query_scalar(
                "select exists (select from pg_locks where not granted and pid in
                    (select pid from pg_stat_activity where datname = current_database()))",
            );
            waiting.fetch_one(&db).await.unwrap()
        })
        .await;
        making.commit().await.unwrap();
    };
    let (taken, ()) = tokio::join!(take.execute(&db), make);
    taken.unwrap();

    let version: i64 = sqlx::query_scalar("select version from users.api_keys where id = 'made'")
        .fetch_one(&db)
        .await
        .unwrap();
    assert!(version > made, "nobody hears that its user lost a role");
    within(HEARD, "the role is gone", async || {
        let known = keys.find(&key.text).await.unwrap();
        known.identity().roles.is_empty()
    })
    .await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn what_changes_a_user_never_reads_the_whole_table_of_keys(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let alice = account(&platform).await;
    Key::of(&platform, &alice, &["*"]).await;

    for change in [
        "insert into users.user_roles select $1, id from users.roles where name = 'admin'",
        "delete from users.user_roles where user_id = $1",
        "update users.accounts set status = 'suspended' where id = $1",
    ] {
        let mut tx = db.begin().await.unwrap();
        // A table of few rows is read whole where nothing else forbids it.
        sqlx::query("set local enable_seqscan = off")
            .execute(&mut *tx)
            .await
            .unwrap();
        let done = sqlx::query(change).bind(&alice).execute(&mut *tx).await;
        assert!(done.unwrap().rows_affected() > 0, "{change}");
        let (whole, by_index): (i64, i64) = sqlx::query_as(
            "select seq_scan, idx_scan from pg_stat_xact_user_tables
            where relid = 'users.api_keys'::regclass",
        )
        .fetch_one(&mut *tx)
        .await
        .unwrap();
        assert_eq!(whole, 0, "{change}");
        assert!(by_index > 0, "{change}");
        tx.commit().await.unwrap();
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_secret_that_was_rotated_away_is_looked_up_once(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let (keys, _following) = (platform.auth.api_keys(), follow(&platform));
    let key = Key::of(&platform, &account(&platform).await, &["*"]).await;
    until("the key is remembered", async || {
        keys.find(&key.text).await.is_ok() && key.is_remembered(&platform)
    })
    .await;
    key.change(
        &db,
        "update users.api_keys set key_hash = sha256('other') where id = $1",
    )
    .await;
    within(HEARD, "the secret is refused", async || {
        keys.find(&key.text).await.is_err()
    })
    .await;

    for _ in 0..100 {
        let recalled = keys.recall(&key.text);
        assert!(
            matches!(recalled, Some(Err(AuthError::Key))),
            "{recalled:?}"
        );
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn many_who_ask_for_the_same_key_at_once_look_it_up_few_times(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    // Nothing follows what changes here: nothing that was looked up before they asked counts.
    let key = Key::of(&platform, &account(&platform).await, &["*"]).await;
    let mut silence = db.begin().await.unwrap();
    // Those who wait may have all connections that are left.
    let mut looking = db.acquire().await.unwrap();
    sqlx::query("lock table users.api_keys")
        .execute(&mut *silence)
        .await
        .unwrap();

    let callers = join_all((0..200).map(|_| platform.auth.api_keys().find(&key.text)));
    let speak = async {
        until("the first of them ask", async || {
            let waiting = sqlx::query_scalar(
                "select count(*) > 0 from pg_stat_activity
                where datname = current_database() and wait_event_type = 'Lock'
                  and query like '-- api_keys::find%'",
            );
            waiting.fetch_one(&mut *looking).await.unwrap()
        })
        .await;
        silence.rollback().await.unwrap();
    };
    let (found, ()) = tokio::join!(callers, speak);

    // Each look into the database makes another one.
    let found = found.iter().flatten();
    let mut different: Vec<_> = found.map(Arc::as_ptr).collect();
    different.sort_unstable();
    different.dedup();
    assert!((1..=40).contains(&different.len()), "{different:?}");
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
    within(HEARD, "the door knows of it", async || {
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
    within(HEARD, "the door gives no word", async || {
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
