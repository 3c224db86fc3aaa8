//! A router of a few routes with the layers of a service around it, and waiting for conditions.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use contracts::Service;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::BodyExt;
use platform::Platform;
use serde_json::Value;
use tower::ServiceExt;
use utoipa_axum::router::OpenApiRouter;

/// Asks until the answer is true.
pub async fn until(what: &str, ask: impl AsyncFnMut() -> bool) {
    within(Duration::from_secs(60), what, ask).await;
}

/// Asks until the answer is true, for so long: less than it takes until it is true for another reason.
pub async fn within(limit: Duration, what: &str, mut ask: impl AsyncFnMut() -> bool) {
    let ends = Instant::now() + limit;
    while !ask().await {
        assert!(Instant::now() < ends, "it did not come about: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Routes with all layers around them.
#[derive(Clone)]
pub struct App(Router);

impl App {
    pub fn new(platform: &Platform, routes: Router) -> Self {
        Self(
            platform::http::service(platform, Service::Billing, OpenApiRouter::from(routes)).router,
        )
    }

    pub fn call(&self, method: &str, path: &str) -> Call {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(Body::empty());
        let peer = IpAddr::from([127, 0, 0, 1]);
        Call {
            router: self.0.clone(),
            request: request.unwrap(),
            peer,
        }
    }

    pub fn get(&self, path: &str) -> Call {
        self.call("GET", path)
    }

    pub fn post(&self, path: &str, body: impl Into<Body>) -> Call {
        let mut call = self
            .call("POST", path)
            .header("content-type", "application/json");
        *call.request.body_mut() = body.into();
        call
    }
}

/// A call that is being put together.
pub struct Call {
    router: Router,
    request: Request<Body>,
    peer: IpAddr,
}

impl Call {
    pub fn header(mut self, name: &'static str, value: impl AsRef<str>) -> Self {
        self.request
            .headers_mut()
            .append(name, value.as_ref().parse().unwrap());
        self
    }

    pub fn body(mut self, body: &'static str) -> Self {
        *self.request.body_mut() = body.into();
        self
    }

    pub fn token(self, token: impl AsRef<str>) -> Self {
        self.header("authorization", format!("Bearer {}", token.as_ref()))
    }

    pub fn peer(mut self, peer: &str) -> Self {
        self.peer = peer.parse().unwrap();
        self
    }

    pub async fn send(mut self) -> Reply {
        self.request
            .extensions_mut()
            .insert(ConnectInfo(SocketAddr::new(self.peer, 50_000)));
        let response = self.router.oneshot(self.request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let body = serde_json::from_str(&text).unwrap_or_default();
        Reply {
            status: parts.status,
            headers: parts.headers,
            body,
            text,
        }
    }
}

/// What came back.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
    pub text: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// Expects a refusal, whole and of this status and code.
    #[track_caller]
    pub fn refused(&self, status: u16, code: &str) {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(
            self.header(header::CONTENT_TYPE.as_str()),
            "application/problem+json"
        );
        let body = &self.body;
        assert_eq!(
            (&body["status"], &body["statusCode"]),
            (&status.into(), &status.into())
        );
        assert_eq!(body["error"], code, "{self:?}");
        assert_eq!(body["detail"], body["message"]);
        for member in ["type", "title", "message", "requestId", "timestamp", "path"] {
            assert!(
                body[member].as_str().is_some_and(|text| !text.is_empty()),
                "{member} is missing in {body}"
            );
        }
        assert_eq!(body["requestId"], self.header("x-request-id"));
    }
}
