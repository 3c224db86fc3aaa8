//! Showing, checking and changing quotas.

use std::collections::HashMap;

use axum::extract::State;
use contracts::{Timestamp, UserId};
use garde::Validate;
use http::StatusCode;
use platform::http::{Json, JsonItems, Page, PageQuery, Path, Query, Slice};
use platform::{Admin, Caller, CurrentUser, Problem};
use serde::{Deserialize, Serialize};

use super::report::{Alert, QuotaView, UsageStats};
use super::{Limit, Limits, Quota, Quotas, Size, Status, UNLIMITED, db, fits, used};
use crate::error::{Error, Result};

/// What somebody wants to know before asking for it.
#[derive(Clone, Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckQuota {
    /// Whose quota; the caller's where it is left out.
    #[garde(skip)]
    pub user_id: Option<UserId>,
    /// Of what.
    #[garde(skip)]
    pub quota_type: QuotaType,
    /// How much more: devices, cores, GB, Mbps or hours of a day.
    #[garde(range(min = 1, max = 1_000_000))]
    pub requested_amount: i64,
    /// The device that is wanted.
    #[garde(dive)]
    pub device_config: Option<DeviceConfig>,
}

/// The device that is wanted.
#[derive(Clone, Copy, Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceConfig {
    /// Processor cores.
    #[garde(range(min = 0))]
    pub cpu_cores: Option<i32>,
    /// Memory; `memoryMB` on the wire and in refusals.
    #[garde(range(min = 0))]
    pub memory_m_b: Option<i32>,
    /// Storage; `storageMB` on the wire and in refusals.
    #[garde(range(min = 0))]
    pub storage_m_b: Option<i32>,
}

/// Several questions at once; the array alone will do.
#[derive(Clone, Debug, Deserialize, Validate, utoipa::ToSchema)]
pub struct CheckQuotas {
    /// 1 to 100 questions.
    #[garde(length(min = 1, max = 100), dive)]
    pub items: Vec<CheckQuota>,
}

/// Of what a quota is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum QuotaType {
    /// Devices.
    Device,
    /// Processor cores.
    Cpu,
    /// Memory in GB.
    Memory,
    /// Storage in GB.
    Storage,
    /// Bandwidth in Mbps.
    Bandwidth,
    /// Hours of a day.
    Duration,
}

/// What a quota says to a question. -1 is no limit.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Checked {
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    current: i64,
    limit: i64,
    remaining: i64,
}

/// What quotas say to several questions, in their order.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct CheckedAll {
    total: usize,
    allowed: usize,
    denied: usize,
    results: Vec<Checked>,
}

/// Which quotas are wanted.
#[derive(Clone, Copy, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct QuotaFilter {
    /// In this status.
    #[garde(skip)]
    #[param(inline)]
    pub status: Option<Status>,
}

/// How near to their limits quotas are wanted.
#[derive(Clone, Copy, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AlertQuery {
    /// Percent, 1 to 100; default 80.
    #[garde(range(min = 1, max = 100))]
    pub threshold: Option<i64>,
}

/// A user's limits that are nearly used up.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserAlerts {
    user_id: UserId,
    quota_id: String,
    alerts: Vec<Alert>,
}

/// Users whose limits are nearly used up.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct AlertList {
    data: Vec<UserAlerts>,
    total: usize,
}

/// All quotas in a few numbers.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuotaSummary {
    total: i64,
    by_status: QuotaCounts,
    /// Percent of the limit of devices, over the users who have one.
    avg_usage: f64,
    /// Users with a limit that is used to 80 % or more.
    alerts: usize,
}

/// Quotas by status.
#[derive(Clone, Copy, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct QuotaCounts {
    active: usize,
    exceeded: usize,
    suspended: usize,
    expired: usize,
}

