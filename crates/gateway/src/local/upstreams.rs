//! The instances behind this gateway replica, as it sees them.

use std::collections::HashMap;

use axum::extract::State;
use contracts::Timestamp;
use gateway::front::{GateReport, GroupReport};
use platform::Admin;
use platform::http::Json;
use platform::problem::ProblemBody;
use serde::Serialize;

use super::Local;

/// What the gateway knows of the instances behind it.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamReport {
    timestamp: Timestamp,
    /// All that are under way: inFlight of places, queued of queue, and how many were shed since the start.
    #[schema(value_type = Object)]
    requests: GateReport,
    #[schema(value_type = Object)]
    circuit_breakers: HashMap<&'static str, GroupReport>,
}

/// The instances behind this gateway replica, as it sees them.
#[utoipa::path(get, path = "/gateway/upstreams", tag = "gateway", responses((status = 200, body = UpstreamReport), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn upstreams(State(local): State<Local>, _: Admin) -> Json<UpstreamReport> {
    Json(report(&local))
}

/// The same under its older name.
#[utoipa::path(get, path = "/circuit-breaker/stats", tag = "gateway", responses((status = 200, body = UpstreamReport), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn breaker_stats(State(local): State<Local>, _: Admin) -> Json<UpstreamReport> {
    Json(report(&local))
}

fn report(local: &Local) -> UpstreamReport {
    UpstreamReport {
        timestamp: local.platform.clock.now(),
        requests: local.upstreams.requests(),
        circuit_breakers: local.upstreams.report(),
    }
}
