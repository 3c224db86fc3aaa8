//! The service in a test: the real router, a database, a Redis prefix and an object folder of its own, a clock that
//! stands still.

use std::io::Cursor;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use bytes::Bytes;
use chrono::TimeDelta;
use contracts::{Service, UserId};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use image::{ImageFormat, Rgb, RgbImage};
use media::{Config, Media};
use platform::{Env, Platform, testing};
use serde_json::{Value, json};
use sqlx::PgPool;
use tempfile::TempDir;
use tower::ServiceExt;

#[derive(Clone)]
pub struct TestApp {
    pub platform: Platform,
    pub media: Media,
    folder: Arc<TempDir>,
    router: Router,
}

/// A signed-in user.
#[derive(Clone)]
pub struct User {
    app: TestApp,
    token: String,
}

/// A reply, read whole.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Bytes,
    pub body: Value,
}

impl TestApp {
    pub async fn new(db: PgPool) -> Self {
        Self::with(db, []).await
    }

    /// With settings of the service.
    pub async fn with<const N: usize>(db: PgPool, settings: [(&str, &str); N]) -> Self {
        let folder = Arc::new(TempDir::new().unwrap());
        let path = folder.path().to_owned();
        let platform = testing::with(db, |shared| {
            shared.objects = platform::config::ObjectsAt::Folder(path);
            shared.shutdown_grace = std::time::Duration::from_millis(200);
        })
        .await;
        Self::on(platform, folder, settings).await
    }

    /// One more replica on the same stores.
    pub async fn replica<const N: usize>(&self, settings: [(&str, &str); N]) -> Self {
        Self::on(self.platform.clone(), self.folder.clone(), settings).await
    }

    async fn on<const N: usize>(
        platform: Platform,
        folder: Arc<TempDir>,
        settings: [(&str, &str); N],
    ) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut env = Env::of(settings);
        let config = Config::from_env(&mut env);
        env.finish().unwrap();
        let media = Media::new(&platform, config).await.unwrap();
        let router =
            platform::http::service(&platform, Service::Media, media::router(media.clone())).router;
        Self {
            platform,
            media,
            folder,
            router,
        }
    }

    pub async fn user(&self, name: &str) -> User {
        self.sign_in(name, &["user"]).await
    }

    pub async fn admin(&self) -> User {
        self.sign_in("admin", &["admin"]).await
    }

    async fn sign_in(&self, name: &str, roles: &[&str]) -> User {
        let id: UserId = name.parse().unwrap();
        let token = testing::sign_in(&self.platform, &id, roles).await;
        User {
            app: self.clone(),
            token,
        }
    }

    pub async fn call(&self, mut request: Request<Body>) -> Reply {
        let peer = SocketAddr::from(([203, 0, 113, 7], 40_000));
        request.extensions_mut().insert(ConnectInfo(peer));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Reply {
            status: parts.status,
            headers: parts.headers,
            bytes,
            body,
        }
    }

    pub async fn put(&self, url: &str, bytes: impl Into<Body>) -> Reply {
        self.call(Request::put(url).body(bytes.into()).unwrap())
            .await
    }

    /// The file behind an object's key.
    pub fn file(&self, key: &str) -> PathBuf {
        self.folder.path().join(key)
    }

    /// The object behind the key of an upload.
    pub async fn object_of(&self, key: &str) -> PathBuf {
        let object: String = self
            .scalar("select object_key from media.uploads where key = $1", key)
            .await;
        self.file(&object)
    }

    /// The files below a folder of the store.
    pub fn files(&self, folder: &str) -> usize {
        fn count(path: PathBuf) -> usize {
            let Ok(entries) = std::fs::read_dir(path) else {
                return 0;
            };
            entries
                .map(|entry| entry.unwrap().path())
                .map(|path| if path.is_dir() { count(path) } else { 1 })
                .sum()
        }
        count(self.file(folder))
    }

    /// The statuses in the events about a task.
    pub async fn events(&self, task: &str) -> Vec<String> {
        sqlx::query_scalar(
            "select event #>> '{data,status}' from platform.outbox where kind = 'task.finished' and event #>> '{data,taskId}' = $1",
        )
        .bind(task)
        .fetch_all(&self.platform.db)
        .await
        .unwrap()
    }

    /// Lets replicas work and time pass until every task has ended; the time that took.
    pub async fn until_all_end(&self, replicas: &[&TestApp]) -> TimeDelta {
        let began = self.platform.clock.now();
        loop {
            let work = replicas.iter().map(|replica| replica.media.run_jobs());
            for outcome in futures::future::join_all(work).await {
                outcome.unwrap();
            }
            let open: i64 = self
                .scalar(
                    "select count(*) from media.tasks where completed_at is null and id <> $1",
                    "",
                )
                .await;
            let took = self.platform.clock.now().utc() - began.utc();
            if open == 0 {
                return took;
            }
            assert!(took < TimeDelta::hours(3), "{open} tasks never end");
            self.platform.clock.advance(TimeDelta::seconds(3));
        }
    }

    /// One value about one thing.
    pub async fn scalar<T>(&self, statement: &'static str, id: &str) -> T
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        sqlx::query_scalar(statement)
            .bind(id)
            .fetch_one(&self.platform.db)
            .await
            .unwrap()
    }
}

impl User {
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        key: Option<&str>,
    ) -> Reply {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token));
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let request = request
            .header(header::CONTENT_TYPE, "application/json")
            .body(body);
        self.app.call(request.unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, None, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(Method::POST, path, Some(body), None).await
    }

    pub async fn address(&self, size: usize, content_type: &str) -> Reply {
        let body =
            json!({ "fileName": "a picture.png", "contentType": content_type, "size": size });
        self.post("/media/uploads", body)
            .await
            .expect(StatusCode::CREATED)
    }

    /// Uploads a picture; its key.
    pub async fn upload(&self, bytes: Vec<u8>) -> String {
        let address = self.address(bytes.len(), "image/png").await;
        self.app
            .put(&address.text("/uploadUrl"), bytes)
            .await
            .expect(StatusCode::OK);
        address.text("/key")
    }

    /// Creates a small stitch; its id.
    pub async fn stitch(&self, key: &str) -> String {
        self.post("/media/tasks", small(key))
            .await
            .expect(StatusCode::CREATED)
            .text("/id")
    }

    pub async fn task(&self, id: &str) -> Value {
        self.get(&format!("/media/tasks/{id}"))
            .await
            .expect(StatusCode::OK)
            .body
    }

    pub async fn cancel(&self, id: &str) -> Reply {
        self.post(&format!("/media/tasks/{id}/cancel"), json!({}))
            .await
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

    /// The fields at fault.
    pub fn faults(&self) -> Vec<&str> {
        let details = self.body["details"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        details
            .iter()
            .filter_map(|fault| fault["field"].as_str())
            .collect()
    }
}

/// A request for a small stitch of one picture.
pub fn small(key: &str) -> Value {
    json!({ "type": "image_stitch", "inputUrls": [key], "params": { "rows": 2, "columns": 2, "cell": 16, "gap": 2 } })
}

/// A PNG of one colour.
pub fn picture(width: u32, height: u32, colour: [u8; 3]) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::from_pixel(width, height, Rgb(colour))
        .write_to(&mut bytes, ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}
