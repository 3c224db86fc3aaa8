//! The log as admins search it, and users their own part.

use std::collections::BTreeMap;

use axum::extract::State;
use contracts::{Timestamp, UserId};
use garde::Validate;
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::problem::ProblemBody;
use platform::{Admin, CurrentUser, Problem};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Status, db};
use crate::Users;
use crate::account::rule;
use crate::error::Result;

/// Which entries; all of the conditions hold.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct SearchLog {
    /// Which page, from 1.
    #[garde(range(min = 1, max = 1_000_000_000))]
    page: Option<i64>,
    /// How many on a page, 1 to 500; default 10.
    #[garde(range(min = 1))]
    page_size: Option<i64>,
    /// The same as `pageSize`.
    #[garde(range(min = 1))]
    limit: Option<i64>,
    /// Who did it.
    #[garde(inner(custom(short)))]
    user_id: Option<String>,
    /// As in `role.updated`.
    #[garde(inner(custom(short)))]
    action: Option<String>,
    /// info, warning or error: what was done, what somebody should look at, what was refused.
    #[garde(skip)]
    #[param(inline)]
    level: Option<Level>,
    /// As in `role`.
    #[garde(inner(custom(short)))]
    resource_type: Option<String>,
    /// Which one.
    #[garde(inner(custom(short)))]
    resource_id: Option<String>,
    /// Whether it was done.
    #[garde(skip)]
    success: Option<bool>,
    /// At this moment or later.
    #[garde(skip)]
    start_date: Option<Timestamp>,
    /// At this moment or before.
    #[garde(skip)]
    end_date: Option<Timestamp>,
    /// From there.
    #[garde(inner(custom(short)))]
    ip_address: Option<String>,
    /// Part of the action or the path, or the id of what it was done to.
    #[garde(inner(custom(short)))]
    search: Option<String>,
}

/// How much an entry matters.
#[derive(Clone, Copy, Debug, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Info,
    Warning,
    Error,
}

/// Which entries are wanted.
#[derive(Debug, Default)]
pub struct Filter {
    pub user_id: Option<String>,
    pub action: Option<String>,
    pub resource_type: Option<String>,
    pub resource_id: Option<String>,
    pub status: Option<Status>,
    pub start: Option<Timestamp>,
    pub end: Option<Timestamp>,
    pub ip_address: Option<String>,
    pub search: Option<String>,
}

/// An entry.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntry {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<String>,
    /// What the user is called now.
    #[serde(rename = "userName", skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    action: String,
    resource_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_id: Option<String>,
    /// The request; empty for what another service told of.
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<String>,
    status: Status,
    #[schema(value_type = Object)]
    details: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    changes: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    created_at: Timestamp,
}

/// How many entries there are.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditStatistics {
    total: i64,
    by_status: BTreeMap<String, i64>,
    by_action: BTreeMap<String, i64>,
}

impl SearchLog {
    fn page(&self) -> PageQuery {
        PageQuery {
            page: self.page,
            page_size: self.page_size,
            limit: self.limit,
            offset: None,
        }
    }

    /// The conditions without the page.
    pub fn filter(self) -> Filter {
        let by_level = self.level.map(|level| match level {
            Level::Info => Status::Success,
            Level::Warning => Status::Warning,
            Level::Error => Status::Failed,
        });
        let by_success = self.success.map(|success| match success {
            true => Status::Success,
            false => Status::Failed,
        });
        Filter {
            user_id: self.user_id,
            action: self.action,
            resource_type: self.resource_type,
            resource_id: self.resource_id,
            status: by_level.or(by_success),
            start: self.start_date,
            end: self.end_date,
            ip_address: self.ip_address,
            search: self.search,
        }
    }
}

