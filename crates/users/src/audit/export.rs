//! The log as a file.

use axum::extract::State;
use axum::response::Response;
use platform::Admin;
use platform::export::Column::{self, Plain, Text, Time};
use platform::export::literal;
use platform::http::Query;
use platform::problem::ProblemBody;

use super::api::{Filter, SearchLog};
use super::{Entry, write};
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
    let select = select(&query.filter());
    let reply = state
        .exports
        .csv(&state.platform.db, "audit-log", &select)
        .await?;
    let entry = Entry::done(&caller.id, "audit_log.exported", ("audit_log", "csv"));
    let mut conn = state.platform.db.acquire().await?;
    write(&mut conn, entry, state.platform.clock.now()).await?;
    Ok(reply)
}

fn select(filter: &Filter) -> String {
    let mut select = format!(
        "select {} from (select l.*, a.username from users.audit_log l
            left join users.accounts a on a.id = l.user_id) t where true",
        Column::list(COLUMNS)
    );
    let mut equal = |column: &str, value: Option<String>| {
        if let Some(value) = value {
            select.push_str(&format!(" and {column} = {}", literal(value)));
        }
    };
    equal("user_id", filter.user_id.clone());
    equal("action", filter.action.clone());
    equal("resource_type", filter.resource_type.clone());
    equal("resource_id", filter.resource_id.clone());
    equal(
        "status",
        filter.status.map(|status| status.name().to_owned()),
    );
    equal("ip_address", filter.ip_address.clone());
    if let Some(start) = filter.start {
        select.push_str(&format!(" and t.created_at >= {}", literal(start)));
    }
    if let Some(end) = filter.end {
        select.push_str(&format!(" and t.created_at <= {}", literal(end)));
    }
    if let Some(search) = &filter.search {
        let search = literal(search);
        select.push_str(&format!(
            " and (strpos(action, {search}) > 0 or strpos(request_path, {search}) > 0 or resource_id = {search})"
        ));
    }
    select + " order by seq"
}
