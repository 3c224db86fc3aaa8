//! The service in a test: the real router, a database and a Redis prefix of its own, a clock that stands still.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use contracts::{Service, UserId};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use platform::{Env, Platform, Settings, testing};
use serde_json::{Value, json};
use sqlx::PgPool;
use tower::ServiceExt;
use users::{Config, Users};

pub const PASSWORD: &str = "Abcdefg1";

#[derive(Clone)]
pub struct TestApp {
    pub platform: Platform,
    pub users: Users,
    router: Router,
}

/// A reply, read whole.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
}

impl TestApp {
    pub async fn new(db: PgPool) -> Self {
        Self::with(db, |_| {}).await
    }

    pub async fn with(db: PgPool, change: impl FnOnce(&mut Settings)) -> Self {
        Self::on(testing::with(db, change).await).await
    }

    /// One whose settings say so.
    pub async fn costing<const N: usize>(db: PgPool, settings: [(&str, &str); N]) -> Self {
        Self::set(testing::with(db, |_| {}).await, Env::of(settings)).await
    }

    /// One more instance on the same stores.
    pub async fn on(platform: Platform) -> Self {
        Self::set(platform, Env::of([])).await
    }

    /// The same with settings.
    pub async fn on_with<const N: usize>(platform: Platform, settings: [(&str, &str); N]) -> Self {
        Self::set(platform, Env::of(settings)).await
    }

    async fn set(platform: Platform, mut env: Env) -> Self {
        let users = Users::new(&platform, Config::from_env(&mut env))
            .await
            .unwrap();
        let router =
            platform::http::service(&platform, Service::Users, users::router(users.clone())).router;
        Self {
            platform,
            users,
            router,
        }
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<Value>,
    ) -> Reply {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = match body {
            Some(body) => request
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::from(body.to_string())),
            None => request.body(Body::empty()),
        };
        self.call(request.unwrap()).await
    }

    pub async fn call(&self, mut request: Request<Body>) -> Reply {
        let peer = SocketAddr::from(([203, 0, 113, 7], 40_000));
        request.extensions_mut().insert(ConnectInfo(peer));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Reply {
            status: parts.status,
            headers: parts.headers,
            // A file is a text.
            body: serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned())),
        }
    }

    pub async fn get(&self, path: &str, token: &str) -> Reply {
        self.send(Method::GET, path, Some(token), None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(Method::POST, path, None, Some(body)).await
    }

    /// Registers a user with [`PASSWORD`].
    pub async fn register(&self, name: &str) -> UserId {
        let body = json!({ "username": name, "email": format!("{name}@example.com"), "password": PASSWORD });
        let reply = self
            .post("/auth/register", body)
            .await
            .expect(StatusCode::CREATED);
        reply.text("/user/id").parse().unwrap()
    }

    pub async fn try_login(&self, name: &str, password: &str) -> Reply {
        self.post(
            "/auth/login",
            json!({ "username": name, "password": password }),
        )
        .await
    }

    /// Signs in with [`PASSWORD`].
    pub async fn login(&self, name: &str) -> Reply {
        self.try_login(name, PASSWORD).await.expect(StatusCode::OK)
    }

    /// Whether a token opens the door.
    pub async fn accepts(&self, token: &str) -> bool {
        self.get("/auth/me", token).await.status == StatusCode::OK
    }

    /// The kinds of the events so far, sorted.
    pub async fn events(&self) -> Vec<String> {
        sqlx::query_scalar("select kind from platform.outbox order by kind")
            .fetch_all(&self.platform.db)
            .await
            .unwrap()
    }
}

impl Reply {
    #[track_caller]
    pub fn expect(self, status: StatusCode) -> Self {
        assert_eq!(self.status, status, "{}", self.body);
        self
    }

    /// A refusal with a status and a code.
    #[track_caller]
    pub fn refused(self, status: u16, code: &str) -> Self {
        assert_eq!(
            (self.status.as_u16(), &self.body["error"]),
            (status, &json!(code)),
            "{}",
            self.body
        );
        self
    }

    #[track_caller]
    pub fn text(&self, pointer: &str) -> String {
        let value = self.body.pointer(pointer).and_then(Value::as_str);
        value
            .unwrap_or_else(|| panic!("no text {pointer} in {}", self.body))
            .to_owned()
    }

    /// The names of the fields at fault, sorted.
    pub fn faults(&self) -> Vec<String> {
        let details = self.body["details"].as_array().cloned().unwrap_or_default();
        let mut fields: Vec<_> = details
            .iter()
            .map(|fault| fault["field"].as_str().unwrap().to_owned())
            .collect();
        fields.sort_unstable();
        fields
    }
}
