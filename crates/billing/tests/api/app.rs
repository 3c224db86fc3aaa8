//! The service around a test's database, and those who call it.

use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use billing::{Billing, Config};
use contracts::{Service, UserId};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::BodyExt;
use platform::{Env, Platform};
use serde_json::Value;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tower::ServiceExt;

/// The secret with which the tests sign notices, and the one before it.
pub const SECRETS: &str =
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw,whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

pub struct TestApp {
    pub platform: Platform,
    pub billing: Billing,
    pub openapi: utoipa::openapi::OpenApi,
    router: Router,
}

/// Somebody who calls.
#[derive(Clone)]
pub struct Client {
    pub id: UserId,
    router: Router,
    token: Option<String>,
    from: SocketAddr,
}

pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
    /// The body as it came.
    pub text: String,
}

impl TestApp {
    pub async fn new(db: PgPool) -> Self {
        Self::around(platform::testing::platform(db).await).await
    }

    /// With the sandbox closed.
    pub async fn closed(db: PgPool) -> Self {
        let platform = platform::testing::with(db, |settings| settings.sandbox = false).await;
        Self::around(platform).await
    }

    /// Another replica, with connections of its own.
    pub async fn replica(db: &PgPool) -> Self {
        let options = PgPoolOptions::new().max_connections(12);
        let pool = options.connect_with((*db.connect_options()).clone());
        Self::new(pool.await.unwrap()).await
    }

    /// With more settings than the keys of notices.
    pub async fn with(db: PgPool, settings: &[(&str, &str)]) -> Self {
        Self::set(platform::testing::platform(db).await, settings).await
    }

    pub async fn around(platform: Platform) -> Self {
        Self::set(platform, &[]).await
    }

    async fn set(platform: Platform, settings: &[(&str, &str)]) -> Self {
        // Clients of providers speak TLS; the second test of a process finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let keys = ("PAYMENT_WEBHOOK_SECRETS", SECRETS);
        let mut env: Env = settings.iter().copied().chain([keys]).collect();
        let config = Config::from_env(&mut env);
        env.finish().unwrap();
        let billing = Billing::new(&platform, config).await.unwrap();
        let routes = billing::router(billing.clone());
        let served = platform::http::service(&platform, Service::Billing, routes);
        Self {
            platform,
            billing,
            openapi: served.openapi,
            router: served.router,
        }
    }

    /// Nobody known, on this machine.
    pub fn anybody(&self) -> Client {
        Client {
            id: "nobody".parse().unwrap(),
            router: self.router.clone(),
            token: None,
            from: "127.0.0.1:5000".parse().unwrap(),
        }
    }

    pub async fn user(&self, name: &str) -> Client {
        self.signed_in(name, &["user"]).await
    }

    pub async fn admin(&self) -> Client {
        self.signed_in("boss", &["admin"]).await
    }

    pub async fn admin_named(&self, name: &str) -> Client {
        self.signed_in(name, &["admin"]).await
    }

    async fn signed_in(&self, name: &str, roles: &[&str]) -> Client {
        let id: UserId = name.parse().unwrap();
        let token = platform::testing::sign_in(&self.platform, &id, roles).await;
        Client {
            id,
            token: Some(token),
            ..self.anybody()
        }
    }

    /// Runs a cron job now.
    pub async fn run_job(&self, name: &str) {
        let jobs = self.billing.cron_jobs();
        let job = jobs.iter().find(|job| job.name == name).unwrap();
        let token = "insert into coordination.fences (key, token) values ('tests', 1) on conflict do nothing";
        let token = sqlx::query(token).execute(&self.platform.db).await;
        token.unwrap();
        let run = coordination::cron::Run {
            job: job.name,
            fence_key: "tests".into(),
            slot: self.platform.clock.now().utc(),
            fence: coordination::Fence(1),
            attempt: 1,
            cancelled: Default::default(),
        };
        job.start(run).await.unwrap();
    }

    pub async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql)
            .fetch_one(&self.platform.db)
            .await
            .unwrap()
    }

    pub async fn events(&self, kind: &str) -> i64 {
        sqlx::query_scalar("select count(*) from platform.outbox where kind = $1")
            .bind(kind)
            .fetch_one(&self.platform.db)
            .await
            .unwrap()
    }
}

impl Client {
    /// The same caller on another machine.
    pub fn elsewhere(&self) -> Self {
        Self {
            from: "10.1.2.3:5000".parse().unwrap(),
            ..self.clone()
        }
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Request::get(path), String::new()).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        self.send(request, body.to_string()).await
    }

    pub async fn post_once(&self, path: &str, key: &str, body: Value) -> Reply {
        let request = Request::post(path)
            .header(header::CONTENT_TYPE, "application/json")
            .header("idempotency-key", key);
        self.send(request, body.to_string()).await
    }

    pub async fn form(&self, path: &str, body: &str) -> Reply {
        let kind = "application/x-www-form-urlencoded";
        let request = Request::post(path).header(header::CONTENT_TYPE, kind);
        self.send(request, body.to_owned()).await
    }

    pub async fn send(&self, request: http::request::Builder, body: String) -> Reply {
        self.send_bytes(request, body.into_bytes()).await
    }

    /// The body as it comes, of a request that is answered 200.
    pub async fn open(&self, path: &str) -> axum::body::BodyDataStream {
        let response = self.respond(Request::get(path), Vec::new()).await;
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body().into_data_stream()
    }

    pub async fn send_bytes(&self, request: http::request::Builder, body: Vec<u8>) -> Reply {
        let (parts, body) = self.respond(request, body).await.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Reply {
            status: parts.status,
            headers: parts.headers,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }
    }

    async fn respond(
        &self,
        request: http::request::Builder,
        body: Vec<u8>,
    ) -> axum::response::Response {
        let mut request = request.body(Body::from(body)).unwrap();
        if let Some(token) = &self.token {
            let value = format!("Bearer {token}").parse().unwrap();
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        request.extensions_mut().insert(ConnectInfo(self.from));
        self.router.clone().oneshot(request).await.unwrap()
    }

    /// Orders a plan and gives the order's id.
    pub async fn order(&self, plan: &str) -> String {
        let body = serde_json::json!({ "userId": self.id, "planId": plan });
        let reply = self.post("/orders", body).await.is(201);
        reply["id"].as_str().unwrap().to_owned()
    }

    /// Pays an order by an unsigned notice.
    pub async fn pay(&self, order: &str) {
        let body = format!("orderId={order}&status=paid&transactionId=tx-{order}");
        self.form("/webhooks/payment", &body).await.is(200);
    }
}

impl Reply {
    /// The body, if the status is the one expected.
    #[track_caller]
    pub fn is(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        self.body
    }

    /// The refusal, if it is the one expected.
    #[track_caller]
    pub fn refused(self, status: u16, code: &str) -> Value {
        assert_eq!(self.body["error"], code, "{}", self.body);
        self.is(status)
    }
}