/// What an admin sets for a user.
#[derive(Clone, Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SetQuota {
    /// Whose quota.
    #[garde(skip)]
    pub user_id: UserId,
    /// The limits that shall differ from the settings and the plan; -1 is no limit.
    #[garde(inner(custom(check_limits)))]
    pub limits: Option<Limits>,
    /// Until when; for good where it is left out.
    #[garde(skip)]
    pub valid_until: Option<Timestamp>,
}

/// What an admin changes; what is left out stays.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChangeQuota {
    /// The limits that shall differ from the settings and the plan; -1 is no limit.
    #[garde(inner(custom(check_limits)))]
    pub limits: Option<Limits>,
    /// Until when these limits hold.
    #[garde(skip)]
    pub valid_until: Option<Timestamp>,
    /// Whether it shall be renewed by itself.
    #[garde(skip)]
    pub auto_renew: Option<bool>,
    /// suspended closes the quota, active opens it.
    #[garde(inner(custom(check_status)))]
    #[schema(inline)]
    pub status: Option<Status>,
}

/// For how long a quota is prolonged.
#[derive(Clone, Copy, Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RenewQuota {
    /// Days, 1 to 3650; default 30.
    #[garde(range(min = 1, max = 3_650))]
    pub extension_days: Option<i64>,
}

/// What admins had set is gone.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct QuotaReset {
    message: String,
}

fn check_limits(limits: &Limits, _: &()) -> garde::Result {
    match limits.are_valid() {
        true => Ok(()),
        false => Err(garde::Error::new("each limit must be -1 (none), 0 or more")),
    }
}

fn check_status(status: &Status, _: &()) -> garde::Result {
    match status {
        Status::Active | Status::Suspended => Ok(()),
        Status::Exceeded | Status::Expired => {
            Err(garde::Error::new("can be set to active or suspended only"))
        }
    }
}

/// Shows the quota of a user.
#[utoipa::path(get, path = "/quotas/user/{user_id}", tag = "quotas", params(("user_id" = String, Path)), responses((status = 200, body = QuotaView), (status = 403)))]
pub async fn find_quota(
    State(quotas): State<Quotas>,
    caller: CurrentUser,
    Path(user): Path<UserId>,
) -> Result<Json<QuotaView>> {
    let user = caller.acting_for(Some(user))?;
    let now = quotas.platform.clock.now();
    let mut conn = quotas.platform.db.acquire().await?;
    Ok(Json(
        db::find(&mut conn, &quotas, &user, now).await?.view(now),
    ))
}

/// Shows the caller's own quota.
#[utoipa::path(get, path = "/quotas/me", tag = "quotas", responses((status = 200, body = QuotaView), (status = 401)))]
pub async fn find_own_quota(state: State<Quotas>, caller: CurrentUser) -> Result<Json<QuotaView>> {
    let own = Path(caller.id.clone());
    find_quota(state, caller, own).await
}

/// Shows how much of the caller's own quota is used.
#[utoipa::path(get, path = "/quotas/usage-stats/me", tag = "quotas", responses((status = 200, body = UsageStats), (status = 401)))]
pub async fn own_quota_usage_stats(
    state: State<Quotas>,
    caller: CurrentUser,
) -> Result<Json<UsageStats>> {
    let own = Path(caller.id.clone());
    quota_usage_stats(state, caller, own).await
}

/// Shows how much of a user's quota is used.
#[utoipa::path(get, path = "/quotas/usage-stats/{user_id}", tag = "quotas", params(("user_id" = String, Path)), responses((status = 200, body = UsageStats), (status = 403)))]
pub async fn quota_usage_stats(
    State(quotas): State<Quotas>,
    caller: CurrentUser,
    Path(user): Path<UserId>,
) -> Result<Json<UsageStats>> {
    let user = caller.acting_for(Some(user))?;
    let now = quotas.platform.clock.now();
    let mut conn = quotas.platform.db.acquire().await?;
    Ok(Json(
        db::find(&mut conn, &quotas, &user, now).await?.stats(now),
    ))
}

