//! Callers at the door: who has a token that is not good is refused there, and who is known is vouched for.

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use contracts::{Service, SessionId, UserId};
use gateway::front::{FrontConfig, Identities, Upstream};
use http::Method;
use platform::auth::Edge;
use platform::lifecycle::Tasks;
use platform::{CurrentUser, Platform, testing};
use sqlx::PgPool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use utoipa_axum::router::OpenApiRouter;

use crate::backend::Backend;
use crate::door::{Door, Reply, directory, eventually};

const WORD: &str = "x-cloudphone-identity";

/// A door that knows its callers before one instance of the device service.
struct Guarded {
    door: Door,
    tasks: Tasks,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}

impl Guarded {
    async fn before(platform: &Platform, upstream: Upstream) -> Self {
        let tasks = Tasks::new();
        platform.auth.api_keys().follow(&tasks);
        let routes = [
            (Method::GET, "/devices/{id}".to_owned()),
            (Method::GET, "/devices/{device_id}/metrics".to_owned()),
            (Method::POST, "/devices".to_owned()),
        ];
        let identities = Identities::new(Edge::new(platform, &tasks), routes).unwrap();
        let directory = directory(Service::Devices, &[upstream]);
        let config = FrontConfig::default();
        let door = Door::knowing(config, directory, None, Some(identities)).await;
        Self { door, tasks }
    }

    async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut request = self.door.request(method, path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.door.send(request.body(Body::empty()).unwrap()).await
    }

    /// Waits until the door has heard which keys changed, and gives its word.
    async fn vouches_for_key(&self, key: &str) {
        let word = async || {
            let reply = self.call("GET", "/devices/7", &[("x-api-key", key)]).await;
            reply.json()["headers"][WORD].is_string()
        };
        eventually("the door gives its word", word).await;
    }

