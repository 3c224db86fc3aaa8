//! The gateway's own routes: keys, documents, and what it knows of the instances behind it.

use std::collections::HashMap;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use contracts::{Service, Timestamp};
use gateway::front::{GroupReport, Upstreams};
use http::StatusCode;
use http::header::LOCATION;
use platform::http::Json;
use platform::problem::ProblemBody;
use platform::{Admin, Platform};
use serde::Serialize;
use serde_json::Value;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

use crate::docs;

/// What the routes need.
#[derive(Clone)]
pub struct Local {
    platform: Platform,
    upstreams: Upstreams,
}

/// What the gateway knows of the instances behind it.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
struct UpstreamReport {
    timestamp: Timestamp,
    #[schema(value_type = Object)]
    circuit_breakers: HashMap<&'static str, GroupReport>,
}

/// The gateway's own routes, with the layers of every service around them.
pub fn router(platform: &Platform, upstreams: Upstreams, health: Router) -> Router {
    let state = Local {
        platform: platform.clone(),
        upstreams,
    };
    // The page stands deeper than its name, since a trailing slash says nothing here and its links are relative.
    let page = SwaggerUi::new("/docs/page").url("/openapi.json", docs::document());
    let routes = routes()
        .with_state(state)
        .merge(OpenApiRouter::from(health))
        .route(
            "/docs",
            get(|| async { (StatusCode::FOUND, [(LOCATION, "/api/docs/page/index.html")]) }),
        )
        .merge(OpenApiRouter::from(Router::from(page)));
    platform::http::service(platform, Service::Gateway, routes).router
}

/// What these routes say of themselves.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().into_openapi()
}

fn routes() -> OpenApiRouter<Local> {
    OpenApiRouter::new()
        .routes(routes!(jwks))
        .routes(routes!(upstreams))
        .routes(routes!(breaker_stats))
}

/// The public keys that tokens are verified with.
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "gateway", security(()), responses((status = 200, description = "a JSON Web Key Set")))]
async fn jwks(State(local): State<Local>) -> Json<Value> {
    Json(local.platform.auth.tokens().jwks())
}

/// The instances behind this gateway replica, as it sees them.
#[utoipa::path(get, path = "/gateway/upstreams", tag = "gateway", responses((status = 200, body = UpstreamReport), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
async fn upstreams(State(local): State<Local>, _: Admin) -> Json<UpstreamReport> {
    Json(report(&local))
}

/// The same under its older name.
#[utoipa::path(get, path = "/circuit-breaker/stats", tag = "gateway", responses((status = 200, body = UpstreamReport), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
async fn breaker_stats(State(local): State<Local>, _: Admin) -> Json<UpstreamReport> {
    Json(report(&local))
}

fn report(local: &Local) -> UpstreamReport {
    UpstreamReport {
        timestamp: local.platform.clock.now(),
        circuit_breakers: local.upstreams.report(),
    }
}