/// Says whether there is room at the moment. It promises nothing: only a creation itself takes the room.
#[utoipa::path(post, path = "/quotas/check", tag = "quotas", request_body = CheckQuota, responses((status = 200, body = Checked), (status = 403)))]
pub async fn check_quota(
    State(quotas): State<Quotas>,
    caller: CurrentUser,
    Json(body): Json<CheckQuota>,
) -> Result<Json<Checked>> {
    let user = caller.acting_for(body.user_id.clone())?;
    let now = quotas.platform.clock.now();
    let mut conn = quotas.platform.db.acquire().await?;
    let quota = db::find(&mut conn, &quotas, &user, now).await?;
    Ok(Json(answer(&quota, &body)))
}

/// Answers up to 100 such questions.
#[utoipa::path(post, path = "/quotas/check/batch", tag = "quotas", request_body = Vec<CheckQuota>, responses((status = 200, body = CheckedAll), (status = 403)))]
pub async fn check_quotas(
    State(quotas): State<Quotas>,
    caller: Caller,
    JsonItems(CheckQuotas { items: questions }): JsonItems<CheckQuotas>,
) -> Result<Json<CheckedAll>> {
    match &caller {
        Caller::Service(_) => {}
        Caller::User(user) if user.is_admin => {}
        Caller::User(_) => return Err(Problem::forbidden("only admins may do this").into()),
        Caller::Sandbox => return Err(Problem::unauthenticated("sign in as an admin").into()),
    }
    let now = quotas.platform.clock.now();
    let mut conn = quotas.platform.db.acquire().await?;
    let users = questions
        .iter()
        .map(|question| caller.acting_for(question.user_id.clone()))
        .collect::<Result<Vec<UserId>, Problem>>()?;
    let mut wanted = users.clone();
    wanted.sort_unstable();
    wanted.dedup();
    let found = db::find_all(&mut conn, &quotas, &wanted, now).await?;
    let found: HashMap<&UserId, &Quota> =
        found.iter().map(|quota| (&quota.user_id, quota)).collect();
    let results: Vec<Checked> = users
        .iter()
        .zip(&questions)
        .filter_map(|(user, question)| Some(answer(found.get(user)?, question)))
        .collect();
    let allowed = results.iter().filter(|result| result.allowed).count();
    Ok(Json(CheckedAll {
        total: results.len(),
        allowed,
        denied: results.len() - allowed,
        results,
    }))
}

/// Lists all quotas, newest first.
#[utoipa::path(get, path = "/quotas", tag = "quotas", params(PageQuery, QuotaFilter), responses((status = 200, body = Page<QuotaView>), (status = 403)))]
pub async fn list_quotas(
    State(quotas): State<Quotas>,
    _: Admin,
    Query(page): Query<PageQuery>,
    Query(filter): Query<QuotaFilter>,
) -> Result<Json<Page<QuotaView>>> {
    let now = quotas.platform.clock.now();
    let mut conn = quotas.platform.db.acquire().await?;
    let (found, total) = match filter.status {
        None => {
            let found = db::list(&mut conn, &quotas, page.slice(), now).await?;
            (found, db::count(&mut conn).await?)
        }
        Some(status) => {
            let (mut found, mut total) = (Vec::new(), 0);
            let Slice { limit, offset } = page.slice();
            let wanted = offset..offset.saturating_add(limit);
            look_through(&mut conn, &quotas, now, |quota| {
                if quota.status == status {
                    if wanted.contains(&total) {
                        found.push(quota);
                    }
                    total += 1;
                }
            })
            .await?;
            (found, total)
        }
    };
    let found = found.into_iter().map(|quota| quota.view(now)).collect();
    Ok(Json(Page::new(found, total, page)))
}

