//! Templates in PostgreSQL.

use contracts::{Timestamp, UserId};
use platform::http::Slice;
use sqlx::PgConnection;

use super::api::{PatchTemplate, TemplateFilter};
use super::{Category, Template};

macro_rules! select_template {
    ($rest:literal) => {
        concat!(
            "select t.id, t.name, t.description, t.category, t.cpu_cores, t.memory_mb, t.storage_mb, t.resolution, t.dpi,
                t.android_version, t.tags, t.is_public, t.usage_count, t.created_by, t.created_at, t.updated_at
            from devices.templates t ",
            $rest
        )
    };
}

/// Writes a new template.
pub async fn insert(conn: &mut PgConnection, template: &Template) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "insert into devices.templates (id, created_by, name, description, category, cpu_cores, memory_mb, storage_mb, resolution,
            dpi, android_version, tags, is_public, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $14)",
    );
    insert
        .bind(&template.id)
        .bind(&template.created_by)
        .bind(&template.name)
        .bind(&template.description)
        .bind(template.category.as_str())
        .bind(template.cpu_cores)
        .bind(template.memory_mb)
        .bind(template.storage_mb)
        .bind(&template.resolution)
        .bind(template.dpi)
        .bind(&template.android_version)
        .bind(&template.tags)
        .bind(template.is_public)
        .bind(template.created_at)
        .execute(conn)
        .await?;
    Ok(())
}

/// A template that a user sees: an own or a public one; admins see all.
pub async fn find(
    conn: &mut PgConnection,
    id: &str,
    user: Option<&UserId>,
) -> sqlx::Result<Option<Template>> {
    sqlx::query_as(select_template!(
        "where t.id = $1 and ($2::text is null or t.is_public or t.created_by = $2)"
    ))
    .bind(id)
    .bind(user)
    .fetch_optional(conn)
    .await
}

/// The most templates that a user has.
pub const MOST: i64 = 500;

/// How many templates a user has made. Whoever asks for the same user at the same time waits until this transaction ends.
pub async fn count_locked(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<i64> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('devices.templates:' || $1, 0))")
        .bind(user)
        .execute(&mut *conn)
        .await?;
    sqlx::query_scalar("select count(*) from devices.templates where created_by = $1")
        .bind(user)
        .fetch_one(conn)
        .await
}

/// The templates that a user sees, newest first.
pub async fn list(
    conn: &mut PgConnection,
    user: Option<&UserId>,
    filter: &TemplateFilter,
    slice: Slice,
) -> sqlx::Result<Vec<Template>> {
    let list = sqlx::query_as(select_template!(
        "where ($1::text is null or t.is_public or t.created_by = $1)
            and ($2::text is null or t.category = $2) and ($3::boolean is null or t.is_public = $3)
            and ($4::text is null or strpos(lower(t.name || ' ' || coalesce(t.description, '')), lower($4)) > 0)
        order by t.created_at desc, t.seq desc limit $5 offset $6"
    ));
    list.bind(user)
        .bind(filter.category.map(Category::as_str))
        .bind(filter.is_public)
        .bind(&filter.search)
        .bind(slice.limit)
        .bind(slice.offset)
        .persistent(false)
        .fetch_all(conn)
        .await
}

/// How many templates a user sees.
pub async fn count(
    conn: &mut PgConnection,
    user: Option<&UserId>,
    filter: &TemplateFilter,
) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "select count(*) from devices.templates t
        where ($1::text is null or t.is_public or t.created_by = $1)
            and ($2::text is null or t.category = $2) and ($3::boolean is null or t.is_public = $3)
            and ($4::text is null or strpos(lower(t.name || ' ' || coalesce(t.description, '')), lower($4)) > 0)",
    )
    .bind(user)
    .bind(filter.category.map(Category::as_str))
    .bind(filter.is_public)
    .bind(&filter.search)
    .persistent(false)
    .fetch_one(conn)
    .await
}

/// The templates that a user sees, the most used first.
pub async fn popular(
    conn: &mut PgConnection,
    user: Option<&UserId>,
    slice: Slice,
) -> sqlx::Result<Vec<Template>> {
    sqlx::query_as(select_template!(
        "where ($1::text is null or t.is_public or t.created_by = $1)
        order by t.usage_count desc, t.created_at desc, t.seq desc limit $2 offset $3"
    ))
    .bind(user)
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(conn)
    .await
}

/// How many templates a user sees of each category, how many are public, and how many devices were made of them.
pub async fn stats(
    conn: &mut PgConnection,
    user: Option<&UserId>,
) -> sqlx::Result<Vec<(String, i64, i64, i64)>> {
    sqlx::query_as(
        "select category, count(*), count(*) filter (where is_public), coalesce(sum(usage_count), 0)::bigint
        from devices.templates t where ($1::text is null or t.is_public or t.created_by = $1) group by category",
    )
    .bind(user)
    .fetch_all(conn)
    .await
}

/// Changes a template of a user, or of anybody; `false` where there is none.
pub async fn patch(
    conn: &mut PgConnection,
    (id, user): (&str, Option<&UserId>),
    body: &PatchTemplate,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update devices.templates set name = coalesce($3, name), description = coalesce($4, description),
            category = coalesce($5, category), cpu_cores = coalesce($6, cpu_cores), memory_mb = coalesce($7, memory_mb),
            storage_mb = coalesce($8, storage_mb), resolution = coalesce($9, resolution), dpi = coalesce($10, dpi),
            android_version = coalesce($11, android_version), tags = coalesce($12, tags), is_public = coalesce($13, is_public),
            updated_at = $14
        where id = $1 and ($2::text is null or created_by = $2)",
    );
    let done = update
        .bind(id)
        .bind(user)
        .bind(&body.name)
        .bind(&body.description)
        .bind(body.category.map(Category::as_str))
        .bind(body.cpu_cores)
        .bind(body.memory_m_b)
        .bind(body.storage_m_b)
        .bind(&body.resolution)
        .bind(body.dpi)
        .bind(&body.android_version)
        .bind(&body.tags)
        .bind(body.is_public)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Removes a template of a user, or of anybody; `false` where there is none.
pub async fn delete(
    conn: &mut PgConnection,
    id: &str,
    user: Option<&UserId>,
) -> sqlx::Result<bool> {
    let delete = sqlx::query(
        "delete from devices.templates where id = $1 and ($2::text is null or created_by = $2)",
    );
    Ok(delete
        .bind(id)
        .bind(user)
        .execute(conn)
        .await?
        .rows_affected()
        == 1)
}

/// Counts devices that were made of a template.
pub async fn used(conn: &mut PgConnection, id: &str, devices: i64) -> sqlx::Result<()> {
    sqlx::query("update devices.templates set usage_count = usage_count + $2 where id = $1")
        .bind(id)
        .bind(devices)
        .execute(conn)
        .await?;
    Ok(())
}
