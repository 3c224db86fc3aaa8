//! Rules, their executions, and what an administrator has done at once.

use axum::extract::State;
use contracts::{DeviceId, TaskId, Timestamp};
use garde::Validate;
use http::StatusCode;
use platform::Problem;
use platform::auth::Admin;
use platform::http::{Json, Page, PageQuery, Path, Query};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use super::view::{Execution, LifecycleRule, TypeStats};
use super::{MOST_RULES, Rule, RuleType, db, effects, next_due, run};
use crate::batch::PATIENCE;
use crate::{Devices, error::Result};

/// How many devices a dry run names.
const MOST_NAMED: i64 = 100;

/// What a rule shall be.
#[derive(Clone, Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PutRule {
    /// What people call it, 1 to 100 characters.
    #[garde(length(chars, min = 1, max = 100))]
    pub name: String,
    /// What it does.
    #[serde(rename = "type")]
    #[garde(skip)]
    pub kind: RuleType,
    /// A cron expression of five fields.
    #[garde(length(max = 100))]
    pub schedule: String,
    /// Whose clocks it follows; default UTC.
    #[garde(length(max = 100))]
    pub time_zone: Option<String>,
    /// What it does exactly: `errorDays`, `stoppedDays` of a cleanup; `keep`, `userId`, `groupName` of a backup; `days` of an
    /// expiration-warning; `templateId`, `userId`, `groupName`, `ready`, `max` of an autoscaling.
    #[garde(skip)]
    #[schema(value_type = Option<Object>)]
    pub config: Option<Value>,
    /// Default true.
    #[garde(skip)]
    pub enabled: Option<bool>,
    /// Of rules that are due at once, the higher one is first, -1000 to 1000; default 0.
    #[garde(range(min = -1000, max = 1000))]
    pub priority: Option<i32>,
}

/// Whether a rule is enabled from now on.
#[derive(Clone, Copy, Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
pub struct ToggleRule {
    /// The opposite of what it is, where it is left out.
    #[garde(skip)]
    pub enabled: Option<bool>,
}

/// Which rules are wanted.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RulesQuery {
    /// Of this type.
    #[serde(rename = "type")]
    #[garde(skip)]
    #[param(inline)]
    pub kind: Option<RuleType>,
}

/// Which executions are wanted.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    /// Of this rule.
    #[garde(length(max = 64))]
    pub rule_id: Option<String>,
    /// Of this type.
    #[serde(rename = "type")]
    #[garde(skip)]
    #[param(inline)]
    pub kind: Option<RuleType>,
}

/// What would be done.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DryRun {
    rule_id: String,
    /// How many devices would be affected; more than 100 are not counted.
    affected: usize,
    /// Which; those that would be made have no name yet.
    devices: Vec<DeviceId>,
    message: String,
}

/// What was done at once.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Triggered {
    message: String,
    /// How many devices were affected so far.
    affected: i64,
    /// The first execution; left out where no rule is enabled.
    #[serde(skip_serializing_if = "Option::is_none")]
    execution_id: Option<String>,
    /// All of them.
    execution_ids: Vec<String>,
}

/// One sentence.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Said {
    message: &'static str,
}

/// How all rules have done.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LifecycleStats {
    total_rules: i64,
    enabled_rules: i64,
    executions: i64,
    affected: i64,
    failed: i64,
    by_type: Vec<TypeStats>,
}

/// Lists rules, newest first.
#[utoipa::path(get, path = "/devices/lifecycle/rules", tag = "lifecycle", params(RulesQuery, PageQuery), responses((status = 200, body = Page<LifecycleRule>), (status = 403)))]
pub async fn list_rules(
    State(state): State<Devices>,
    _: Admin,
    Query(query): Query<RulesQuery>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<LifecycleRule>>> {
    let mut conn = state.platform.db.acquire().await?;
    let (rules, total) = db::list(&mut conn, query.kind, page.slice()).await?;
    Ok(Json(Page::new(rules, total, page)))
}

/// Makes a rule.
#[utoipa::path(post, path = "/devices/lifecycle/rules", tag = "lifecycle", request_body = PutRule, responses((status = 201, body = LifecycleRule), (status = 400), (status = 403), (status = 409, description = "There are 100 rules")))]
pub async fn create_rule(
    State(state): State<Devices>,
    Admin(admin): Admin,
    Json(body): Json<PutRule>,
) -> Result<(StatusCode, Json<LifecycleRule>)> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let rule = rule(&state, TaskId::new().to_string(), body, (now, now))?;
    db::lock_all(&mut tx).await?;
    if !db::put(&mut tx, &rule, &admin.id, MOST_RULES).await? {
        let text = format!("there are {MOST_RULES} lifecycle rules: delete one first");
        return Err(Problem::conflict("CONFLICT", text).into());
    }
    let rule = found(db::find(&mut tx, &rule.id).await?)?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, Json(rule)))
}

