//! The gateway's own routes: keys, documents, and what an administrator sees of the cluster.

mod cron;
mod dead_letters;
mod instances;
mod invariants;
mod requests;
mod upstreams;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use contracts::Service;
use coordination::{Invariants, Jobs, Snapshot};
use gateway::front::{Decisions, Upstreams};
use http::StatusCode;
use http::header::LOCATION;
use platform::Platform;
use platform::http::Json;
use serde_json::Value;
use tokio::sync::watch;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

use crate::docs;
use crate::explain::Inquiry;

pub use instances::Instance;

/// What the routes need.
#[derive(Clone)]
pub struct Local {
    /// Keys and the clock.
    pub platform: Platform,
    /// The instances behind this replica, as it sees them.
    pub upstreams: Upstreams,
    /// The instances of the cluster, as the registry has them.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The cron jobs of the cluster.
    pub jobs: Jobs,
    /// What must never happen.
    pub invariants: Invariants,
    /// The latest requests that went through this replica.
    pub decisions: Decisions,
    /// Asks other replicas for theirs.
    pub inquiry: Inquiry,
}

/// The gateway's own routes, with the layers of every service around them.
pub fn router(state: Local, health: Router) -> Router {
    let platform = state.platform.clone();
    // The page stands deeper than its name, since a trailing slash says nothing here and its links are relative.
    let page =
        SwaggerUi::new("/docs/page").external_url_unchecked("/openapi.json", docs::document());
    let routes = routes()
        .with_state(state)
        .merge(OpenApiRouter::from(health))
        .route(
            "/docs",
            get(|| async { (StatusCode::FOUND, [(LOCATION, "/api/docs/page/index.html")]) }),
        )
        .merge(OpenApiRouter::from(Router::from(page)));
    platform::http::service(&platform, Service::Gateway, routes).router
}

/// What these routes say of themselves.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().into_openapi()
}

fn routes() -> OpenApiRouter<Local> {
    OpenApiRouter::new()
        .routes(routes!(jwks))
        .routes(routes!(upstreams::upstreams))
        .routes(routes!(upstreams::breaker_stats))
        .routes(routes!(instances::list_instances))
        .routes(routes!(cron::list_jobs))
        .routes(routes!(cron::list_runs))
        .routes(routes!(cron::trigger_job))
        .routes(routes!(cron::pause_job))
        .routes(routes!(cron::resume_job))
        .routes(routes!(dead_letters::list_dead_letters))
        .routes(routes!(dead_letters::replay_dead_letter))
        .routes(routes!(dead_letters::discard_dead_letter))
        .routes(routes!(invariants::report_invariants))
        .routes(routes!(requests::explain_request))
}

/// The public keys that tokens are verified with.
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "gateway", security(()), responses((status = 200, description = "a JSON Web Key Set")))]
async fn jwks(State(local): State<Local>) -> Json<Value> {
    Json(local.platform.auth.tokens().jwks())
}
