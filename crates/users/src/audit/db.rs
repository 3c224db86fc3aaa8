//! Entries in the database.

use contracts::{EventId, Timestamp, UserId};
use platform::export::filled;
use platform::http::Slice;
use serde_json::Value;
use sqlx::PgConnection;

use super::api::{AuditEntry, Filter};
use super::origin::Origin;
use super::{Entry, Status};

/// Writes an entry down; `false` where one was made of the same event already.
pub async fn insert(
    conn: &mut PgConnection,
    id: &EventId,
    entry: &Entry<'_>,
    (origin, event): (&Origin, Option<&EventId>),
    now: Timestamp,
) -> sqlx::Result<bool> {
    let insert = sqlx::query(
        "-- audit::insert
        insert into users.audit_log (id, user_id, action, resource_type, resource_id, status, details, changes, method,
            request_path, ip_address, user_agent, request_id, event_id, created_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
        on conflict (event_id) do nothing",
    );
    let done = insert
        .bind(id)
        .bind(entry.user)
        .bind(entry.action)
        .bind(entry.resource.0)
        .bind(entry.resource.1)
        .bind(entry.status)
        .bind(&entry.details)
        .bind(&entry.changes)
        .bind(&origin.method)
        .bind(&origin.path)
        .bind(&origin.address)
        .bind(&origin.agent)
        .bind(&origin.request_id)
        .bind(event)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// The conditions of a filter, whose values are the first nine.
macro_rules! filtered {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " where ($1::text is null or l.user_id = $1) and ($2::text is null or l.action = $2)
              and ($3::text is null or l.resource_type = $3) and ($4::text is null or l.resource_id = $4)
              and ($5::text is null or l.status = $5) and ($6::timestamptz is null or l.created_at >= $6)
              and ($7::timestamptz is null or l.created_at <= $7) and ($8::text is null or l.ip_address = $8)
              and ($9::text is null or strpos(l.action, $9) > 0 or strpos(l.request_path, $9) > 0 or l.resource_id = $9) ",
            $after
        )
    };
}

macro_rules! bound {
    ($query:expr, $filter:expr) => {
        $query
            .bind(&$filter.user_id)
            .bind(&$filter.action)
            .bind(&$filter.resource_type)
            .bind(&$filter.resource_id)
            .bind($filter.status)
            .bind($filter.start)
            .bind($filter.end)
            .bind(&$filter.ip_address)
            .bind(&$filter.search)
    };
}

/// How many entries pass a filter.
pub async fn count(conn: &mut PgConnection, filter: &Filter) -> sqlx::Result<i64> {
    let select = filtered!(
        "-- audit::count\nselect count(*) from users.audit_log l",
        ""
    );
    bound!(sqlx::query_scalar(select), filter)
        .fetch_one(conn)
        .await
}

/// Entries that pass a filter, the newest first.
pub async fn list(
    conn: &mut PgConnection,
    filter: &Filter,
    slice: Slice,
) -> sqlx::Result<Vec<AuditEntry>> {
    let select = filtered!(
        "-- audit::list
        select l.*, a.username from users.audit_log l left join users.accounts a on a.id = l.user_id",
        "order by l.seq desc limit $10 offset $11"
    );
    bound!(sqlx::query_as(select), filter)
        .bind(slice.limit)
        .bind(slice.offset)
        .fetch_all(conn)
        .await
}

/// The statement that gives the same entries to a file, which takes no parameters.
pub fn exported(filter: &Filter) -> String {
    let values = [
        filter.user_id.clone(),
        filter.action.clone(),
        filter.resource_type.clone(),
        filter.resource_id.clone(),
        filter.status.map(|status| status.name().to_owned()),
        filter.start.map(|start| start.to_string()),
        filter.end.map(|end| end.to_string()),
        filter.ip_address.clone(),
        filter.search.clone(),
    ];
    let select = filtered!(
        "-- audit::exported
        select l.*, a.username from users.audit_log l left join users.accounts a on a.id = l.user_id",
        ""
    );
    filled(select, &values)
}

/// One entry.
pub async fn find(conn: &mut PgConnection, id: &str) -> sqlx::Result<Option<AuditEntry>> {
    sqlx::query_as(
        "-- audit::find
        select l.*, a.username from users.audit_log l left join users.accounts a on a.id = l.user_id where l.id = $1",
    )
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// How many entries there are of each action and outcome, of one user or of all.
pub async fn statistics(
    conn: &mut PgConnection,
    user: Option<&UserId>,
) -> sqlx::Result<Vec<(String, Status, i64)>> {
    sqlx::query_as(
        "-- audit::statistics
        select action, status, count(*) from users.audit_log
        where ($1::text is null or user_id = $1) group by action, status order by action, status",
    )
    .bind(user)
    .fetch_all(conn)
    .await
}

/// Removes entries whose time is over; how many.
pub async fn purge(conn: &mut PgConnection, before: Timestamp, limit: i64) -> sqlx::Result<u64> {
    let delete = sqlx::query(
        "-- audit::purge
        delete from users.audit_log where id in (
            select id from users.audit_log where created_at < $1 order by created_at limit $2 for update skip locked)",
    );
    let done = delete.bind(before).bind(limit).execute(conn).await?;
    Ok(done.rows_affected())
}

/// Facts as they stand in an event.
pub fn facts(body: &impl serde::Serialize) -> Value {
    let mut body = serde_json::to_value(body).unwrap_or_default();
    body["data"].take()
}
