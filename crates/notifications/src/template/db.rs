//! SQL of templates.

use contracts::{TemplateId, Timestamp, UserId};
use platform::http::Slice;
use sqlx::PgConnection;
use sqlx::types::Json;

use super::{LANGUAGE, Template, Version};
use crate::notification::{Channel, Kind};

/// What a template says, and whether it is used.
#[derive(Clone, Debug)]
pub struct Content {
    /// What programs call it.
    pub code: String,
    /// What people call it.
    pub name: String,
    /// What its notifications are about.
    pub kind: Kind,
    /// The heading.
    pub title: String,
    /// The text.
    pub body: String,
    /// The ways its notifications take.
    pub channels: Vec<Channel>,
    /// The language of its words.
    pub language: String,
    /// Whether it is used.
    pub is_active: bool,
}

/// Which templates a list shows.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Only those about this.
    pub kind: Option<Kind>,
    /// Only those in this language.
    pub language: Option<String>,
}

/// Writes a template with its first version. `templates_code_key` refuses a code that is there in that language.
pub async fn insert(
    conn: &mut PgConnection,
    content: Content,
    admin: &UserId,
    now: Timestamp,
) -> sqlx::Result<Template> {
    let template: Template = sqlx::query_as(
        "-- template::insert
        insert into notifications.templates
            (id, code, name, kind, title, body, channels, language, is_active, version, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, 1, $10, $10) returning *",
    )
    .bind(TemplateId::new())
    .bind(content.code)
    .bind(content.name)
    .bind(content.kind)
    .bind(content.title)
    .bind(content.body)
    .bind(Json(content.channels))
    .bind(content.language)
    .bind(content.is_active)
    .bind(now)
    .fetch_one(&mut *conn)
    .await?;
    keep_version(conn, &template, admin).await?;
    Ok(template)
}

/// Changes a locked template and keeps what it says now as its next version.
pub async fn update(
    conn: &mut PgConnection,
    id: &TemplateId,
    content: Content,
    admin: &UserId,
    now: Timestamp,
) -> sqlx::Result<Template> {
    let template: Template = sqlx::query_as(
        "-- template::update
        update notifications.templates
        set code = $2, name = $3, kind = $4, title = $5, body = $6, channels = $7, language = $8, is_active = $9,
            version = version + 1, updated_at = $10
        where id = $1 returning *",
    )
    .bind(id)
    .bind(content.code)
    .bind(content.name)
    .bind(content.kind)
    .bind(content.title)
    .bind(content.body)
    .bind(Json(content.channels))
    .bind(content.language)
    .bind(content.is_active)
    .bind(now)
    .fetch_one(&mut *conn)
    .await?;
    keep_version(conn, &template, admin).await?;
    Ok(template)
}

async fn keep_version(
    conn: &mut PgConnection,
    template: &Template,
    admin: &UserId,
) -> sqlx::Result<()> {
    sqlx::query(
        "-- template::keep_version
        insert into notifications.template_versions
            (template_id, version, code, name, kind, title, body, channels, language, changed_by, changed_at)
        select id, version, code, name, kind, title, body, channels, language, $2, updated_at
        from notifications.templates where id = $1",
    )
    .bind(&template.id)
    .bind(admin)
    .execute(conn)
    .await?;
    Ok(())
}

/// Uses a template that was not used, and the other way round; `None` where it is gone.
pub async fn toggle(
    conn: &mut PgConnection,
    id: &TemplateId,
    now: Timestamp,
) -> sqlx::Result<Option<Template>> {
    sqlx::query_as(
        "update notifications.templates set is_active = not is_active, updated_at = $2 where id = $1 returning *",
    )
    .bind(id)
    .bind(now)
    .fetch_optional(conn)
    .await
}

/// Deletes a template with its versions; `false` where it is gone.
pub async fn delete(conn: &mut PgConnection, id: &TemplateId) -> sqlx::Result<bool> {
    let delete = sqlx::query("delete from notifications.templates where id = $1");
    Ok(delete.bind(id).execute(conn).await?.rows_affected() == 1)
}

/// A template.
pub async fn find(conn: &mut PgConnection, id: &TemplateId) -> sqlx::Result<Option<Template>> {
    sqlx::query_as("select * from notifications.templates where id = $1")
        .bind(id)
        .fetch_optional(conn)
        .await
}

/// A template, locked until the end of the transaction.
pub async fn lock(conn: &mut PgConnection, id: &TemplateId) -> sqlx::Result<Option<Template>> {
    sqlx::query_as("select * from notifications.templates where id = $1 for update")
        .bind(id)
        .fetch_optional(conn)
        .await
}

/// The template of a code: in this language where there is one, else in the usual one, else the oldest.
pub async fn by_code(
    conn: &mut PgConnection,
    code: &str,
    language: &str,
) -> sqlx::Result<Option<Template>> {
    nearest(conn, code, language, false).await
}

/// The same among those that are used.
pub async fn active(
    conn: &mut PgConnection,
    code: &str,
    language: &str,
) -> sqlx::Result<Option<Template>> {
    nearest(conn, code, language, true).await
}

async fn nearest(
    conn: &mut PgConnection,
    code: &str,
    language: &str,
    only_active: bool,
) -> sqlx::Result<Option<Template>> {
    sqlx::query_as(
        "-- template::nearest
        select * from notifications.templates where code = $1 and (is_active or not $4)
        order by language = $2 desc, language = $3 desc, seq limit 1",
    )
    .bind(code)
    .bind(language)
    .bind(LANGUAGE)
    .bind(only_active)
    .fetch_optional(conn)
    .await
}

/// A page of templates, newest first.
pub async fn list(
    conn: &mut PgConnection,
    filter: &Filter,
    slice: Slice,
) -> sqlx::Result<Vec<Template>> {
    sqlx::query_as(
        "-- template::list
        select * from notifications.templates
        where ($1::text is null or kind = $1) and ($2::text is null or language = $2)
        order by created_at desc, seq desc limit $3 offset $4",
    )
    .bind(filter.kind)
    .bind(&filter.language)
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(conn)
    .await
}

/// How many templates the filter lets through.
pub async fn count(conn: &mut PgConnection, filter: &Filter) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "-- template::count
        select count(*) from notifications.templates
        where ($1::text is null or kind = $1) and ($2::text is null or language = $2)",
    )
    .bind(filter.kind)
    .bind(&filter.language)
    .fetch_one(conn)
    .await
}

/// A page of what a template said, newest first.
pub async fn versions(
    conn: &mut PgConnection,
    id: &TemplateId,
    slice: Slice,
) -> sqlx::Result<Vec<Version>> {
    sqlx::query_as(
        "select * from notifications.template_versions where template_id = $1
        order by version desc limit $2 offset $3",
    )
    .bind(id)
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(conn)
    .await
}

/// What a template said after one change.
pub async fn version(
    conn: &mut PgConnection,
    id: &TemplateId,
    version: i32,
) -> sqlx::Result<Option<Version>> {
    sqlx::query_as(
        "select * from notifications.template_versions where template_id = $1 and version = $2",
    )
    .bind(id)
    .bind(version)
    .fetch_optional(conn)
    .await
}
