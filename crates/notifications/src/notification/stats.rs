//! A user's notifications in figures.

use axum::extract::State;
use contracts::{Timestamp, UserId};
use platform::CurrentUser;
use platform::http::{Json, Query};
use platform::problem::ProblemBody;
use serde::Serialize;
use sqlx::PgConnection;

use super::api::OfUser;
use super::{Kind, Priority};
use crate::{Notifications, Result};

/// How many notifications a user has. Days and weeks are those of UTC; weeks begin on Mondays.
#[derive(Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NotificationStats {
    total: i64,
    unread: i64,
    read: i64,
    today: i64,
    this_week: i64,
    by_type: ByType,
    by_priority: ByPriority,
}

/// By what they are about.
#[derive(Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ByType {
    system: i64,
    billing: i64,
    device: i64,
    promotion: i64,
    security: i64,
}

/// By how much they matter.
#[derive(Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ByPriority {
    low: i64,
    normal: i64,
    high: i64,
    urgent: i64,
}

/// The notifications of one type and priority.
#[derive(Debug, sqlx::FromRow)]
struct Group {
    kind: Kind,
    priority: Priority,
    total: i64,
    unread: i64,
    today: i64,
    this_week: i64,
}

/// Counts the notifications of a user.
#[utoipa::path(get, path = "/notifications/stats", tag = "notifications", params(OfUser),
    responses((status = 200, body = NotificationStats), (status = 401, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn find_notification_stats(
    State(state): State<Notifications>,
    user: CurrentUser,
    Query(query): Query<OfUser>,
) -> Result<Json<NotificationStats>> {
    let owner = user.acting_for(query.user_id)?;
    let mut conn = state.platform.db.acquire().await?;
    let groups = groups(&mut conn, &owner, state.platform.clock.now()).await?;
    Ok(Json(NotificationStats::of(groups)))
}

impl NotificationStats {
    fn of(groups: Vec<Group>) -> Self {
        let mut stats = Self::default();
        for group in groups {
            stats.total += group.total;
            stats.unread += group.unread;
            stats.read += group.total - group.unread;
            stats.today += group.today;
            stats.this_week += group.this_week;
            *stats.by_type.of(group.kind) += group.total;
            *stats.by_priority.of(group.priority) += group.total;
        }
        stats
    }
}

impl ByType {
    fn of(&mut self, kind: Kind) -> &mut i64 {
        match kind {
            Kind::System => &mut self.system,
            Kind::Billing => &mut self.billing,
            Kind::Device => &mut self.device,
            Kind::Promotion => &mut self.promotion,
            Kind::Security => &mut self.security,
        }
    }
}

impl ByPriority {
    fn of(&mut self, priority: Priority) -> &mut i64 {
        match priority {
            Priority::Low => &mut self.low,
            Priority::Normal => &mut self.normal,
            Priority::High => &mut self.high,
            Priority::Urgent => &mut self.urgent,
        }
    }
}

async fn groups(
    conn: &mut PgConnection,
    user: &UserId,
    now: Timestamp,
) -> sqlx::Result<Vec<Group>> {
    sqlx::query_as(
        "-- notification::stats
        select kind, priority, count(*) as total,
            count(*) filter (where status = 'unread') as unread,
            count(*) filter (where created_at >= date_trunc('day', $2::timestamptz, 'UTC')) as today,
            count(*) filter (where created_at >= date_trunc('week', $2::timestamptz, 'UTC')) as this_week
        from notifications.notifications where user_id = $1 group by kind, priority",
    )
    .bind(user)
    .bind(now)
    .fetch_all(conn)
    .await
}