/// Lists the users whose limits are nearly used up.
#[utoipa::path(get, path = "/quotas/alerts", tag = "quotas", params(AlertQuery), responses((status = 200, body = AlertList), (status = 403)))]
pub async fn list_quota_alerts(
    State(quotas): State<Quotas>,
    _: Admin,
    Query(query): Query<AlertQuery>,
) -> Result<Json<AlertList>> {
    let threshold = query.threshold.unwrap_or(80) as f64;
    let now = quotas.platform.clock.now();
    let mut conn = quotas.platform.db.acquire().await?;
    let mut data = Vec::new();
    look_through(&mut conn, &quotas, now, |quota| {
        let alerts = quota.alerts(threshold);
        if !alerts.is_empty() {
            data.push(UserAlerts {
                alerts,
                user_id: quota.user_id,
                quota_id: quota.id,
            });
        }
    })
    .await?;
    Ok(Json(AlertList {
        total: data.len(),
        data,
    }))
}

/// Tells of all quotas in a few numbers.
#[utoipa::path(get, path = "/quotas/summary", tag = "quotas", responses((status = 200, body = QuotaSummary), (status = 403)))]
pub async fn summarize_quotas(
    State(quotas): State<Quotas>,
    _: Admin,
) -> Result<Json<QuotaSummary>> {
    let now = quotas.platform.clock.now();
    let mut conn = quotas.platform.db.acquire().await?;
    let mut summary = QuotaSummary {
        total: db::count(&mut conn).await?,
        ..QuotaSummary::default()
    };
    let (mut sum, mut limited) = (0.0, 0_u32);
    look_through(&mut conn, &quotas, now, |quota| {
        let counts = &mut summary.by_status;
        match quota.status {
            Status::Active => counts.active += 1,
            Status::Exceeded => counts.exceeded += 1,
            Status::Suspended => counts.suspended += 1,
            Status::Expired => counts.expired += 1,
        }
        summary.alerts += usize::from(!quota.alerts(80.0).is_empty());
        if quota.limits.of(Limit::Devices).is_some() {
            sum += quota.percentage(Limit::Devices);
            limited += 1;
        }
    })
    .await?;
    if limited > 0 {
        summary.avg_usage = (sum * 10.0 / f64::from(limited)).round() / 10.0;
    }
    Ok(Json(summary))
}

/// Sets limits for a user in the place of those that the settings and the plan give.
#[utoipa::path(post, path = "/quotas", tag = "quotas", request_body = SetQuota, responses((status = 201, body = QuotaView), (status = 403)))]
pub async fn set_quota(
    State(quotas): State<Quotas>,
    _: Admin,
    Json(body): Json<SetQuota>,
) -> Result<(StatusCode, Json<QuotaView>)> {
    let change = ChangeQuota {
        limits: body.limits,
        valid_until: body.valid_until,
        ..ChangeQuota::default()
    };
    let now = quotas.platform.clock.now();
    let mut tx = quotas.platform.db.begin().await?;
    db::ensure(&mut tx, &body.user_id, now).await?;
    db::reset(&mut tx, &body.user_id, now).await?;
    db::change(&mut tx, &body.user_id, &change, None, now).await?;
    let quota = db::find(&mut tx, &quotas, &body.user_id, now).await?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, Json(quota.view(now))))
}

/// Changes what was set for a user.
#[utoipa::path(put, path = "/quotas/{id}", tag = "quotas", params(("id" = String, Path)), request_body = ChangeQuota, responses((status = 200, body = QuotaView), (status = 403), (status = 404)))]
pub async fn change_quota(
    State(quotas): State<Quotas>,
    _: Admin,
    Path(id): Path<String>,
    Json(body): Json<ChangeQuota>,
) -> Result<Json<QuotaView>> {
    let now = quotas.platform.clock.now();
    let mut tx = quotas.platform.db.begin().await?;
    let user = owner(&mut tx, &id).await?;
    let suspended = body.status.map(|status| status == Status::Suspended);
    db::change(&mut tx, &user, &body, suspended, now).await?;
    let quota = db::find(&mut tx, &quotas, &user, now).await?;
    tx.commit().await?;
    Ok(Json(quota.view(now)))
}