/// Shows a rule.
#[utoipa::path(get, path = "/devices/lifecycle/rules/{id}", tag = "lifecycle", params(("id" = String, Path)), responses((status = 200, body = LifecycleRule), (status = 403), (status = 404)))]
pub async fn find_rule(
    State(state): State<Devices>,
    _: Admin,
    Path(id): Path<String>,
) -> Result<Json<LifecycleRule>> {
    let mut conn = state.platform.db.acquire().await?;
    Ok(Json(found(db::find(&mut conn, &id).await?)?))
}

/// Gives a rule another text. What it has under way goes on by the new one at once, and ends where the rule is disabled. A due
/// time that has come is kept where neither the schedule nor its time zone changes.
#[utoipa::path(put, path = "/devices/lifecycle/rules/{id}", tag = "lifecycle", params(("id" = String, Path)), request_body = PutRule, responses((status = 200, body = LifecycleRule), (status = 400), (status = 403), (status = 404)))]
pub async fn put_rule(
    State(state): State<Devices>,
    Admin(admin): Admin,
    Path(id): Path<String>,
    Json(body): Json<PutRule>,
) -> Result<Json<LifecycleRule>> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let before = found(db::lock(&mut tx, &id).await?)?;
    let mut rule = rule(&state, id, body, (before.created_at, now))?;
    if rule.kind != before.kind {
        let text = "cannot be changed: delete the rule and make another one";
        return Err(Problem::invalid_field("type", text).into());
    }
    let is_same = rule.schedule == before.schedule && rule.time_zone == before.time_zone;
    if is_same && rule.enabled && before.enabled {
        rule.next_execution_at = before.next_execution_at;
    }
    let goes_on = rule.enabled || !before.enabled;
    db::interrupt(&mut tx, &rule.id, goes_on, now).await?;
    db::put(&mut tx, &rule, &admin.id, i64::MAX).await?;
    let rule = found(db::find(&mut tx, &rule.id).await?)?;
    tx.commit().await?;
    Ok(Json(rule))
}

/// Deletes a rule, and ends what it has under way; its executions are still told of.
#[utoipa::path(delete, path = "/devices/lifecycle/rules/{id}", tag = "lifecycle", params(("id" = String, Path)), responses((status = 200, body = Said), (status = 403), (status = 404)))]
pub async fn delete_rule(
    State(state): State<Devices>,
    _: Admin,
    Path(id): Path<String>,
) -> Result<Json<Said>> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    found(db::lock(&mut tx, &id).await?)?;
    db::delete(&mut tx, &id, now).await?;
    tx.commit().await?;
    let message = "the rule was deleted";
    Ok(Json(Said { message }))
}

/// Enables or disables a rule. One that is enabled is due at the next time of its schedule: nothing is made good. What one that
/// is disabled has under way ends.
#[utoipa::path(patch, path = "/devices/lifecycle/rules/{id}/toggle", tag = "lifecycle", params(("id" = String, Path)), request_body = ToggleRule, responses((status = 200, body = LifecycleRule), (status = 403), (status = 404)))]
pub async fn toggle_rule(
    State(state): State<Devices>,
    Admin(admin): Admin,
    Path(id): Path<String>,
    Json(body): Json<ToggleRule>,
) -> Result<Json<LifecycleRule>> {
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.shared(&mut tx).await?;
    let before = found(db::lock(&mut tx, &id).await?)?;
    let enabled = body.enabled.unwrap_or(!before.enabled);
    let next = match (before.enabled, enabled) {
        (false, true) => {
            next_due(&before.schedule, &before.time_zone, now.utc())?.map(Timestamp::from)
        }
        _ => before.next_execution_at,
    };
    if !enabled {
        db::interrupt(&mut tx, &before.id, false, now).await?;
    }
    let rule = LifecycleRule {
        enabled,
        next_execution_at: next,
        updated_at: now,
        ..before
    };
    db::put(&mut tx, &rule, &admin.id, i64::MAX).await?;
    let rule = found(db::find(&mut tx, &rule.id).await?)?;
    tx.commit().await?;
    Ok(Json(rule))
}

