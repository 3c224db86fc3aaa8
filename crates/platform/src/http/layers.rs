//! The layers around a service's routes: path, request id, metrics, panics, deadline, and the body of problems.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use contracts::Service;
use futures::FutureExt;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Uri, header};
use metrics::{counter, histogram};
use tracing::{Instrument, error, info_span};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use super::client::RequestId;
use super::limit;
use super::trace::TraceParent;
use crate::{Platform, Problem, health};

/// Clients give up after 10 s; we answer before.
const LONGEST: Duration = Duration::from_secs(8);
/// The largest body where a route sets no bound of its own.
const LARGEST_BODY: usize = 1 << 20;
const REQUEST_ID: &str = "x-request-id";

/// A service ready to be served, and the description of its routes.
pub struct Served {
    /// The routes with all layers around them.
    pub router: Router,
    /// What the routes say of themselves.
    pub openapi: OpenApi,
}

/// Puts the layers around a service's routes and adds health, metrics and the refusal of unknown routes.
pub fn service(platform: &Platform, service: Service, routes: OpenApiRouter) -> Served {
    let (routes, openapi) = routes.split_for_parts();
    let router = routes
        .merge(health::routes(platform, service))
        .fallback(|| async { Problem::not_found("route") })
        .method_not_allowed_fallback(|| async {
            Problem::new(
                http::StatusCode::METHOD_NOT_ALLOWED,
                "METHOD_NOT_ALLOWED",
                "the route has no such method",
            )
        })
        // A route that sets a bound of its own sets it further in, where it counts.
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(from_fn_with_state(service, addressed))
        .layer(from_fn_with_state((platform.clone(), service), around));
    // Only a layer around a router without routes of its own sees the request before it is routed.
    let router = Router::new()
        .fallback_service(router)
        .layer(from_fn(without_trailing_slash));
    Served { router, openapi }
}

/// The service that the gateway means: the port of an instance that died may be another service's a moment later, while the
/// registry still names it. Who is not meant does nothing and answers 421.
pub const ADDRESSEE: &str = "x-cloudphone-addressee";

/// The milliseconds that the caller still waits for the head of the reply. Relative, as no two clocks agree. It can only
/// shorten what a service allows itself: nobody works for a caller who is gone.
pub const DEADLINE: &str = "x-cloudphone-deadline-ms";

/// How long the handler of a request may take.
fn time_left(request: &Request) -> Duration {
    let told = request.headers().get(DEADLINE);
    let told = told.and_then(|left| left.to_str().ok()?.parse().ok());
    told.map_or(LONGEST, |left| LONGEST.min(Duration::from_millis(left)))
}

async fn addressed(State(service): State<Service>, request: Request, next: Next) -> Response {
    match request.headers().get(ADDRESSEE) {
        Some(named) if named != service.name() => problem_response(Problem::new(
            http::StatusCode::MISDIRECTED_REQUEST,
            "MISDIRECTED",
            "this is not the service that was meant",
        )),
        Some(_) | None => next.run(request).await,
    }
}

async fn without_trailing_slash(mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if path.len() > 1
        && path.ends_with('/')
        && !path.starts_with("/socket.io")
        && !path.starts_with("/ws/")
    {
        let trimmed = path.trim_end_matches('/');
        let trimmed = if trimmed.is_empty() { "/" } else { trimmed };
        let target = request
            .uri()
            .query()
            .map_or_else(|| trimmed.to_owned(), |query| format!("{trimmed}?{query}"));
        if let Ok(target) = PathAndQuery::try_from(target) {
            let mut parts = request.uri().clone().into_parts();
            parts.path_and_query = Some(target);
            if let Ok(uri) = Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
        }
    }
    next.run(request).await
}

