//! Statements about apps.

use contracts::{AppId, UserId};
use platform::http::Slice;
use sqlx::{PgConnection, Row};

use super::{App, AppStatus, Category};

/// What a list is narrowed to.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// A part of name or package.
    pub search: Option<String>,
    /// The category.
    pub category: Option<Category>,
    /// Where it stands.
    pub status: Option<AppStatus>,
    /// Sees public apps and this user's own; `None` sees all.
    pub viewer: Option<UserId>,
}

/// Writes an app; `false` where package and version are there already.
pub async fn insert(conn: &mut PgConnection, app: &App) -> sqlx::Result<bool> {
    let insert = sqlx::query(
        "insert into apps.apps (id, name, package_name, version_name, version_code, status, category, size, sha256,
            object_key, description, min_sdk_version, target_sdk_version, tags, uploader_id, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $16)
        on conflict on constraint apps_package_version_key do nothing",
    );
    let outcome = insert
        .bind(&app.id)
        .bind(&app.name)
        .bind(&app.package_name)
        .bind(&app.version_name)
        .bind(app.version_code)
        .bind(app.status)
        .bind(app.category)
        .bind(app.size)
        .bind(&app.sha256)
        .bind(&app.object_key)
        .bind(&app.description)
        .bind(app.min_sdk_version)
        .bind(app.target_sdk_version)
        .bind(&app.tags)
        .bind(&app.uploader_id)
        .bind(app.created_at)
        .execute(conn)
        .await?;
    Ok(outcome.rows_affected() == 1)
}

/// One app.
pub async fn find(conn: &mut PgConnection, id: &AppId) -> sqlx::Result<Option<App>> {
    let app: Option<App> = sqlx::query_as(
        "select a.*, a.version_name as shown_version, not exists (
            select 1 from apps.apps b where b.package_name = a.package_name and b.version_code > a.version_code) as is_latest
        from apps.apps a where a.id = $1",
    )
    .bind(id)
    .fetch_optional(conn)
    .await?;
    Ok(app.map(App::with_download_url))
}

/// The apps that a filter leaves, newest first, and how many there are on all pages.
pub async fn list(
    conn: &mut PgConnection,
    filter: &Filter,
    slice: Slice,
) -> sqlx::Result<(Vec<App>, i64)> {
    let apps: Vec<App> = sqlx::query_as(
        "-- app::list
        select a.*, a.version_name as shown_version, not exists (
            select 1 from apps.apps b where b.package_name = a.package_name and b.version_code > a.version_code) as is_latest
        from apps.apps a
        where ($1::text is null or a.name ilike $1 or a.package_name ilike $1)
            and ($2::text is null or a.category = $2)
            and ($3::text is null or a.status = $3)
            and ($4::text is null or a.uploader_id = $4 or a.status in ('approved', 'available'))
        order by a.created_at desc, a.seq desc limit $5 offset $6",
    )
    .bind(pattern(filter))
    .bind(filter.category)
    .bind(filter.status)
    .bind(&filter.viewer)
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(&mut *conn)
    .await?;
    let total = count(conn, filter).await?;
    Ok((
        apps.into_iter().map(App::with_download_url).collect(),
        total,
    ))
}

/// How many apps a filter leaves.
pub async fn count(conn: &mut PgConnection, filter: &Filter) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "select count(*) from apps.apps a
        where ($1::text is null or a.name ilike $1 or a.package_name ilike $1)
            and ($2::text is null or a.category = $2)
            and ($3::text is null or a.status = $3)
            and ($4::text is null or a.uploader_id = $4 or a.status in ('approved', 'available'))",
    )
    .bind(pattern(filter))
    .bind(filter.category)
    .bind(filter.status)
    .bind(&filter.viewer)
    .fetch_one(conn)
    .await
}

/// Counts a download.
pub async fn count_download(conn: &mut PgConnection, id: &AppId) -> sqlx::Result<()> {
    let update =
        sqlx::query("update apps.apps set download_count = download_count + 1 where id = $1");
    update.bind(id).execute(conn).await?;
    Ok(())
}

/// Those of some object keys that no app names.
pub async fn without_app(conn: &mut PgConnection, keys: &[String]) -> sqlx::Result<Vec<String>> {
    let select = sqlx::query_scalar(
        "-- app::without_app
        select key from unnest($1::text[]) as key
        where not exists (select 1 from apps.apps a where a.object_key = key)",
    );
    select.bind(keys).fetch_all(conn).await
}

/// Deletes an app of an owner, or of anybody; the key of its object.
pub async fn delete(
    conn: &mut PgConnection,
    id: &AppId,
    owner: Option<&UserId>,
) -> sqlx::Result<Option<String>> {
    let delete = sqlx::query(
        "delete from apps.apps where id = $1 and ($2::text is null or uploader_id = $2) returning object_key",
    );
    let row = delete.bind(id).bind(owner).fetch_optional(conn).await?;
    row.map(|row| row.try_get(0)).transpose()
}

/// The pattern that finds the words anywhere; what `like` would read as a sign is taken as written.
fn pattern(filter: &Filter) -> Option<String> {
    let escape = |text: &String| {
        text.replace('\\', "\\\\")
            .replace('%', "\\%")
            .replace('_', "\\_")
    };
    filter
        .search
        .as_ref()
        .map(|text| format!("%{}%", escape(text)))
}
