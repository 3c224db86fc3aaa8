//! Statements about apps.

use contracts::{AppId, Timestamp, UserId};
use platform::CurrentUser;
use platform::http::Slice;
use sqlx::PgConnection;

use super::change::Change;
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
    /// Versions of this package alone.
    pub package_name: Option<String>,
    /// Those uploaded before the one with this number.
    pub before: Option<i64>,
    /// Those whose uploader is of this tenant.
    pub tenant_id: Option<String>,
}

impl Filter {
    /// All that a user may see.
    pub fn visible_to(user: &CurrentUser) -> Self {
        Self {
            viewer: (!user.is_admin).then(|| user.id.clone()),
            ..Self::default()
        }
    }
}

/// How many apps there are of a status and a category.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Tally {
    /// Where they stand.
    pub status: AppStatus,
    /// What they are for.
    pub category: Category,
    /// How many.
    pub count: i64,
    /// Their bytes.
    pub size: i64,
    /// How often they were fetched.
    pub downloads: i64,
    /// How often they were installed.
    pub installs: i64,
}

/// Writes an app; `false` where package and version are there already.
pub async fn insert(conn: &mut PgConnection, app: &App) -> sqlx::Result<bool> {
    let insert = sqlx::query(
        "insert into apps.apps (id, name, package_name, version_name, version_code, status, category, size, sha256,
            object_key, description, min_sdk_version, target_sdk_version, tags, uploader_id, created_at, updated_at,
            permissions, certificate_sha256)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $16, $17, $18)
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
        .bind(&app.permissions)
        .bind(&app.certificate_sha256)
        .execute(conn)
        .await?;
    Ok(outcome.rows_affected() == 1)
}

/// An app with what is known of its package's other versions.
macro_rules! select_app {
    ($rest:expr) => {
        concat!(
            "-- app::select
            select a.*, a.version_name as shown_version, (select p.icon_key from apps.packages p where p.sha256 = a.sha256) as icon_key,
                not exists (
                select 1 from apps.apps b where b.package_name = a.package_name and b.version_code > a.version_code) as is_latest
            from apps.apps a ",
            $rest
        )
    };
}

/// What a [`Filter`] leaves; its fields are the first seven parameters.
macro_rules! matching {
    ($rest:expr) => {
        concat!(
            "where ($1::text is null or a.name ilike $1 or a.package_name ilike $1)
                and ($2::text is null or a.category = $2)
                and ($3::text is null or a.status = $3)
                and ($4::text is null or a.uploader_id = $4 or a.status in ('approved', 'available'))
                and ($5::text is null or a.package_name = $5)
                and ($6::bigint is null or a.seq < $6)
                and ($7::text is null or exists (
                    select 1 from platform.accounts u where u.id = a.uploader_id and u.tenant_id = $7)) ",
            $rest
        )
    };
}

macro_rules! bound {
    ($query:expr, $filter:expr) => {
        $query
            .bind(pattern($filter))
            .bind($filter.category)
            .bind($filter.status)
            .bind(&$filter.viewer)
            .bind(&$filter.package_name)
            .bind($filter.before)
            .bind(&$filter.tenant_id)
            // What is filtered by decides on the plan.
            .persistent(false)
    };
}

/// One app.
pub async fn find(conn: &mut PgConnection, id: &AppId) -> sqlx::Result<Option<App>> {
    let app: Option<App> = sqlx::query_as(select_app!("where a.id = $1"))
        .bind(id)
        .fetch_optional(conn)
        .await?;
    Ok(app.map(App::with_urls))
}

/// Those of some apps that a viewer may see, or that there are.
pub async fn find_all(
    conn: &mut PgConnection,
    ids: &[&str],
    viewer: Option<&UserId>,
) -> sqlx::Result<Vec<App>> {
    let select = sqlx::query_as(select_app!(
        "where a.id = any($1) and ($2::text is null or a.uploader_id = $2 or a.status in ('approved', 'available'))"
    ));
    let apps: Vec<App> = select.bind(ids).bind(viewer).fetch_all(conn).await?;
    Ok(shown(apps))
}