/// Executes a rule at once, enabled or not, or tells of the execution that is under way. What is not done within the time of
/// the answer goes on, and is told as running.
#[utoipa::path(post, path = "/devices/lifecycle/rules/{id}/execute", tag = "lifecycle", params(("id" = String, Path)), responses((status = 200, body = Execution), (status = 403), (status = 404)))]
pub async fn execute_rule(
    State(state): State<Devices>,
    _: Admin,
    Path(id): Path<String>,
) -> Result<Json<Execution>> {
    let rule = {
        let mut conn = state.platform.db.acquire().await?;
        found(db::find(&mut conn, &id).await?)?
    };
    let id = found(run::now(&state, &rule, Instant::now() + PATIENCE).await?)?;
    let mut conn = state.platform.db.acquire().await?;
    Ok(Json(found(db::find_execution(&mut conn, &id).await?)?))
}

/// Tells what a rule would do now, and does nothing.
#[utoipa::path(post, path = "/devices/lifecycle/rules/{id}/test", tag = "lifecycle", params(("id" = String, Path)), responses((status = 200, body = DryRun), (status = 403), (status = 404)))]
pub async fn test_rule(
    State(state): State<Devices>,
    _: Admin,
    Path(id): Path<String>,
) -> Result<Json<DryRun>> {
    let mut conn = state.platform.db.acquire().await?;
    let now = state.platform.clock.shared(&mut conn).await?;
    let shown = found(db::find(&mut conn, &id).await?)?;
    let rule = Rule::read(shown.kind, &shown.config)?;
    let about = (shown.id.as_str(), &rule);
    let devices = effects::candidates(&mut conn, about, ("", MOST_NAMED), now).await?;
    let affected = match &rule {
        Rule::Autoscaling(scaling) => {
            let pool = db::pool(&mut conn, &scaling.user_id, &scaling.group_name).await?;
            let missing = (scaling.ready - pool.0).min(scaling.max - pool.1).max(0);
            usize::try_from(missing).unwrap_or_default()
        }
        _ => devices.len(),
    };
    Ok(Json(DryRun {
        rule_id: shown.id,
        affected,
        devices,
        message: format!("{affected} devices would be affected now; nothing was done"),
    }))
}

