//! API keys: made, seen, changed and ended by their user, and by admins.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use axum::body::Body;
use chrono::TimeDelta;
use contracts::UserId;
use futures::future::join_all;
use http::{Method, Request, StatusCode};
use platform::Platform;
use platform::testing::sign_in;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::PgPool;

use crate::app::{Reply, TestApp};

/// A user who is signed in.
struct User {
    id: UserId,
    token: String,
}

impl User {
    async fn of(app: &TestApp, name: &str) -> Self {
        let id = app.register(name).await;
        let token = app.login(name).await.text("/token");
        Self { id, token }
    }

    async fn root(app: &TestApp) -> Self {
        let id = app.register("root").await;
        let token = sign_in(&app.platform, &id, &["admin"]).await;
        Self { id, token }
    }

    async fn call(&self, app: &TestApp, method: Method, path: &str, body: Value) -> Reply {
        app.send(method, path, Some(&self.token), Some(body)).await
    }

    async fn post(&self, app: &TestApp, path: &str, body: Value) -> Reply {
        self.call(app, Method::POST, path, body).await
    }

    async fn make(&self, app: &TestApp, scopes: &[&str]) -> Reply {
        let body = json!({ "name": "ci", "scopes": scopes });
        let reply = self.post(app, "/api-keys", body).await;
        reply.expect(StatusCode::CREATED)
    }
}

/// What a call with a key is answered.
async fn with_key(app: &TestApp, method: Method, path: &str, key: &str) -> Reply {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("x-api-key", key);
    let request = request.header("content-type", "application/json");
    app.call(request.body(Body::from("{}")).unwrap()).await
}

async fn opens(app: &TestApp, key: &str) -> bool {
    let reply = with_key(app, Method::GET, "/auth/me", key).await;
    reply.status == StatusCode::OK
}

async fn again(app: &TestApp, user: &User, path: &str, body: &Value) -> Reply {
    let request = Request::post(path)
        .header("authorization", format!("Bearer {}", user.token))
        .header("idempotency-key", "k1")
        .header("content-type", "application/json");
    let body = Body::from(body.to_string());
    app.call(request.body(body).unwrap()).await
}