/// Searches the log, newest first, for admins.
#[utoipa::path(get, path = "/audit-logs", tag = "audit", params(SearchLog), responses(
    (status = 200, body = Page<AuditEntry>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_audit_log(
    State(state): State<Users>,
    _: Admin,
    Query(query): Query<SearchLog>,
) -> Result<Json<Page<AuditEntry>>> {
    let page = query.page();
    paged(&state, &query.filter(), page).await
}

/// The same by another name.
#[utoipa::path(get, path = "/audit-logs/search", tag = "audit", params(SearchLog), responses(
    (status = 200, body = Page<AuditEntry>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn search_audit_log(
    state: State<Users>,
    admin: Admin,
    query: Query<SearchLog>,
) -> Result<Json<Page<AuditEntry>>> {
    list_audit_log(state, admin, query).await
}

/// What a user did: the caller, or anybody for admins.
#[utoipa::path(get, path = "/audit-logs/user/{userId}", tag = "audit", params(("userId" = UserId, Path), PageQuery), responses(
    (status = 200, body = Page<AuditEntry>), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_audit_log_of_user(
    State(state): State<Users>,
    caller: CurrentUser,
    Path(user): Path<UserId>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<AuditEntry>>> {
    let filter = Filter {
        user_id: Some(caller.acting_for(Some(user))?.to_string()),
        ..Filter::default()
    };
    paged(&state, &filter, page).await
}

/// What was done to something: by anybody for admins, else by the caller.
#[utoipa::path(get, path = "/audit-logs/resource/{type}/{id}", tag = "audit", params(("type" = String, Path), ("id" = String, Path), PageQuery), responses(
    (status = 200, body = Page<AuditEntry>), (status = 401, body = ProblemBody)))]
pub async fn list_audit_log_of_resource(
    State(state): State<Users>,
    caller: CurrentUser,
    Path((resource_type, resource_id)): Path<(String, String)>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<AuditEntry>>> {
    let filter = Filter {
        user_id: (!caller.is_admin).then(|| caller.id.to_string()),
        resource_type: Some(resource_type.replace('\0', "")),
        resource_id: Some(resource_id.replace('\0', "")),
        ..Filter::default()
    };
    paged(&state, &filter, page).await
}

/// How many entries there are of each action: of all users for admins, else of the caller.
#[utoipa::path(get, path = "/audit-logs/statistics", tag = "audit", responses(
    (status = 200, body = AuditStatistics), (status = 401, body = ProblemBody)))]
pub async fn audit_statistics(
    State(state): State<Users>,
    caller: CurrentUser,
) -> Result<Json<AuditStatistics>> {
    let mut conn = state.platform.db.acquire().await?;
    let user = (!caller.is_admin).then_some(&caller.id);
    let mut told = AuditStatistics {
        total: 0,
        by_status: BTreeMap::new(),
        by_action: BTreeMap::new(),
    };
    for (action, status, count) in db::statistics(&mut conn, user).await? {
        told.total += count;
        *told.by_status.entry(status.name().to_owned()).or_default() += count;
        *told.by_action.entry(action).or_default() += count;
    }
    Ok(Json(told))
}

/// One entry: of the caller, or anybody's for admins.
#[utoipa::path(get, path = "/audit-logs/{id}", tag = "audit", params(("id" = String, Path)), responses(
    (status = 200, body = AuditEntry), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn find_audit_entry(
    State(state): State<Users>,
    caller: CurrentUser,
    Path(id): Path<String>,
) -> Result<Json<AuditEntry>> {
    let mut conn = state.platform.db.acquire().await?;
    let entry = db::find(&mut conn, &id).await?;
    let is_own = |entry: &AuditEntry| entry.user_id.as_deref() == Some(caller.id.as_str());
    let entry = entry.filter(|entry| caller.is_admin || is_own(entry));
    Ok(Json(
        entry.ok_or_else(|| Problem::not_found("audit entry"))?,
    ))
}

async fn paged(state: &Users, filter: &Filter, page: PageQuery) -> Result<Json<Page<AuditEntry>>> {
    let mut conn = state.platform.db.acquire().await?;
    let total = db::count(&mut conn, filter).await?;
    let entries = db::list(&mut conn, filter, page.slice()).await?;
    Ok(Json(Page::new(entries, total, page)))
}

fn short(text: &str, _: &()) -> garde::Result {
    let fits = text.len() <= 200 && crate::account::is_storable(text);
    rule(fits, "must be at most 200 characters")
}
