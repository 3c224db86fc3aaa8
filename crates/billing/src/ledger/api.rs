//! The route that proves the ledger.

use axum::extract::State;
use platform::Admin;
use platform::http::Json;
use platform::problem::ProblemBody;

use super::verify::{self, Verdict};
use crate::{Billing, Result};

/// Proves that every kept balance follows from the ledger.
#[utoipa::path(get, path = "/admin/ledger/verify", tag = "balance",
    responses((status = 200, body = Verdict), (status = 403, body = ProblemBody)))]
pub async fn verify_ledger(State(state): State<Billing>, _: Admin) -> Result<Json<Verdict>> {
    let mut conn = state.platform.db.acquire().await?;
    let verdict = verify::check(&mut conn, state.platform.clock.now()).await?;
    Ok(Json(verdict))
}
