//! Further ways through many apps: by cursor, in short, in numbers, the most wanted, and by package.

use axum::extract::State;
use contracts::AppId;
use garde::Validate;
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::problem::ProblemBody;
use platform::{CurrentUser, Problem};
use serde::{Deserialize, Serialize};

use super::api::ListApps;
use super::upload::is_package_name;
use super::{App, AppStatus, Category, db};
use crate::{Apps, Result};

/// Which page of apps is wanted.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CursorQuery {
    /// The `nextCursor` of the page before; the first page where it is left out.
    #[garde(length(max = 64))]
    cursor: Option<String>,
    /// How many, 1 to 500; default 20.
    #[garde(range(min = 1))]
    limit: Option<i64>,
}

/// A page of apps, and where the next one begins.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppCursorPage {
    data: Vec<App>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
    has_more: bool,
    /// How many there are on this page.
    count: usize,
}

/// How many are wanted.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LimitQuery {
    /// How many, 1 to 500; default 20.
    #[garde(range(min = 1))]
    limit: Option<i64>,
}

/// An app in short.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuickApp {
    id: AppId,
    name: String,
    package_name: String,
    version_name: String,
    status: AppStatus,
}

/// Apps in short, and how many there are.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct QuickApps {
    items: Vec<QuickApp>,
    total: i64,
}

/// How many apps there are.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppStats {
    total: i64,
    /// Bytes of all packages.
    total_size: i64,
    total_downloads: i64,
    total_installs: i64,
    by_status: Vec<CountByStatus>,
    by_category: Vec<CountByCategory>,
}

/// How many apps stand somewhere.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct CountByStatus {
    status: AppStatus,
    count: i64,
}

/// How many apps are for something.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct CountByCategory {
    category: Category,
    count: i64,
}

impl LimitQuery {
    fn bounded(&self) -> i64 {
        self.limit.unwrap_or(20).clamp(1, 500)
    }
}

/// Lists apps from a cursor on, the last uploaded first. What is uploaded meanwhile moves no page.
#[utoipa::path(get, path = "/apps/cursor", tag = "apps", params(CursorQuery, ListApps), responses((status = 200, body = AppCursorPage), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody)))]
pub async fn list_apps_by_cursor(
    State(state): State<Apps>,
    user: CurrentUser,
    Query(query): Query<CursorQuery>,
    Query(filter): Query<ListApps>,
) -> Result<Json<AppCursorPage>> {
    let before = query.cursor.as_deref().map(str::parse).transpose();
    let before = before
        .map_err(|_| Problem::invalid_field("cursor", "must be the nextCursor of another page"))?;
    let filter = db::Filter {
        before,
        ..filter.filter(&user)
    };
    let limit = query.limit.unwrap_or(20).clamp(1, 500);
    let mut conn = state.platform.db.acquire().await?;
    let mut apps = db::list_before(&mut conn, &filter, limit + 1).await?;
    let size = usize::try_from(limit).unwrap_or_default();
    let has_more = apps.len() > size;
    apps.truncate(size);
    let next = apps.last().filter(|_| has_more);
    Ok(Json(AppCursorPage {
        next_cursor: next.map(|last| last.seq.to_string()),
        has_more,
        count: apps.len(),
        data: apps,
    }))
}

/// Lists apps in short, the last uploaded first.
#[utoipa::path(get, path = "/apps/quick-list", tag = "apps", params(LimitQuery, ListApps), responses((status = 200, body = QuickApps), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody)))]
pub async fn quick_list_apps(
    State(state): State<Apps>,
    user: CurrentUser,
    Query(query): Query<LimitQuery>,
    Query(filter): Query<ListApps>,
) -> Result<Json<QuickApps>> {
    let filter = filter.filter(&user);
    let mut conn = state.platform.db.acquire().await?;
    let apps = db::list_before(&mut conn, &filter, query.bounded()).await?;
    let total = db::count(&mut conn, &filter).await?;
    let items = apps.into_iter().map(|app| QuickApp {
        id: app.id,
        name: app.name,
        package_name: app.package_name,
        version_name: app.version_name,
        status: app.status,
    });
    Ok(Json(QuickApps {
        items: items.collect(),
        total,
    }))
}

/// Counts the apps that the caller may see.
#[utoipa::path(get, path = "/apps/stats", tag = "apps", responses((status = 200, body = AppStats), (status = 401, body = ProblemBody)))]
pub async fn app_stats(State(state): State<Apps>, user: CurrentUser) -> Result<Json<AppStats>> {
    let mut conn = state.platform.db.acquire().await?;
    let tallies = db::tally(&mut conn, &db::Filter::visible_to(&user)).await?;
    let mut stats = AppStats::default();
    for tally in tallies {
        stats.total += tally.count;
        stats.total_size += tally.size;
        stats.total_downloads += tally.downloads;
        stats.total_installs += tally.installs;
        let (status, category, count) = (tally.status, tally.category, tally.count);
        match stats.by_status.iter_mut().find(|it| it.status == status) {
            Some(known) => known.count += count,
            None => stats.by_status.push(CountByStatus { status, count }),
        }
        match stats
            .by_category
            .iter_mut()
            .find(|it| it.category == category)
        {
            Some(known) => known.count += count,
            None => stats.by_category.push(CountByCategory { category, count }),
        }
    }
    Ok(Json(stats))
}

/// Lists the apps that are fetched and installed most.
#[utoipa::path(get, path = "/apps/top", tag = "apps", params(LimitQuery, ListApps), responses((status = 200, body = Vec<App>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody)))]
pub async fn top_apps(
    State(state): State<Apps>,
    user: CurrentUser,
    Query(query): Query<LimitQuery>,
    Query(filter): Query<ListApps>,
) -> Result<Json<Vec<App>>> {
    let mut conn = state.platform.db.acquire().await?;
    let apps = db::top(&mut conn, &filter.filter(&user), query.bounded()).await?;
    Ok(Json(apps))
}

/// Lists the versions of a package, the highest first.
#[utoipa::path(get, path = "/apps/package/{name}/versions", tag = "apps", params(("name" = String, Path), PageQuery), responses((status = 200, body = Page<App>), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody)))]
pub async fn list_versions(
    State(state): State<Apps>,
    user: CurrentUser,
    Path(name): Path<String>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<App>>> {
    let mut conn = state.platform.db.acquire().await?;
    let filter = of_package(name, &user)?;
    let (apps, total) = db::versions(&mut conn, &filter, page.slice()).await?;
    Ok(Json(Page::new(apps, total, page)))
}

/// Shows the highest version of a package that the caller may see.
#[utoipa::path(get, path = "/apps/package/{name}/latest", tag = "apps", params(("name" = String, Path)), responses((status = 200, body = App), (status = 400, body = ProblemBody), (status = 401, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn find_latest_version(
    State(state): State<Apps>,
    user: CurrentUser,
    Path(name): Path<String>,
) -> Result<Json<App>> {
    let mut conn = state.platform.db.acquire().await?;
    let filter = of_package(name, &user)?;
    let first = platform::http::Slice {
        limit: 1,
        offset: 0,
    };
    let (apps, _) = db::versions(&mut conn, &filter, first).await?;
    let app = apps.into_iter().next();
    Ok(Json(app.ok_or_else(|| Problem::not_found("package"))?))
}

fn of_package(name: String, user: &CurrentUser) -> Result<db::Filter> {
    if !is_package_name(&name) {
        let why = "is not a package name such as com.example.app";
        return Err(Problem::invalid_field("name", why).into());
    }
    Ok(db::Filter {
        package_name: Some(name),
        ..db::Filter::visible_to(user)
    })
}