/// Takes back what was set for a user: the limits are those of the settings and the plan again.
#[utoipa::path(delete, path = "/quotas/{id}", tag = "quotas", params(("id" = String, Path)), responses((status = 200, body = QuotaReset), (status = 403), (status = 404)))]
pub async fn reset_quota(
    State(quotas): State<Quotas>,
    _: Admin,
    Path(id): Path<String>,
) -> Result<Json<QuotaReset>> {
    let now = quotas.platform.clock.now();
    let mut tx = quotas.platform.db.begin().await?;
    let user = owner(&mut tx, &id).await?;
    db::reset(&mut tx, &user, now).await?;
    tx.commit().await?;
    Ok(Json(QuotaReset {
        message: "the quota is what the settings and the plan give".into(),
    }))
}

/// Prolongs what was granted to a user for a time; what has no end stays so.
#[utoipa::path(post, path = "/quotas/renew/{user_id}", tag = "quotas", params(("user_id" = String, Path)), request_body = RenewQuota, responses((status = 200, body = QuotaView), (status = 403)))]
pub async fn renew_quota(
    State(quotas): State<Quotas>,
    _: Admin,
    Path(user): Path<UserId>,
    Json(body): Json<RenewQuota>,
) -> Result<Json<QuotaView>> {
    let now = quotas.platform.clock.now();
    let mut tx = quotas.platform.db.begin().await?;
    db::ensure(&mut tx, &user, now).await?;
    db::prolong(&mut tx, &user, body.extension_days.unwrap_or(30), now).await?;
    let quota = db::find(&mut tx, &quotas, &user, now).await?;
    tx.commit().await?;
    Ok(Json(quota.view(now)))
}

async fn owner(conn: &mut sqlx::PgConnection, id: &str) -> Result<UserId> {
    let owner = match contracts::id::is_valid(id) {
        true => db::owner(conn, id).await?,
        false => None,
    };
    Ok(owner.ok_or_else(|| Problem::not_found("quota"))?)
}

/// Looks at every quota, the newest first, a bounded number at a time. Ends with the oldest.
async fn look_through(
    conn: &mut sqlx::PgConnection,
    quotas: &Quotas,
    now: Timestamp,
    mut look: impl FnMut(Quota),
) -> Result<()> {
    let mut before = i64::MAX;
    loop {
        let (found, next) = db::list_before(conn, quotas, before, now).await?;
        found.into_iter().for_each(&mut look);
        match next {
            Some(next) => before = next,
            None => return Ok(()),
        }
    }
}

/// What a quota says to a question.
fn answer(quota: &Quota, question: &CheckQuota) -> Checked {
    let limit = match question.quota_type {
        QuotaType::Device => Limit::Devices,
        QuotaType::Cpu => Limit::CpuCores,
        QuotaType::Memory => Limit::Memory,
        QuotaType::Storage => Limit::Storage,
        QuotaType::Bandwidth => Limit::Bandwidth,
        QuotaType::Duration => Limit::HoursOfDay,
    };
    let current = used(&quota.used, limit);
    let allowed = quota.limits.of(limit);
    let remaining = allowed.map(|allowed| (allowed - current).max(0));
    let size = question.device_config.map(|config| Size {
        cpu_cores: config.cpu_cores.unwrap_or_default(),
        memory_mb: config.memory_m_b.unwrap_or_default(),
        storage_mb: config.storage_m_b.unwrap_or_default(),
    });
    let too_large = size.and_then(|size| match fits(&quota.limits, size) {
        Err(error @ Error::QuotaExceeded { .. }) => Some(error.to_string()),
        _ => None,
    });
    let too_much = remaining
        .filter(|remaining| question.requested_amount > *remaining)
        .map(|_| {
            let name = limit.name();
            format!(
                "the quota of {name} does not allow {} more: {current} used, {} allowed",
                question.requested_amount,
                allowed.unwrap_or(UNLIMITED)
            )
        });
    let reason = too_large.or(too_much);
    Checked {
        allowed: reason.is_none(),
        reason,
        current,
        limit: allowed.unwrap_or(UNLIMITED),
        remaining: remaining.unwrap_or(UNLIMITED),
    }
}
