//! The log as a file.

use axum::extract::State;
use axum::response::Response;
use platform::Admin;
use platform::export::Column::{self, Plain, Text, Time};
use platform::http::Query;
use platform::problem::ProblemBody;

use super::api::SearchLog;
use super::{Entry, db, write};
use crate::Users;
use crate::error::Result;

const COLUMNS: &[Column] = &[
    Plain("id"),
    Time("created_at"),
    Plain("user_id"),
    Text("username"),
    Text("action"),
    Text("resource_type"),
    Text("resource_id"),
    Plain("status"),
    Text("ip_address"),
    Text("user_agent"),
    Plain("method"),
    Text("request_path"),
    Text("request_id"),
    Plain("details"),
    Plain("changes"),
];

/// Streams what a search finds as CSV with a header, oldest entries first, times in UTC; `page` and `pageSize` say nothing here.
/// An export takes a minute at most; one that fails on its way ends with a broken transfer and never as if it were whole. It
/// stands in the log itself.
#[utoipa::path(get, path = "/audit-logs/export", tag = "audit", params(SearchLog), responses(
    (status = 200, content_type = "text/csv", body = String), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody),
    (status = 403, body = ProblemBody), (status = 503, body = ProblemBody, description = "As many exports as a replica carries are under way")))]
pub async fn export_audit_log(
    State(state): State<Users>,
    Admin(caller): Admin,
    Query(query): Query<SearchLog>,
) -> Result<Response> {
    let select = format!(
        "select {} from ({}) entry order by seq",
        Column::list(COLUMNS),
        db::exported(&query.filter())
    );
    let reply = state
        .exports
        .csv(&state.platform.db, "audit-log", &select)
        .await?;
    let entry = Entry::done(&caller.id, "audit_log.exported", ("audit_log", "csv"));
    let mut conn = state.platform.db.acquire().await?;
    write(&mut conn, entry, state.platform.clock.now()).await?;
    Ok(reply)
}
