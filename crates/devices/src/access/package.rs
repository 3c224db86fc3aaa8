//! Packages of the service of apps, which any of its instances streams to us.

use anyhow::Context;
use bytes::Bytes;
use contracts::{AppId, Service};
use futures::Stream;
use http::{Response, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use platform::http::Sibling;
use platform::{Platform, Problem};

use super::Viewer;

/// The header in which the service of apps names the Android package.
const PACKAGE_NAME: &str = "x-cloudphone-package";

/// The way to packages. Clones share connections.
#[derive(Clone)]
pub struct Packages {
    apps: Sibling,
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
        Self {
            apps: Sibling::new(platform, Service::Devices, Service::Apps),
        }
    }

    /// Begins to fetch the package of an app that a user may see.
    ///
    /// # Errors
    /// 404 where there is no such app for the user, 503 where no instance of the service of apps gives it.
    pub async fn fetch(&self, viewer: &Viewer, app: &AppId) -> Result<Package, Problem> {
        let path = format!("/internal/apps/{app}/package");
        let query = match viewer.is_admin {
            true => String::new(),
            false => format!("userId={}", viewer.id),
        };
        let begin = async |answer| Package::begin(answer);
        let package = self.apps.get(&path, &query, begin).await;
        package
            .map_err(|away| Problem::not_ready(away.to_string()))?
            .ok_or_else(|| Problem::not_found("app"))
    }
}

impl Package {
    fn begin(answer: Response<Incoming>) -> anyhow::Result<Self> {
        let text = |name| answer.headers().get(name)?.to_str().ok();
        let name = text(PACKAGE_NAME).context("its answer names no package")?;
        let size = text(header::CONTENT_LENGTH.as_str()).context("its answer names no size")?;
        Ok(Self {
            name: name.to_owned(),
            size: size.parse()?,
            body: answer.into_body(),
        })
    }

    /// The content, as it comes.
    pub fn stream(self) -> impl Stream<Item = Result<Bytes, hyper::Error>> + Unpin {
        self.body.into_data_stream()
    }
}
