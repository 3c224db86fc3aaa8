//! Packages of the service of apps, which any of its instances streams to us.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use contracts::{AppId, Service};
use coordination::Registry;
use futures::Stream;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use platform::auth::SERVICE_HEADER;
use platform::{Platform, Problem};
use tokio::time::timeout;
use tracing::warn;

use super::Viewer;

/// The header in which the service of apps names the Android package.
const PACKAGE_NAME: &str = "x-cloudphone-package";
/// How long an instance may take to accept a connection, and to begin its answer.
const CONNECT: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(3);
/// How long the registry may take to tell where they are.
const FIND: Duration = Duration::from_secs(2);
/// How many instances are asked.
const ASKED: usize = 3;

/// The way to packages. Clones share connections.
#[derive(Clone)]
pub struct Packages {
    platform: Platform,
    client: Client<HttpConnector, Body>,
}

/// A package on its way.
#[derive(Debug)]
pub struct Package {
    /// The Android package.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Its content.
    body: Incoming,
}

impl Packages {
    /// Connects when it is used.
    pub fn new(platform: &Platform) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        Self {
            platform: platform.clone(),
            client: Client::builder(TokioExecutor::new()).build(connector),
        }
    }

    /// Begins to fetch the package of an app that a user may see.
    ///
    /// # Errors
    /// 404 where there is no such app for the user, 503 where no instance of the service of apps gives it.
    pub async fn fetch(&self, viewer: &Viewer, app: &AppId) -> Result<Package, Problem> {
        let registry = Registry::new(self.platform.redis.clone(), self.platform.keys.clone());
        let snapshot = timeout(FIND, registry.read()).await;
        let Ok(Ok(snapshot)) = snapshot else {
            return Err(Problem::not_ready(
                "nobody can tell where the service of apps is; try again",
            ));
        };
        let mut instances: Vec<_> = snapshot.of(Service::Apps.name()).iter().collect();
        // Who leaves is asked last, the least loaded first.
        instances.sort_by_key(|entry| (entry.load.draining, entry.load.outstanding));
        for entry in instances.into_iter().take(ASKED) {
            let address = &entry.announcement.address;
            match timeout(ANSWER, self.ask(address, viewer, app)).await {
                Ok(Ok(package)) => return Ok(package),
                Ok(Err(Refusal::NoSuchApp)) => return Err(Problem::not_found("app")),
                Ok(Err(Refusal::Failed(why))) => {
                    warn!(
                        "{} of apps at {address} gave no package: {why}",
                        entry.instance
                    );
                }
                Err(_) => warn!("{} of apps at {address} did not answer", entry.instance),
            }
        }
        Err(Problem::not_ready(
            "no instance of the service of apps gives the package; try again",
        ))
    }

    async fn ask(&self, address: &str, viewer: &Viewer, app: &AppId) -> Result<Package, Refusal> {
        let failed = |error: &dyn std::error::Error| Refusal::Failed(error.to_string());
        let path = format!("/internal/apps/{app}/package");
        let now = self.platform.clock.now();
        let credential =
            self.platform
                .auth
                .service_credential(Service::Devices, now, &Method::GET, &path);
        let query = match viewer.is_admin {
            true => String::new(),
            false => format!("?userId={}", viewer.id),
        };
        let request = Request::get(format!("http://{address}{path}{query}"))
            .header(SERVICE_HEADER, credential)
            .body(Body::empty())
            .map_err(|error| failed(&error))?;
        let answer = self.client.request(request).await;
        let answer = answer.map_err(|error| failed(&error))?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(Refusal::NoSuchApp),
            status => return Err(Refusal::Failed(format!("it answered {status}"))),
        }
        let text = |name| answer.headers().get(name)?.to_str().ok();
        let name = text(PACKAGE_NAME).map(str::to_owned);
        let size = text(header::CONTENT_LENGTH.as_str()).and_then(|size| size.parse().ok());
        match (name, size) {
            (Some(name), Some(size)) => Ok(Package {
                name,
                size,
                body: answer.into_body(),
            }),
            _ => Err(Refusal::Failed(
                "its answer names no package or no size".to_owned(),
            )),
        }
    }
}

impl Package {
    /// The content, as it comes.
    pub fn stream(self) -> impl Stream<Item = Result<Bytes, hyper::Error>> + Unpin {
        self.body.into_data_stream()
    }
}

enum Refusal {
    NoSuchApp,
    Failed(String),
}
