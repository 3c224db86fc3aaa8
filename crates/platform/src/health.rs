//! `/health`, the probes, and `/metrics`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use contracts::{Service, Timestamp};
use fred::interfaces::ClientLike;
use http::{StatusCode, header};
use serde::Serialize;

use crate::http::Json;
use crate::{Platform, Problem, http as ours, telemetry};

const PROBE_DEADLINE: Duration = Duration::from_secs(1);

/// What a service says of itself.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// `ok`, or `degraded` where a dependency is missing.
    pub status: &'static str,
    /// The name that clients know.
    pub service: &'static str,
    /// Which instance answers.
    pub instance: String,
    /// The version of the program.
    pub version: &'static str,
    /// When it answered.
    pub timestamp: Timestamp,
    /// Seconds since the process started.
    pub uptime: u64,
    /// The profile.
    pub environment: &'static str,
    /// The stores behind it.
    pub dependencies: BTreeMap<&'static str, Dependency>,
}

/// A store behind the service.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Dependency {
    /// `healthy` or `unhealthy`.
    pub status: &'static str,
    /// Milliseconds until it answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_time: Option<u64>,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<&'static str>,
}

#[derive(Serialize)]
struct Probe {
    status: &'static str,
    timestamp: Timestamp,
    uptime: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'static str>,
}

/// The routes of health and metrics; the gateway has a `/health` of its own.
pub fn routes(platform: &Platform, service: Service) -> Router {
    let routes = Router::new()
        .route("/health/liveness", get(liveness))
        .route("/health/readiness", get(readiness))
        .route("/metrics", get(metrics));
    let routes = if service == Service::Gateway {
        routes
    } else {
        routes.route("/health", get(health))
    };
    routes.with_state((platform.clone(), service))
}

/// The state of a service and of the stores behind it, each asked with a deadline of a second.
pub async fn check(platform: &Platform, service: Service) -> Health {
    let (database, redis) = tokio::join!(
        probe(sqlx::query("select 1").execute(&platform.db)),
        probe(platform.redis.ping::<()>(None)),
    );
    let healthy = database.status == "healthy" && redis.status == "healthy";
    Health {
        status: if healthy { "ok" } else { "degraded" },
        service: service.public_name(),
        instance: platform.instance(service),
        version: env!("CARGO_PKG_VERSION"),
        timestamp: platform.clock.now(),
        uptime: platform.uptime().as_secs(),
        environment: platform.settings.profile.name(),
        dependencies: BTreeMap::from([("database", database), ("redis", redis)]),
    }
}

async fn probe<T, E>(call: impl IntoFuture<Output = Result<T, E>>) -> Dependency {
    let started = Instant::now();
    match tokio::time::timeout(PROBE_DEADLINE, call).await {
        Ok(Ok(_)) => Dependency {
            status: "healthy",
            response_time: Some(started.elapsed().as_millis().try_into().unwrap_or(u64::MAX)),
            message: None,
        },
        Ok(Err(_)) => Dependency {
            status: "unhealthy",
            response_time: None,
            message: Some("refused the probe"),
        },
        Err(_) => Dependency {
            status: "unhealthy",
            response_time: None,
            message: Some("no answer within 1 s"),
        },
    }
}

async fn health(State((platform, service)): State<(Platform, Service)>) -> Json<Health> {
    Json(check(&platform, service).await)
}

async fn liveness(State((platform, _)): State<(Platform, Service)>) -> Response {
    Json(answer(&platform, "ok", None)).into_response()
}

/// 503 while the process starts or drains, and when a store that it needs is down.
async fn readiness(State((platform, _)): State<(Platform, Service)>) -> Response {
    let reason = if !platform.readiness.is_ready() {
        Some("starting or draining")
    } else if probe(sqlx::query("select 1").execute(&platform.db))
        .await
        .status
        == "healthy"
    {
        None
    } else {
        Some("the database does not answer")
    };
    match reason {
        None => Json(answer(&platform, "ok", None)).into_response(),
        Some(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(answer(&platform, "error", reason)),
        )
            .into_response(),
    }
}

fn answer(platform: &Platform, status: &'static str, message: Option<&'static str>) -> Probe {
    Probe {
        status,
        timestamp: platform.clock.now(),
        uptime: platform.uptime().as_secs(),
        message,
    }
}

/// For the private network only; anybody else sees no such route.
async fn metrics(request: Request) -> Response {
    let (parts, _) = request.into_parts();
    if !ours::is_private_call(&parts.headers, &parts.extensions) {
        return Problem::not_found("route").into_response();
    }
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        telemetry::render_metrics(),
    )
        .into_response()
}