/// The apps that a filter leaves, newest first, and how many there are on all pages.
pub async fn list(
    conn: &mut PgConnection,
    filter: &Filter,
    slice: Slice,
) -> sqlx::Result<(Vec<App>, i64)> {
    let list = sqlx::query_as(select_app!(matching!(
        "order by a.created_at desc, a.seq desc limit $8 offset $9"
    )));
    let apps = bound!(list, filter).bind(slice.limit).bind(slice.offset);
    let apps: Vec<App> = apps.fetch_all(&mut *conn).await?;
    Ok((shown(apps), count(conn, filter).await?))
}

/// The versions of a package that a filter leaves, the highest first, and how many there are.
pub async fn versions(
    conn: &mut PgConnection,
    filter: &Filter,
    slice: Slice,
) -> sqlx::Result<(Vec<App>, i64)> {
    let list = sqlx::query_as(select_app!(matching!(
        "order by a.version_code desc limit $8 offset $9"
    )));
    let apps = bound!(list, filter).bind(slice.limit).bind(slice.offset);
    let apps: Vec<App> = apps.fetch_all(&mut *conn).await?;
    Ok((shown(apps), count(conn, filter).await?))
}

/// The apps that a filter leaves, the last uploaded first, as many as wanted.
pub async fn list_before(
    conn: &mut PgConnection,
    filter: &Filter,
    limit: i64,
) -> sqlx::Result<Vec<App>> {
    let list = sqlx::query_as(select_app!(matching!("order by a.seq desc limit $8")));
    let apps: Vec<App> = bound!(list, filter).bind(limit).fetch_all(conn).await?;
    Ok(shown(apps))
}

/// The apps that a filter leaves, the most fetched and installed first.
pub async fn top(conn: &mut PgConnection, filter: &Filter, limit: i64) -> sqlx::Result<Vec<App>> {
    let list = sqlx::query_as(select_app!(matching!(
        "order by a.download_count + a.install_count desc, a.seq desc limit $8"
    )));
    let apps: Vec<App> = bound!(list, filter).bind(limit).fetch_all(conn).await?;
    Ok(shown(apps))
}

/// The apps that wait for a review, the oldest first, and how many there are.
pub async fn list_pending(conn: &mut PgConnection, slice: Slice) -> sqlx::Result<(Vec<App>, i64)> {
    let list = sqlx::query_as(select_app!(
        "where a.status = 'pending_review' order by a.created_at, a.seq limit $1 offset $2"
    ));
    let apps: Vec<App> = list
        .bind(slice.limit)
        .bind(slice.offset)
        .fetch_all(&mut *conn)
        .await?;
    let filter = Filter {
        status: Some(AppStatus::PendingReview),
        ..Filter::default()
    };
    Ok((shown(apps), count(conn, &filter).await?))
}

/// How many apps a filter leaves.
pub async fn count(conn: &mut PgConnection, filter: &Filter) -> sqlx::Result<i64> {
    let count = sqlx::query_scalar(concat!(
        "-- app::count
        select count(*) from apps.apps a ",
        matching!("")
    ));
    bound!(count, filter).fetch_one(conn).await
}

/// How many apps a filter leaves in each status and category, with their bytes and how often they were fetched.
pub async fn tally(conn: &mut PgConnection, filter: &Filter) -> sqlx::Result<Vec<Tally>> {
    let tally = sqlx::query_as(concat!(
        "-- app::tally
        select a.status, a.category, count(*) as count, sum(a.size)::bigint as size, sum(a.download_count)::bigint as downloads,
            sum(a.install_count)::bigint as installs
        from apps.apps a ",
        matching!("group by a.status, a.category order by a.status, a.category")
    ));
    bound!(tally, filter).fetch_all(conn).await
}