async fn around(
    State((platform, service)): State<(Platform, Service)>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let id = request_id(&request);
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("none".to_owned(), |route| route.as_str().to_owned());
    request.extensions_mut().insert(RequestId(id.clone()));
    request.extensions_mut().insert(platform.auth.clone());
    let trace = TraceParent::read(request.headers()).unwrap_or_else(TraceParent::begin);
    let span = info_span!("request", request.id = %id, trace.id = %trace.trace, http.method = %method, http.path = %loggable(&path), service = %service);

    let left = time_left(&request);
    let answer = AssertUnwindSafe(next.run(request))
        .catch_unwind()
        .instrument(span.clone());
    let (answer, decision) = limit::noted(async {
        if left.is_zero() {
            return Ok(problem_response(Problem::not_ready(
                "the request came after its deadline; nothing was done",
            )));
        }
        if !has_deadline(&path) {
            return answer.await;
        }
        // Dropping the handler is no more than what happens to it when its caller hangs up.
        let answer = tokio::time::timeout(left, answer).await;
        answer.unwrap_or_else(|_| {
            Ok(problem_response(Problem::not_ready(format!(
                "the request took longer than {left:?}; try again"
            ))))
        })
    })
    .await;
    let mut response = answer.unwrap_or_else(|_| {
        span.in_scope(|| error!("the handler of {method} {route} panicked"));
        problem_response(Problem::internal())
    });

    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let mut reply = problem.reply(platform.clock.now(), Some(&id), Some(&path));
        for (name, value) in response.headers() {
            if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
                reply.headers_mut().append(name, value.clone());
            }
        }
        // The front door tells from it why its own routes refused.
        reply.extensions_mut().insert(problem);
        response = reply;
    }
    if let Some(decision) = decision {
        limit::tell(&decision, response.headers_mut());
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let status = response.status().as_u16().to_string();
    let labels = [
        ("service", service.name().to_owned()),
        ("method", known(&method).to_owned()),
        ("route", route),
    ];
    histogram!("http_request_duration_seconds", &labels).record(started.elapsed());
    counter!("http_requests_total", "service" => service.name(), "method" => labels[1].1.clone(), "route" => labels[2].1.clone(), "status" => status)
        .increment(1);
    response
}

fn problem_response(problem: Problem) -> Response {
    axum::response::IntoResponse::into_response(problem)
}

/// A client may call with any word as method; metrics know a few.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// Uploads and what stays open take as long as they take, and commands on devices as long as their callers allow.
fn has_deadline(path: &str) -> bool {
    let open = ["/upload", "/stream", "/shell", "/install"]
        .iter()
        .any(|end| path.ends_with(end));
    !open
        && ![
            "/apps/uploads",
            "/media/uploads/",
            "/billing/exports/",
            "/socket.io",
            "/ws",
        ]
        .iter()
        .any(|start| path.starts_with(start))
}

/// The path without the secret of a one-time address: as a service has it, or as the gateway is asked for it.
pub fn loggable(path: &str) -> &str {
    const TICKETS: &str = "/media/uploads/";
    let start = usize::from(path.starts_with("/api/")) * "/api".len();
    if path[start..].starts_with(TICKETS) {
        &path[..start + TICKETS.len()]
    } else {
        path
    }
}

fn request_id(request: &Request) -> String {
    request
        .headers()
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|id| {
            (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
        })
        .map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn any_path_is_logged_without_the_secret_of_a_one_time_address() {
        const WORDS: [&str; 8] = [
            "/api",
            "/media/uploads/",
            "/media",
            "/uploads",
            "/",
            "ticket",
            "/x",
            "%2f",
        ];
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(10)
            .for_each(|bytes: &[u8]| {
                let path = testkit::any::text(bytes, &WORDS);
                let told = loggable(&path);
                assert!(path.starts_with(told));
                for prefix in ["/media/uploads/", "/api/media/uploads/"] {
                    let secret = format!("{prefix}{path}");
                    assert_eq!(loggable(&secret), prefix);
                }
            });
    }

    #[test]
    fn any_header_shortens_the_time_of_a_request_or_says_nothing() {
        const WORDS: [&str; 8] = ["0", "1", "8000", "-", "+", "18446744073709551615", "9", "x"];
        bolero::check!()
            .with_iterations(1_000)
            .with_max_len(6)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                let Ok(value) = HeaderValue::from_str(&text) else {
                    return;
                };
                let mut request = Request::new(Body::empty());
                request.headers_mut().insert(DEADLINE, value.clone());
                request.headers_mut().insert(REQUEST_ID, value);
                assert!(time_left(&request) <= LONGEST);
                let id = request_id(&request);
                assert!(
                    (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()),
                    "{text}"
                );
            });
    }
}
