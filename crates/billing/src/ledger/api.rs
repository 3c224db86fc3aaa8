//! The route that proves the ledger.

use axum::extract::State;
use platform::Admin;
use platform::http::Json;
use platform::problem::ProblemBody;

use super::verify::{self, Verdict};
use crate::{Billing, Result};

/// Proves that every kept balance and refund follows from the ledger. Where that takes longer than five seconds, it is
/// the last proof that is shown, of every night at the latest: `checkedAt` tells.
#[utoipa::path(get, path = "/admin/ledger/verify", tag = "balance",
    responses((status = 200, body = Verdict), (status = 403, body = ProblemBody)))]
pub async fn verify_ledger(State(state): State<Billing>, _: Admin) -> Result<Json<Verdict>> {
    Ok(Json(verify::on_demand(&state).await?))
}
