//! Every route of every service holds an API key to its scope: the services themselves are asked.

use std::net::SocketAddr;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use contracts::Service;
use http::{Method, Request, StatusCode};
use platform::auth::api_key::{Wanted, besides, wanted};
use platform::{Env, Platform, http as service, testing};
use serde_json::Value;
use sqlx::PgPool;
use tower::ServiceExt;
use utoipa_axum::router::OpenApiRouter;

use crate::docs;

/// Sends its own proof, and looks after its sessions: it knows no keys.
const STREAM: &str = "/notifications/stream";

struct Services(Vec<(Service, Router)>);

impl Services {
    async fn on(platform: &Platform) -> Self {
        // The second test of a process finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut env = Env::of([("DEVICE_RUNTIME", "simulated")]);
        let users = users::Config::from_env(&mut env);
        let users = users::Users::new(platform, users).await.unwrap();
        let devices = devices::Config::from_env(&mut env);
        let devices = devices::Devices::new(platform, devices).await.unwrap();
        let apps = apps::Config::from_env(&mut env);
        let apps = apps::Apps::new(platform, apps).await.unwrap();
        let media = media::Config::from_env(&mut env);
        let media = media::Media::new(platform, media).await.unwrap();
        let billing = billing::Config::from_env(&mut env);
        let billing = billing::Billing::new(platform, billing).await.unwrap();
        let news = notifications::Config::from_env(&mut env);
        let news = notifications::Notifications::new(platform, news);
        let routes: [(Service, OpenApiRouter); 6] = [
            (
                Service::Users,
                users::router(users).merge(devices::quota_router(devices.quotas().clone())),
            ),
            (Service::Devices, devices::router(devices)),
            (Service::Apps, apps::router(apps)),
            (Service::Media, media::router(media)),
            (Service::Billing, billing::router(billing)),
            (
                Service::Notifications,
                notifications::router(news.await.unwrap()),
            ),
        ];
        let served = routes.map(|(name, routes)| {
            let served = service::service(platform, name, routes);
            (name, served.router)
        });
        Self(served.into())
    }

    async fn ask(
        &self,
        name: Service,
        method: &Method,
        path: &str,
        key: &str,
    ) -> (StatusCode, String) {
        let (_, router) = self.0.iter().find(|(other, _)| *other == name).unwrap();
        let request = Request::builder().method(method).uri(path);
        let request = request
            .header("x-api-key", key)
            .header("content-type", "application/json");
        let mut request = request.body(Body::from("{}")).unwrap();
        let peer = SocketAddr::from(([203, 0, 113, 7], 40_000));
        request.extensions_mut().insert(ConnectInfo(peer));
        let reply = router.clone().oneshot(request).await.unwrap();
        let status = reply.status();
        let body = to_bytes(reply.into_body(), 1 << 20).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let told = body["message"].as_str().unwrap_or_default();
        (status, told.to_owned())
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn every_route_holds_a_key_to_its_scope(db: PgPool) {
    let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
    let platform = testing::with(db, |settings| {
        settings.home = folder.clone();
        settings.objects = platform::config::ObjectsAt::Folder(folder.join("objects"));
    });
    let platform = platform.await;
    let services = Services::on(&platform).await;
    let root = testing::account(&platform, &["admin"]).await;
    let (_, narrow) = testing::api_key(&platform, &root, &["nothing:read"]).await;

    for (name, method, route) in docs::guarded_by_service() {
        if name == Service::Gateway || route == STREAM {
            continue;
        }
        let what = format!("{method} {route}");
        // As a parameter: what names nothing.
        let steps = route.split('/').map(|step| match step.starts_with('{') {
            true => "none",
            false => step,
        });
        let path = steps.collect::<Vec<_>>().join("/");
        let (status, told) = services.ask(name, &method, &path, &narrow).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{what}: {told}");
        match wanted(&method, &route) {
            Wanted::SignIn => assert!(told.contains("sign in"), "{what}: {told}"),
            Wanted::Scope(scope) => {
                let scope = scope.to_string();
                assert!(told.contains(&scope), "{what}: {told}");
                let also = besides(&method, &route).map(|scope| scope.to_string());
                if let Some(also) = &also {
                    let (_, half) = testing::api_key(&platform, &root, &[&scope]).await;
                    let (status, told) = services.ask(name, &method, &path, &half).await;
                    assert_eq!(status, StatusCode::FORBIDDEN, "{what}: {told}");
                    assert!(told.contains(also), "{what}: {told}");
                }
                let scopes: Vec<&str> = [Some(&scope), also.as_ref()]
                    .into_iter()
                    .flatten()
                    .map(String::as_str)
                    .collect();
                let (_, fitting) = testing::api_key(&platform, &root, &scopes).await;
                let (status, told) = services.ask(name, &method, &path, &fitting).await;
                assert!(!told.contains("API key"), "{what}: {status} {told}");
                assert_ne!(status, StatusCode::UNAUTHORIZED, "{what}: {told}");
            }
        }
    }
    let _ = std::fs::remove_dir_all(folder);
}