/// Lists the executions of a rule, newest first.
#[utoipa::path(get, path = "/devices/lifecycle/rules/{id}/executions", tag = "lifecycle", params(("id" = String, Path), PageQuery), responses((status = 200, body = Page<Execution>), (status = 403), (status = 404)))]
pub async fn list_executions(
    State(state): State<Devices>,
    _: Admin,
    Path(id): Path<String>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Execution>>> {
    let mut conn = state.platform.db.acquire().await?;
    found(db::find(&mut conn, &id).await?)?;
    let (executions, total) = db::history(&mut conn, (Some(&id), None), page.slice()).await?;
    Ok(Json(Page::new(executions, total, page)))
}

/// Lists executions of all rules, those that are gone too, newest first; they are remembered for 90 days.
#[utoipa::path(get, path = "/devices/lifecycle/history", tag = "lifecycle", params(HistoryQuery, PageQuery), responses((status = 200, body = Page<Execution>), (status = 403)))]
pub async fn lifecycle_history(
    State(state): State<Devices>,
    _: Admin,
    Query(query): Query<HistoryQuery>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Execution>>> {
    let mut conn = state.platform.db.acquire().await?;
    let of = (query.rule_id.as_deref(), query.kind);
    let (executions, total) = db::history(&mut conn, of, page.slice()).await?;
    Ok(Json(Page::new(executions, total, page)))
}

/// Tells how rules have done.
#[utoipa::path(get, path = "/devices/lifecycle/stats", tag = "lifecycle", responses((status = 200, body = LifecycleStats), (status = 403)))]
pub async fn lifecycle_stats(
    State(state): State<Devices>,
    _: Admin,
) -> Result<Json<LifecycleStats>> {
    let mut conn = state.platform.db.acquire().await?;
    let by_type = db::stats(&mut conn, None).await?;
    let sum = |of: fn(&TypeStats) -> i64| by_type.iter().map(of).sum();
    Ok(Json(LifecycleStats {
        total_rules: sum(|stats| stats.rules),
        enabled_rules: sum(|stats| stats.enabled),
        executions: sum(|stats| stats.executions),
        affected: sum(|stats| stats.affected),
        failed: sum(|stats| stats.failed),
        by_type,
    }))
}

/// Executes the enabled rules of type cleanup at once.
#[utoipa::path(post, path = "/lifecycle/cleanup", tag = "lifecycle", responses((status = 200, body = Triggered), (status = 403)))]
pub async fn trigger_cleanup(State(state): State<Devices>, _: Admin) -> Result<Json<Triggered>> {
    trigger(&state, RuleType::Cleanup).await
}

/// Executes the enabled rules of type backup at once.
#[utoipa::path(post, path = "/lifecycle/backup/trigger", tag = "lifecycle", responses((status = 200, body = Triggered), (status = 403)))]
pub async fn trigger_backup(State(state): State<Devices>, _: Admin) -> Result<Json<Triggered>> {
    trigger(&state, RuleType::Backup).await
}

/// Executes the enabled rules of type expiration-warning at once.
#[utoipa::path(post, path = "/lifecycle/expiration/check", tag = "lifecycle", responses((status = 200, body = Triggered), (status = 403)))]
pub async fn check_expiration(State(state): State<Devices>, _: Admin) -> Result<Json<Triggered>> {
    trigger(&state, RuleType::ExpirationWarning).await
}

/// Executes the enabled rules of type autoscaling at once.
#[utoipa::path(post, path = "/lifecycle/autoscaling/trigger", tag = "lifecycle", responses((status = 200, body = Triggered), (status = 403)))]
pub async fn trigger_autoscaling(
    State(state): State<Devices>,
    _: Admin,
) -> Result<Json<Triggered>> {
    trigger(&state, RuleType::Autoscaling).await
}

/// Tells how rules of type cleanup have done.
#[utoipa::path(get, path = "/lifecycle/cleanup/statistics", tag = "lifecycle", responses((status = 200, body = TypeStats), (status = 403)))]
pub async fn cleanup_statistics(State(state): State<Devices>, _: Admin) -> Result<Json<TypeStats>> {
    statistics(&state, RuleType::Cleanup).await
}

/// Tells how rules of type backup have done.
#[utoipa::path(get, path = "/lifecycle/backup/statistics", tag = "lifecycle", responses((status = 200, body = TypeStats), (status = 403)))]
pub async fn backup_statistics(State(state): State<Devices>, _: Admin) -> Result<Json<TypeStats>> {
    statistics(&state, RuleType::Backup).await
}

/// Tells how rules of type autoscaling have done.
#[utoipa::path(get, path = "/lifecycle/autoscaling/status", tag = "lifecycle", responses((status = 200, body = TypeStats), (status = 403)))]
pub async fn autoscaling_status(State(state): State<Devices>, _: Admin) -> Result<Json<TypeStats>> {
    statistics(&state, RuleType::Autoscaling).await
}

async fn trigger(state: &Devices, kind: RuleType) -> Result<Json<Triggered>> {
    let until = Instant::now() + PATIENCE;
    let rules = {
        let mut conn = state.platform.db.acquire().await?;
        db::enabled(&mut conn, kind).await?
    };
    let (mut execution_ids, mut affected) = (Vec::new(), 0);
    for rule in &rules {
        let Some(id) = run::now(state, rule, until).await? else {
            continue;
        };
        let mut conn = state.platform.db.acquire().await?;
        let execution = db::find_execution(&mut conn, &id).await?;
        affected += execution.map_or(0, |execution| i64::from(execution.affected));
        execution_ids.push(id);
    }
    let count = execution_ids.len();
    Ok(Json(Triggered {
        message: format!("{count} enabled rules were executed, {affected} devices affected so far"),
        affected,
        execution_id: execution_ids.first().cloned(),
        execution_ids,
    }))
}

async fn statistics(state: &Devices, kind: RuleType) -> Result<Json<TypeStats>> {
    let mut conn = state.platform.db.acquire().await?;
    let stats = db::stats(&mut conn, Some(kind)).await?;
    Ok(Json(found(stats.into_iter().next())?))
}

fn found<T>(found: Option<T>) -> std::result::Result<T, Problem> {
    found.ok_or_else(|| Problem::not_found("lifecycle rule"))
}

fn rule(
    state: &Devices,
    id: String,
    body: PutRule,
    (created_at, now): (Timestamp, Timestamp),
) -> std::result::Result<LifecycleRule, Problem> {
    let config = body.config.unwrap_or_else(|| serde_json::json!({}));
    let config = Rule::read(body.kind, &config)?;
    let most = state.config.snapshots_per_device;
    // Of one alone the last is kept until the next one has been taken.
    if matches!(&config, Rule::Backup(backup) if backup.keep >= most.max(2)) {
        let text = format!("must be below the {most} snapshots that a device may have");
        return Err(Problem::invalid_field("config.keep", text));
    }
    let config = config.config();
    let time_zone = body.time_zone.unwrap_or_else(|| "UTC".to_owned());
    let next = next_due(&body.schedule, &time_zone, now.utc())?;
    Ok(LifecycleRule {
        id,
        name: body.name,
        kind: body.kind,
        enabled: body.enabled.unwrap_or(true),
        priority: body.priority.unwrap_or(0),
        schedule: body.schedule,
        time_zone,
        config,
        last_executed_at: None,
        next_execution_at: next.map(Timestamp::from),
        execution_count: 0,
        created_at,
        updated_at: now,
    })
}
