//! What must never happen, and whether it did.

use axum::extract::State;
use axum::response::Response;
use coordination::invariants::Report;
use platform::http::Json;
use platform::problem::ProblemBody;
use platform::{Admin, Problem};
use serde::Serialize;

use super::Local;

/// Findings of each invariant that are shown.
const FINDINGS: i64 = 50;

/// The invariants of the cluster: totals over all replicas there ever were, and the latest findings.
#[derive(Serialize, utoipa::ToSchema)]
pub struct InvariantsReply {
    /// `invariants`: each with invariant, total (must be 0), checkedAt, instance, error and findings;
    /// `fencedWrites`: each kind with its total and lastAt.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    report: Report,
}

/// What was found of what must never happen, and how many writes of late holders were refused.
#[utoipa::path(get, path = "/gateway/invariants", tag = "gateway", responses(
    (status = 200, body = InvariantsReply), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
    (status = 503, body = ProblemBody)))]
pub async fn report_invariants(
    State(local): State<Local>,
    _: Admin,
) -> Result<Json<InvariantsReply>, Response> {
    let report = local.invariants.report(FINDINGS).await.map_err(|error| {
        let problem = if error.is_unreachable() {
            Problem::not_ready("the database does not answer; try again")
        } else {
            Problem::internal()
        };
        problem.respond(&error)
    })?;
    Ok(Json(InvariantsReply { report }))
}
