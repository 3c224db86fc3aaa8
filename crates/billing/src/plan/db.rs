//! Plans in PostgreSQL.

use contracts::PlanId;
use platform::http::Slice;
use sqlx::PgConnection;

use super::Plan;

macro_rules! columns {
    () => {
        "id, code, name, description, type, price, original_price, currency, billing_cycle, duration, features, max_devices,
        cpu_cores, memory_mb, storage_mb, storage_quota_gb, traffic_quota_gb, is_popular, is_active, is_public,
        created_at, updated_at"
    };
}

/// A plan by id or code.
pub async fn find(conn: &mut PgConnection, id: &str) -> sqlx::Result<Option<Plan>> {
    sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from billing.plans where id = $1 or code = $1 order by (id = $1) desc limit 1"
    ))
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// The plans of these ids.
pub async fn list_by_id(conn: &mut PgConnection, ids: &[PlanId]) -> sqlx::Result<Vec<Plan>> {
    let ids: Vec<&str> = ids.iter().map(PlanId::as_str).collect();
    sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from billing.plans where id = any($1)"
    ))
    .bind(ids)
    .fetch_all(conn)
    .await
}

/// Public plans, newest first; only those that are sold where `active` says so.
pub async fn list(conn: &mut PgConnection, active: bool, slice: Slice) -> sqlx::Result<Vec<Plan>> {
    sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from billing.plans where is_public and (is_active or not $1)
        order by created_at desc, seq desc limit $2 offset $3"
    ))
    .bind(active)
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(conn)
    .await
}

/// How many public plans there are.
pub async fn count(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar("select count(*) from billing.plans where is_public")
        .fetch_one(conn)
        .await
}