/// Writes what an uploader says of an app; what is `None` stays. `false` where there is no such app, or it is another's.
pub async fn change(
    conn: &mut PgConnection,
    id: &AppId,
    owner: Option<&UserId>,
    change: &Change,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "-- app::change
        update apps.apps set name = coalesce($3, name), description = coalesce($4, description),
            category = coalesce($5, category), tags = coalesce($6, tags), updated_at = $7
        where id = $1 and ($2::text is null or uploader_id = $2)",
    );
    let done = update
        .bind(id)
        .bind(owner)
        .bind(&change.name)
        .bind(&change.description)
        .bind(change.category)
        .bind(&change.tags)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

fn shown(apps: Vec<App>) -> Vec<App> {
    apps.into_iter().map(App::with_urls).collect()
}

/// Counts a download.
pub async fn count_download(conn: &mut PgConnection, id: &AppId) -> sqlx::Result<()> {
    let update =
        sqlx::query("update apps.apps set download_count = download_count + 1 where id = $1");
    update.bind(id).execute(conn).await?;
    Ok(())
}

/// Those of some object keys that no app names, nor any content as its icon.
pub async fn without_app(conn: &mut PgConnection, keys: &[String]) -> sqlx::Result<Vec<String>> {
    let select = sqlx::query_scalar(
        "-- app::without_app
        select key from unnest($1::text[]) as key
        where not exists (select 1 from apps.apps a where a.object_key = key)
            and not exists (select 1 from apps.packages p where p.icon_key = key)",
    );
    select.bind(keys).fetch_all(conn).await
}

/// The object that holds an app's content from now on: the one that is there already, or the one it came with. Until the
/// end of the transaction nobody deletes it. A content that has no icon yet gets the one that the app came with.
pub async fn share(tx: &mut PgConnection, app: &App) -> sqlx::Result<String> {
    let share = sqlx::query_scalar(
        "-- app::share
        insert into apps.packages as p (sha256, size, object_key, created_at, icon_key) values ($1, $2, $3, $4, $5)
        on conflict (sha256) do update set icon_key = coalesce(p.icon_key, excluded.icon_key) returning object_key",
    );
    share
        .bind(&app.sha256)
        .bind(app.size)
        .bind(&app.object_key)
        .bind(app.created_at)
        .bind(&app.icon_key)
        .fetch_one(tx)
        .await
}

/// Deletes an app of an owner, or of anybody; `None` where there is none. Gives the objects that nobody names any more, to be
/// deleted after the commit.
pub async fn delete(
    tx: &mut PgConnection,
    id: &AppId,
    owner: Option<&UserId>,
) -> sqlx::Result<Option<Vec<String>>> {
    // Whoever shares the content meanwhile waits for the end of this, and this for whoever shares it already.
    let lock = sqlx::query(
        "-- app::delete: package
        select 1 from apps.packages p join apps.apps a on a.sha256 = p.sha256 where a.id = $1 for update of p",
    );
    lock.bind(id).execute(&mut *tx).await?;
    let delete = sqlx::query_as(
        "-- app::delete
        delete from apps.apps where id = $1 and ($2::text is null or uploader_id = $2) returning sha256, object_key",
    );
    let deleted: Option<(String, String)> =
        delete.bind(id).bind(owner).fetch_optional(&mut *tx).await?;
    let Some((sha256, object_key)) = deleted else {
        return Ok(None);
    };
    let (is_named, icon): (bool, Option<String>) = sqlx::query_as(
        "-- app::delete: object
        with gone as (
            delete from apps.packages p where p.sha256 = $1 and not exists (select 1 from apps.apps a where a.sha256 = $1)
            returning p.icon_key)
        select exists (select 1 from apps.apps a where a.object_key = $2), (select icon_key from gone)",
    )
    .bind(sha256)
    .bind(&object_key)
    .fetch_one(tx)
    .await?;
    let package = (!is_named).then_some(object_key);
    Ok(Some(package.into_iter().chain(icon).collect()))
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