    /// Waits until the door has heard who is gone, and gives its word.
    async fn vouches(&self, bearer: &str) {
        let word = async || {
            let reply = self
                .call("GET", "/devices/7", &[("authorization", bearer)])
                .await;
            reply.json()["headers"][WORD].is_string()
        };
        eventually("the door gives its word", word).await;
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_caller_is_vouched_for_and_cannot_vouch_for_itself(db: PgPool) {
    let platform = testing::platform(db).await;
    let instance = Backend::echo("a").await;
    let guarded = Guarded::before(&platform, instance.upstream()).await;
    let token = testing::sign_in(&platform, &UserId::new(), &[]).await;
    let bearer = format!("Bearer {token}");
    guarded.vouches(&bearer).await;

    for named in ["close", WORD, "X-Cloudphone-Identity, x-request-id"] {
        let headers = [
            ("authorization", bearer.as_str()),
            ("connection", named),
            (WORD, "mine"),
        ];
        let told = guarded.call("GET", "/api/devices/7", &headers).await.json();
        let word = told["headers"][WORD].as_str().unwrap_or_default();
        assert!(word.contains('.'), "{told}");
        assert_eq!(told["headers"]["authorization"], bearer);
    }
    for path in ["/api/devices/7", "/api/devices/7/unheard-of"] {
        let told = guarded.call("GET", path, &[(WORD, "mine")]).await.json();
        assert!(told["headers"][WORD].is_null(), "{told}");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_service_believes_the_word_of_the_door(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let routes = Router::new()
        .route(
            "/devices/{id}",
            get(async |user: CurrentUser| user.id.to_string()),
        )
        .fallback(async || "");
    let served = platform::http::service(&platform, Service::Devices, OpenApiRouter::from(routes));
    let [echo, instance] = [
        Backend::echo("echo").await,
        Backend::serve("a", served.router).await,
    ];
    let guarded = Guarded::before(&platform, echo.upstream()).await;
    let alice = UserId::new();
    let token = testing::sign_in(&platform, &alice, &[]).await;
    let bearer = format!("Bearer {token}");
    guarded.vouches(&bearer).await;
    guarded
        .door
        .register(Service::Devices, &[instance.upstream()]);

    // What would tell the service that the session lives is gone; an end is told by other ways.
    sqlx::query("delete from platform.sessions")
        .execute(&db)
        .await
        .unwrap();
    eventually("the instance is reached", async || {
        let path = "/api/devices/7/?a=%2F&b";
        let reply = guarded
            .call("GET", path, &[("authorization", &bearer)])
            .await;
        reply.body == alice.as_str()
    })
    .await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_token_that_is_not_good_is_refused_where_one_is_wanted(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let instance = Backend::echo("a").await;
    let guarded = Guarded::before(&platform, instance.upstream()).await;
    let alice = UserId::new();
    let token = testing::sign_in(&platform, &alice, &[]).await;
    let bearer = format!("Bearer {token}");
    guarded.vouches(&bearer).await;
    let session: SessionId =
        sqlx::query_scalar("select id from platform.sessions where user_id = $1")
            .bind(&alice)
            .fetch_one(&db)
            .await
            .unwrap();

    let before = instance.hits();
    for bad in [
        "Basic YTpi",
        "Bearer",
        "Bearer x.y.z",
        &format!("{bearer}x"),
    ] {
        for (method, path) in [
            ("GET", "/api/devices/7"),
            ("HEAD", "/devices/7/"),
            ("GET", "/devices/7/metrics"),
            ("POST", "/api/devices"),
        ] {
            let reply = guarded.call(method, path, &[("authorization", bad)]).await;
            assert_eq!(reply.status, 401, "{method} {path} {bad}");
            if method != "HEAD" {
                reply.expect_problem(401, "UNAUTHENTICATED");
            }
        }
    }
    assert_eq!(instance.hits(), before);
    // What is open, and what only the service knows, the service judges; and whoever bears no token.
    for (method, path) in [
        ("GET", "/devices"),
        ("PATCH", "/devices/7"),
        ("GET", "/devices/7/x"),
    ] {
        let reply = guarded
            .call(method, path, &[("authorization", "Bearer x.y.z")])
            .await;
        assert_eq!(reply.status, 200, "{method} {path}");
        assert!(reply.json()["headers"][WORD].is_null());
    }
    assert_eq!(guarded.call("GET", "/devices/7", &[]).await.status, 200);

    let now = platform.clock.now();
    platform.auth.sessions().end(&session, now).await.unwrap();
    eventually("the end is known", async || {
        let headers = [("authorization", bearer.as_str())];
        let reply = guarded.call("GET", "/devices/7", &headers).await;
        (reply.status == 401).then(|| reply.expect_problem(401, "UNAUTHENTICATED"));
        reply.status == 401
    })
    .await;
    platform.clock.advance(chrono::TimeDelta::days(2));
    let late = guarded
        .call("GET", "/devices/7", &[("authorization", &bearer)])
        .await;
    late.expect_problem(401, "TOKEN_EXPIRED");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_session_that_ends_between_two_halves_of_a_body_ends_the_request(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let instance = Backend::echo("a").await;
    let guarded = Guarded::before(&platform, instance.upstream()).await;
    let alice = UserId::new();
    let token = testing::sign_in(&platform, &alice, &[]).await;
    let bearer = format!("Bearer {token}");
    guarded.vouches(&bearer).await;
    let before = instance.hits();
    let mut client = TcpStream::connect(guarded.door.address).await.unwrap();
    let head = format!(
        "POST /devices HTTP/1.1\r\nHost: a\r\nAuthorization: {bearer}\r\nConnection: close\r\nContent-Length: 4\r\n\r\nha"
    );
    client.write_all(head.as_bytes()).await.unwrap();

    let now = platform.clock.now();
    let sessions = platform.auth.sessions();
    sessions.end_others(&alice, None, now).await.unwrap();
    eventually("the end is known", async || {
        let headers = [("authorization", bearer.as_str())];
        guarded.call("GET", "/devices/7", &headers).await.status == 401
    })
    .await;
    let reached = instance.hits() - before;
    client.write_all(b"lf").await.unwrap();

    let mut told = String::new();
    client.read_to_string(&mut told).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 401"), "{told}");
    assert_eq!(
        instance.hits() - before,
        reached,
        "the instance is not asked"
    );
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_api_key_goes_no_further_than_the_door_which_gives_its_word(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let routes = Router::new()
        .route(
            "/devices/{id}",
            get(async |user: CurrentUser| user.id.to_string()).delete(async |_: CurrentUser| ""),
        )
        .fallback(async || "");
    let served = platform::http::service(&platform, Service::Devices, OpenApiRouter::from(routes));
    let [echo, instance] = [
        Backend::echo("echo").await,
        Backend::serve("a", served.router).await,
    ];
    let guarded = Guarded::before(&platform, echo.upstream()).await;
    let alice = testing::account(&platform, &["user"]).await;
    let (_, key) = testing::api_key(&platform, &alice, &["devices:read"]).await;
    let headers = [("x-api-key", key.as_str())];
    guarded.vouches_for_key(&key).await;

    let reply = guarded.call("GET", "/api/devices/7", &headers).await;
    assert!(reply.json()["headers"][WORD].is_string());
    assert!(!reply.json().to_string().contains(&key));
    guarded
        .door
        .register(Service::Devices, &[instance.upstream()]);
    eventually("the instance is reached", async || {
        let reply = guarded.call("GET", "/api/devices/7", &headers).await;
        reply.body == alice.as_str()
    })
    .await;
    // The service holds the key to the scopes that stand in the word.
    let reply = guarded.call("DELETE", "/api/devices/7", &headers).await;
    reply.expect_problem(403, "FORBIDDEN");
    let told = reply.json().to_string();
    assert!(told.contains("devices:write"), "{told}");
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn an_api_key_that_is_not_good_is_refused_at_the_door(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let instance = Backend::echo("a").await;
    let guarded = Guarded::before(&platform, instance.upstream()).await;
    let alice = testing::account(&platform, &["user"]).await;
    let (id, key) = testing::api_key(&platform, &alice, &["*"]).await;
    let never = platform.auth.api_key_secret(&[7; 32]);
    let token = testing::sign_in(&platform, &alice, &[]).await;
    let bearer = format!("Bearer {token}");
    guarded.vouches_for_key(&key).await;

    let before = instance.hits();
    for bad in ["x", &key[1..], never.expose()] {
        let reply = guarded
            .call("GET", "/devices/7", &[("x-api-key", bad)])
            .await;
        reply.expect_problem(401, "UNAUTHENTICATED");
        assert!(!reply.json().to_string().contains(never.expose()));
    }
    let both = [("x-api-key", key.as_str()), ("authorization", &bearer)];
    let reply = guarded.call("GET", "/devices/7", &both).await;
    reply.expect_problem(400, "VALIDATION_FAILED");
    assert_eq!(instance.hits(), before);

    sqlx::query("update users.api_keys set status = 'revoked' where id = $1")
        .bind(&id)
        .execute(&db)
        .await
        .unwrap();
    eventually("the end is known", async || {
        let reply = guarded
            .call("GET", "/devices/7", &[("x-api-key", &key)])
            .await;
        reply.status == 401
    })
    .await;
}
