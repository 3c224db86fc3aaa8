//! The route of exports.

use axum::extract::State;
use axum::response::Response;
use contracts::UserId;
use garde::Validate;
use platform::CurrentUser;
use platform::http::{Path, Query};
use platform::problem::ProblemBody;
use serde::Deserialize;

use super::Table;
use super::tables::{self, Wanted};
use crate::times::Bound;
use crate::{Billing, Result, callers};

/// Which rows are wanted.
#[derive(Clone, Debug, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct ExportQuery {
    /// Whose; an admin who names nobody gets everybody's.
    #[garde(skip)]
    user_id: Option<UserId>,
    /// A day or a moment.
    #[param(value_type = Option<String>)]
    #[garde(skip)]
    start_date: Option<Bound>,
    /// A day or a moment, with which the span ends.
    #[param(value_type = Option<String>)]
    #[garde(skip)]
    end_date: Option<Bound>,
}

/// Streams a list as CSV with a header, oldest rows first: UTC times, amounts in yuan. Texts that a spreadsheet would take for
/// formulas begin with an apostrophe. An export takes a minute at most; one that fails on its way ends with a broken transfer
/// and never as if it were whole.
#[utoipa::path(get, path = "/billing/exports/{table}", tag = "statistics", params(("table" = inline(Table), Path), ExportQuery),
    responses((status = 200, content_type = "text/csv", body = String), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody), (status = 429, body = ProblemBody),
        (status = 503, body = ProblemBody, description = "As many exports as a replica carries are under way")))]
pub async fn export_table(
    State(state): State<Billing>,
    user: CurrentUser,
    Path(table): Path<Table>,
    Query(query): Query<ExportQuery>,
) -> Result<Response> {
    let owner = match query.user_id {
        None if user.is_admin => None,
        named => Some(user.acting_for(named)?),
    };
    callers::limit(&state, &user, "exports").await?;
    let wanted = Wanted {
        user: owner,
        from: query.start_date.map(Bound::start),
        to: query.end_date.map(Bound::end),
    };
    let select = tables::select(table, &wanted);
    let exports = &state.exports;
    Ok(exports
        .csv(&state.platform.db, table.name(), &select)
        .await?)
}
