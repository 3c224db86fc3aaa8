//! The service on three instances that share a database, a Redis and a folder.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use apps::{Apps, Config};
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use bytes::Bytes;
use contracts::{Service, UserId};
use futures::stream;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use platform::config::ObjectsAt;
use platform::{Platform, testing};
use serde_json::Value;
use sqlx::PgPool;
use tower::ServiceExt;

pub const BOUNDARY: &str = "----boundary";

pub struct TestApp {
    pub platform: Platform,
    pub state: Apps,
    router: Router,
    other: Router,
    third: Router,
    uploads: AtomicUsize,
    folder: tempfile::TempDir,
}

/// Someone signed in.
pub struct User {
    pub id: UserId,
    token: String,
}

impl TestApp {
    pub async fn start(db: PgPool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let objects = ObjectsAt::Folder(folder.path().to_owned());
        Self::over(db, folder, objects).await
    }

    /// The service over objects that are kept there; what is kept lies below the folder.
    pub async fn over(db: PgPool, folder: tempfile::TempDir, objects: ObjectsAt) -> Self {
        let platform = testing::with(db, |settings| settings.objects = objects).await;
        let router = async || {
            let state = Apps::new(
                &platform,
                Config {
                    max_upload: 64 << 10,
                },
            )
            .await
            .unwrap();
            let router =
                platform::http::service(&platform, Service::Apps, apps::router(state.clone()))
                    .router;
            (state, router)
        };
        let ((state, router), (_, other), (_, third)) =
            (router().await, router().await, router().await);
        Self {
            platform,
            state,
            router,
            other,
            third,
            uploads: AtomicUsize::new(0),
            folder,
        }
    }

    pub async fn user(&self, roles: &[&str]) -> User {
        let id = UserId::new();
        let token = testing::sign_in(&self.platform, &id, roles).await;
        User { id, token }
    }

    /// Someone signed in with an account of this tenant.
    pub async fn tenant(&self, tenant: &str) -> User {
        let id = testing::account(&self.platform, &[]).await;
        sqlx::query("update users.accounts set tenant_id = $2 where id = $1")
            .bind(&id)
            .bind(tenant)
            .execute(&self.platform.db)
            .await
            .unwrap();
        let token = testing::sign_in(&self.platform, &id, &[]).await;
        User { id, token }
    }

    /// Every file in the object folder.
    pub fn files(&self) -> Vec<String> {
        fn collect(folder: &Path, into: &mut Vec<String>) {
            for entry in std::fs::read_dir(folder).unwrap().flatten() {
                if entry.path().is_dir() {
                    collect(&entry.path(), into);
                } else {
                    into.push(entry.path().display().to_string());
                }
            }
        }
        let mut files = Vec::new();
        collect(self.folder.path(), &mut files);
        files
    }

    pub async fn send(
        &self,
        user: &User,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Reply {
        Self::through(&self.router, user, method, path, headers, body).await
    }

    pub async fn get(&self, user: &User, path: &str) -> Reply {
        // By the other instance: nothing lives in a process.
        Self::through(&self.other, user, "GET", path, &[], Body::empty()).await
    }

    pub async fn fetch(&self, user: &User, path: &str, headers: &[(&str, &str)]) -> Reply {
        Self::through(&self.other, user, "GET", path, headers, Body::empty()).await
    }

    /// Uploads a form in chunks of this many bytes, each by the next instance.
    pub async fn upload(&self, user: &User, form: Vec<u8>, chunk: usize) -> Reply {
        let chunks: Vec<_> = form
            .chunks(chunk)
            .map(|bytes| Ok::<_, std::io::Error>(Bytes::copy_from_slice(bytes)))
            .collect();
        let kind = format!("multipart/form-data; boundary={BOUNDARY}");
        let body = Body::from_stream(stream::iter(chunks));
        let instances = [&self.router, &self.other, &self.third];
        let turn = self.uploads.fetch_add(1, Ordering::Relaxed) % instances.len();
        let headers = [("content-type", kind.as_str())];
        Self::through(
            instances[turn],
            user,
            "POST",
            "/apps/upload",
            &headers,
            body,
        )
        .await
    }

    /// Fetches as nobody, by the other instance.
    pub async fn fetch_unsigned(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Self::answer(&self.other, request.body(Body::empty()).unwrap()).await
    }

    /// Fetches as the service of devices does, by the other instance.
    pub async fn fetch_as_service(&self, path: &str, query: &str) -> Reply {
        let (auth, now) = (&self.platform.auth, self.platform.clock.now());
        let signed = auth.service_credential(Service::Devices, now, &Method::GET, path);
        let request = Request::get(format!("{path}{query}"))
            .header(platform::auth::SERVICE_HEADER, signed)
            .body(Body::empty());
        Self::answer(&self.other, request.unwrap()).await
    }

    async fn through(
        router: &Router,
        user: &User,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Reply {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {}", user.token));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Self::answer(router, request.body(body).unwrap()).await
    }

    async fn answer(router: &Router, mut request: Request<Body>) -> Reply {
        request
            .extensions_mut()
            .insert(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 50_000))));
        let (parts, body) = router.clone().oneshot(request).await.unwrap().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or_default();
        Reply {
            status: parts.status,
            headers: parts.headers,
            body,
            bytes,
        }
    }
}

/// A form with a file and fields beside it.
pub fn form(file: Option<&[u8]>, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut form = Vec::new();
    for (name, value) in fields {
        let head = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
        );
        form.extend(head.bytes());
    }
    if let Some(file) = file {
        let head = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.apk\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        form.extend(head.bytes());
        form.extend(file);
        form.extend(b"\r\n");
    }
    form.extend(format!("--{BOUNDARY}--\r\n").bytes());
    form
}

#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
    pub bytes: Bytes,
}

impl Reply {
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{:?}", self.body);
        self
    }

    #[track_caller]
    pub fn refused(self, status: u16, code: &str) {
        let reply = self.expect(status);
        assert_eq!(reply.body["error"], code, "{:?}", reply.body);
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }
}