/// Everything that the database holds, as text.
async fn dump(platform: &Platform) -> String {
    let mut all = String::new();
    for table in [
        "select k::text from users.api_keys k",
        "select k::text from coordination.idempotency_keys k",
        "select o::text from platform.outbox o",
    ] {
        let rows: Vec<String> = sqlx::query_scalar(table)
            .fetch_all(&platform.db)
            .await
            .unwrap();
        all += &rows.join("\n");
    }
    all
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_key_is_shown_once_and_opens_what_its_scopes_say(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = User::of(&app, "alice").await;
    let expires_at = app.platform.clock.now() + TimeDelta::days(1);
    let body = json!({
        "name": " ci ", "scopes": ["users:read"], "expiresAt": expires_at, "description": "d",
        "metadata": { "a": 1 }
    });

    let made = alice.post(&app, "/api-keys", body).await;

    let made = made.expect(StatusCode::CREATED);
    let (key, id) = (made.text("/key"), made.text("/id"));
    let digits = key.strip_prefix("cp_live_").unwrap();
    assert_eq!(digits.len(), 64);
    let now = json!(app.platform.clock.now());
    let wanted = json!({
        "id": id, "userId": alice.id, "name": "ci", "description": "d", "metadata": { "a": 1 },
        "prefix": format!("cp_live_{}", &digits[..7]), "scopes": ["users:read"],
        "status": "active", "expiresAt": expires_at, "usageCount": 0, "createdAt": now,
        "updatedAt": now, "key": key,
    });
    assert_eq!(made.body, wanted);
    let found = app.get(&format!("/api-keys/{id}"), &alice.token).await;
    let mut wanted = wanted;
    wanted.as_object_mut().unwrap().remove("key");
    assert_eq!(found.body, wanted);
    let hash: Vec<u8> = sqlx::query_scalar("select key_hash from users.api_keys")
        .fetch_one(&app.platform.db)
        .await
        .unwrap();
    assert_eq!(hash, Sha256::digest(&key).to_vec());

    let me = with_key(&app, Method::GET, "/auth/me", &key).await;
    assert_eq!(me.expect(StatusCode::OK).text("/username"), "alice");
    app.platform.clock.advance(TimeDelta::days(1));
    with_key(&app, Method::GET, "/auth/me", &key)
        .await
        .refused(401, "UNAUTHENTICATED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn no_key_manages_keys_sessions_passwords_or_who_a_user_is(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = User::of(&app, "alice").await;
    let made = alice.make(&app, &["*"]).await;
    let (key, id) = (made.text("/key"), made.text("/id"));

    for (method, path) in [
        (Method::POST, "/api-keys".to_owned()),
        (Method::GET, "/api-keys".to_owned()),
        (Method::GET, format!("/api-keys/{id}")),
        (Method::PUT, format!("/api-keys/{id}")),
        (Method::PATCH, format!("/api-keys/{id}")),
        (Method::DELETE, format!("/api-keys/{id}")),
        (Method::POST, format!("/api-keys/{id}/rotate")),
        (Method::POST, format!("/api-keys/{id}/toggle")),
        (Method::POST, format!("/api-keys/{id}/revoke")),
        (Method::GET, format!("/api-keys/user/{}", alice.id)),
        (Method::GET, format!("/api-keys/statistics/{}", alice.id)),
        (Method::GET, "/auth/sessions".to_owned()),
        (Method::DELETE, "/auth/sessions".to_owned()),
        (Method::DELETE, "/auth/sessions/x".to_owned()),
        (Method::POST, "/auth/logout".to_owned()),
        (Method::POST, "/auth/change-password".to_owned()),
        (Method::PATCH, "/users/profile".to_owned()),
    ] {
        let reply = with_key(&app, method.clone(), &path, &key).await;
        assert_eq!(reply.status, 403, "{method} {path}: {}", reply.body);
        assert!(!reply.body.to_string().contains(&key));
    }
    assert!(opens(&app, &key).await && app.accepts(&alice.token).await);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn every_fault_of_a_key_is_told(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = User::of(&app, "alice").await;
    let now = app.platform.clock.now();

    let reply = alice.post(&app, "/api-keys", json!({})).await;
    assert_eq!(
        reply.refused(400, "VALIDATION_FAILED").faults(),
        ["name", "scopes"]
    );
    let body = json!({
        "name": "", "scopes": ["Devices"], "description": "x".repeat(501), "metadata": { "a": "\u{0}" }
    });
    let reply = alice.post(&app, "/api-keys", body).await;
    let faults = reply.refused(400, "VALIDATION_FAILED").faults();
    assert_eq!(faults, ["description", "metadata", "name", "scopes"]);
    let slip = json!({ "name": "ci", "scopes": ["devices:read", "device:reed"] });
    let reply = alice.post(&app, "/api-keys", slip).await;
    let refused = reply.refused(400, "VALIDATION_FAILED");
    let told = refused.body["details"][0]["message"].to_string();
    assert!(
        told.contains("device:reed") && told.contains("devices:write"),
        "{told}"
    );
    let late = json!({ "name": "ci", "scopes": ["*"], "expiresAt": now });
    let reply = alice.post(&app, "/api-keys", late).await;
    assert_eq!(
        reply.refused(400, "VALIDATION_FAILED").faults(),
        ["expiresAt"]
    );

    let id = alice.make(&app, &["*"]).await.text("/id");
    let path = format!("/api-keys/{id}");
    let body = json!({ "name": "\n", "scopes": [], "status": "revoked" });
    let reply = alice.call(&app, Method::PATCH, &path, body).await;
    let faults = reply.refused(400, "VALIDATION_FAILED").faults();
    assert_eq!(faults, ["name", "scopes", "status"]);
    let list = app.get("/api-keys?status=unheard-of", &alice.token).await;
    assert_eq!(list.refused(400, "VALIDATION_FAILED").faults(), ["status"]);
    app.post("/api-keys", json!({ "name": "ci", "scopes": ["*"] }))
        .await
        .refused(401, "UNAUTHENTICATED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_repeated_request_shows_the_same_secret_which_is_stored_nowhere(db: PgPool) {
    let app = TestApp::new(db).await;
    let other = TestApp::on(app.platform.clone()).await;
    let alice = User::of(&app, "alice").await;
    let body = json!({ "name": "ci", "scopes": ["*"] });

    let first = again(&app, &alice, "/api-keys", &body).await;
    let first = first.expect(StatusCode::CREATED);
    let second = again(&other, &alice, "/api-keys", &body).await;
    let second = second.expect(StatusCode::CREATED);

    assert_eq!(first.body, second.body);
    assert_eq!(second.headers["idempotent-replayed"], "true");
    assert!(first.body.get("nonce").is_none());
    let key = first.text("/key");
    assert!(opens(&app, &key).await);
    let dump = dump(&app.platform).await;
    assert!(dump.contains("ci") && !dump.contains(&key["cp_live_".len()..]));

    let path = format!("/api-keys/{}/rotate", first.text("/id"));
    let rotated = again(&app, &alice, &path, &json!({})).await;
    let rotated = rotated.expect(StatusCode::OK).text("/key");
    let same = again(&other, &alice, &path, &json!({})).await.text("/key");
    assert!(rotated == same && rotated != key);
    assert!(opens(&app, &rotated).await && !opens(&app, &key).await);

    // What is no secret any more is not shown as one.
    let stale = again(&app, &alice, "/api-keys", &body).await;
    let stale = stale.refused(409, "CONFLICT");
    assert!(!stale.body.to_string().contains(&key));

    let toggle = format!("/api-keys/{}/toggle", first.text("/id"));
    for _ in 0..2 {
        let reply = again(&app, &alice, &toggle, &json!({})).await;
        assert_eq!(reply.expect(StatusCode::OK).text("/status"), "inactive");
    }
    let off = again(&app, &alice, &path, &json!({})).await;
    off.refused(409, "CONFLICT");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_key_is_changed_switched_and_ended(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = User::of(&app, "alice").await;
    let made = alice.make(&app, &["devices:read"]).await;
    let (key, path) = (made.text("/key"), format!("/api-keys/{}", made.text("/id")));
    let status = async |reply: Reply| reply.expect(StatusCode::OK).text("/status");

    assert!(!opens(&app, &key).await);
    for method in [Method::PUT, Method::PATCH] {
        let body = json!({ "name": "cd", "scopes": ["users:read"] });
        let reply = alice.call(&app, method, &path, body).await;
        let reply = reply.expect(StatusCode::OK);
        assert_eq!(
            (&reply.body["name"], &reply.body["scopes"]),
            (&json!("cd"), &json!(["users:read"]))
        );
        assert!(reply.body.get("key").is_none());
    }
    assert!(opens(&app, &key).await);
    let off = alice
        .call(&app, Method::PATCH, &path, json!({ "status": "inactive" }))
        .await;
    assert_eq!(status(off).await, "inactive");
    assert!(!opens(&app, &key).await);
    let toggled = alice.post(&app, &format!("{path}/toggle"), json!({})).await;
    assert_eq!(status(toggled).await, "active");
    assert!(opens(&app, &key).await);

    for _ in 0..2 {
        let revoked = alice.post(&app, &format!("{path}/revoke"), json!({})).await;
        assert_eq!(status(revoked).await, "revoked");
    }
    assert!(!opens(&app, &key).await);
    let on = alice
        .call(&app, Method::PATCH, &path, json!({ "status": "active" }))
        .await;
    on.refused(409, "CONFLICT");
    for action in ["toggle", "rotate"] {
        let reply = alice
            .post(&app, &format!("{path}/{action}"), json!({}))
            .await;
        reply.refused(409, "CONFLICT");
    }
    let deleted = alice.call(&app, Method::DELETE, &path, json!({})).await;
    assert!(deleted.expect(StatusCode::OK).body["message"].is_string());
    for method in [Method::GET, Method::DELETE, Method::PATCH] {
        let gone = alice.call(&app, method, &path, json!({})).await;
        gone.refused(404, "NOT_FOUND");
    }
    app.platform.clock.advance(TimeDelta::hours(25));
    app.users.run_jobs().await.unwrap();
    let left: i64 = sqlx::query_scalar("select count(*) from users.api_keys")
        .fetch_one(&app.platform.db)
        .await
        .unwrap();
    assert_eq!(left, 0);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn keys_are_their_users_own_and_admins(db: PgPool) {
    let app = TestApp::new(db).await;
    let (alice, bob) = (User::of(&app, "alice").await, User::of(&app, "bob").await);
    let root = User::root(&app).await;
    let id = alice.make(&app, &["*"]).await.text("/id");
    let path = format!("/api-keys/{id}");

    for (method, rest) in [
        (Method::GET, ""),
        (Method::PUT, ""),
        (Method::PATCH, ""),
        (Method::DELETE, ""),
        (Method::POST, "/revoke"),
        (Method::POST, "/toggle"),
        (Method::POST, "/rotate"),
    ] {
        let path = format!("{path}{rest}");
        let reply = bob
            .call(&app, method, &path, json!({ "name": "mine" }))
            .await;
        reply.refused(404, "NOT_FOUND");
    }
    for path in ["user", "statistics"].map(|of| format!("/api-keys/{of}/{}", alice.id)) {
        app.get(&path, &bob.token).await.refused(403, "FORBIDDEN");
        app.get(&path, &alice.token).await.expect(StatusCode::OK);
        app.get(&path, &root.token).await.expect(StatusCode::OK);
    }
    let of_bob = app.get("/api-keys", &bob.token).await;
    assert_eq!(of_bob.body["total"], 0);
    let all = app.get("/api-keys", &root.token).await;
    assert_eq!(all.text("/data/0/id"), id);
    // An admin ends any key, and gets nobody's secret.
    let rotate = root.post(&app, &format!("{path}/rotate"), json!({})).await;
    rotate.refused(403, "FORBIDDEN");
    let revoke = root.post(&app, &format!("{path}/revoke"), json!({})).await;
    assert_eq!(revoke.expect(StatusCode::OK).text("/status"), "revoked");
    assert_ne!(alice.id, root.id);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn keys_are_listed_newest_first_and_counted_by_what_they_are(db: PgPool) {
    let app = TestApp::new(db).await;
    let alice = User::of(&app, "alice").await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.insert(0, alice.make(&app, &["users:read"]).await.text("/id"));
    }
    let used = alice.make(&app, &["*"]).await;
    ids.insert(0, used.text("/id"));
    let soon = app.platform.clock.now() + TimeDelta::hours(1);
    let brief = json!({ "name": "brief", "scopes": ["*"], "expiresAt": soon });
    ids.insert(0, alice.post(&app, "/api-keys", brief).await.text("/id"));
    app.platform.clock.advance(TimeDelta::hours(1));
    alice
        .post(&app, &format!("/api-keys/{}/toggle", ids[2]), json!({}))
        .await;
    alice
        .post(&app, &format!("/api-keys/{}/revoke", ids[3]), json!({}))
        .await;
    sqlx::query("insert into platform.api_key_usage values ($1, 7, $2)")
        .bind(&ids[1])
        .bind(app.platform.clock.now())
        .execute(&app.platform.db)
        .await
        .unwrap();

    let page = app.get("/api-keys?page=2&pageSize=4", &alice.token).await;
    assert_eq!(
        (&page.body["total"], &page.body["totalPages"]),
        (&json!(6), &json!(2))
    );
    assert_eq!(page.text("/items/0/id"), ids[4]);
    let path = format!("/api-keys/user/{}", alice.id);
    let list = app
        .get(&format!("{path}?limit=2&offset=1"), &alice.token)
        .await;
    assert_eq!(list.body.as_array().unwrap().len(), 2);
    assert_eq!(
        (list.text("/0/id"), &list.body[0]["usageCount"]),
        (ids[1].clone(), &json!(7))
    );
    for (status, wanted) in [
        ("expired", vec![0]),
        ("active", vec![1, 4, 5]),
        ("inactive", vec![2]),
        ("revoked", vec![3]),
    ] {
        let wanted: Vec<&str> = wanted
            .into_iter()
            .map(|place: usize| ids[place].as_str())
            .collect();
        for path in [
            format!("{path}?status={status}"),
            format!("/api-keys?status={status}"),
        ] {
            let list = app.get(&path, &alice.token).await.expect(StatusCode::OK);
            let list = list.body.get("data").unwrap_or(&list.body).clone();
            let list = list.as_array().unwrap().iter();
            let found: Vec<&str> = list
                .inspect(|key| assert_eq!(key["status"], status))
                .map(|key| key["id"].as_str().unwrap())
                .collect();
            assert_eq!(found, wanted, "{path}");
        }
    }
    let counted = app
        .get(&format!("/api-keys/statistics/{}", alice.id), &alice.token)
        .await;
    let wanted = json!({
        "userId": alice.id, "total": 6, "active": 3, "inactive": 1, "revoked": 1, "expired": 1,
        "totalUsage": 7, "lastUsedAt": app.platform.clock.now(),
    });
    assert_eq!(counted.body, wanted);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_user_has_a_hundred_keys_at_most_also_when_they_are_made_at_once(db: PgPool) {
    let app = TestApp::new(db).await;
    let other = TestApp::on(app.platform.clone()).await;
    let alice = User::of(&app, "alice").await;
    sqlx::query(
        "insert into users.api_keys (id, user_id, name, prefix, key_hash, scopes, status, created_at, updated_at)
        select 'k' || n, $1, 'ci', 'cp_live_', sha256(n::text::bytea), '{*}', 'revoked', now(), now()
        from generate_series(1, 97) n",
    )
    .bind(&alice.id)
    .execute(&app.platform.db)
    .await
    .unwrap();

    let body = json!({ "name": "ci", "scopes": ["*"] });
    let asks = (0..6).map(|n| alice.post([&app, &other][n % 2], "/api-keys", body.clone()));
    let replies = join_all(asks).await;

    let made = replies.iter().filter(|reply| reply.status == 201).count();
    assert_eq!(made, 3);
    for reply in replies.into_iter().filter(|reply| reply.status != 201) {
        let reply = reply.refused(403, "QUOTA_EXCEEDED");
        let told = reply.text("/message");
        assert!(
            told.contains("quota") && told.contains("100 of 100"),
            "{told}"
        );
    }
    alice
        .call(&app, Method::DELETE, "/api-keys/k1", json!({}))
        .await;
    alice.make(&app, &["*"]).await;
}
