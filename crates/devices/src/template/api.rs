//! Making, finding, changing and removing templates.

use axum::extract::State;
use contracts::{DeviceId, TaskId, UserId};
use garde::Validate;
use http::StatusCode;
use platform::http::{Json, Page, PageQuery, Path, Query, SliceQuery};
use platform::{CurrentUser, Problem};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::{Category, Template, db};
use crate::device::create::{check_android_version, check_resolution};
use crate::{Devices, Error, device, error::Result};

/// Which templates are wanted.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct TemplateFilter {
    /// Of this category.
    #[garde(skip)]
    #[param(inline)]
    pub category: Option<Category>,
    /// Public ones, or those that are not.
    #[garde(skip)]
    pub is_public: Option<bool>,
    /// With this text in name or description.
    #[garde(length(chars, max = 100))]
    pub search: Option<String>,
}

/// What templates are looked for by.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct KeywordQuery {
    /// A text in name or description.
    #[garde(length(chars, max = 100))]
    pub keyword: Option<String>,
}

/// What devices shall be.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateTemplate {
    /// What its maker calls it.
    #[garde(length(chars, min = 1, max = 100))]
    pub name: String,
    /// What its maker says about it.
    #[garde(length(chars, max = 500))]
    pub description: Option<String>,
    /// Default general.
    #[garde(skip)]
    #[schema(inline)]
    pub category: Option<Category>,
    /// Default 2.
    #[garde(range(min = 1, max = 16))]
    pub cpu_cores: Option<i32>,
    /// Default 4096; `memoryMB` on the wire and in refusals.
    #[garde(range(min = 512, max = 32_768))]
    pub memory_m_b: Option<i32>,
    /// Default 10240; `storageMB` on the wire and in refusals.
    #[garde(range(min = 1_024, max = 1_048_576))]
    pub storage_m_b: Option<i32>,
    /// Default 1080x1920.
    #[garde(inner(custom(check_resolution)))]
    pub resolution: Option<String>,
    /// Default 320.
    #[garde(range(min = 120, max = 640))]
    pub dpi: Option<i32>,
    /// Default 11.
    #[garde(inner(custom(check_android_version)))]
    pub android_version: Option<String>,
    /// At most 10.
    #[garde(length(max = 10), inner(inner(length(chars, min = 1, max = 50))))]
    pub tags: Option<Vec<String>>,
    /// Whether others see it; default false.
    #[garde(skip)]
    pub is_public: Option<bool>,
}

/// What shall be different. What is left out stays.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PatchTemplate {
    /// What its maker calls it.
    #[garde(length(chars, min = 1, max = 100))]
    pub name: Option<String>,
    /// What its maker says about it.
    #[garde(length(chars, max = 500))]
    pub description: Option<String>,
    /// What it is for.
    #[garde(skip)]
    #[schema(inline)]
    pub category: Option<Category>,
    /// Processor cores.
    #[garde(range(min = 1, max = 16))]
    pub cpu_cores: Option<i32>,
    /// Memory; `memoryMB` on the wire and in refusals.
    #[garde(range(min = 512, max = 32_768))]
    pub memory_m_b: Option<i32>,
    /// Storage; `storageMB` on the wire and in refusals.
    #[garde(range(min = 1_024, max = 1_048_576))]
    pub storage_m_b: Option<i32>,
    /// Pixels.
    #[garde(inner(custom(check_resolution)))]
    pub resolution: Option<String>,
    /// Dots per inch.
    #[garde(range(min = 120, max = 640))]
    pub dpi: Option<i32>,
    /// The version of Android.
    #[garde(inner(custom(check_android_version)))]
    pub android_version: Option<String>,
    /// At most 10.
    #[garde(length(max = 10), inner(inner(length(chars, min = 1, max = 50))))]
    pub tags: Option<Vec<String>>,
    /// Whether others see it.
    #[garde(skip)]
    pub is_public: Option<bool>,
}

/// What a template of a device shall be called.
#[derive(Clone, Debug, Default, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateOfDevice {
    /// What its maker calls it.
    #[garde(length(chars, min = 1, max = 100))]
    pub name: String,
    /// What its maker says about it.
    #[garde(length(chars, max = 500))]
    pub description: Option<String>,
    /// Default custom.
    #[garde(skip)]
    #[schema(inline)]
    pub category: Option<Category>,
    /// Whether others see it; default false.
    #[garde(skip)]
    pub is_public: Option<bool>,
}

/// Templates in a few numbers.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateStats {
    total: i64,
    public: i64,
    private: i64,
    /// Devices that were made of them.
    total_usage: i64,
    by_category: std::collections::BTreeMap<String, i64>,
}

/// The template is gone.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct TemplateDeleted {
    message: String,
}

/// Lists the caller's templates and public ones, newest first; admins see all.
#[utoipa::path(get, path = "/templates", tag = "templates", params(PageQuery, TemplateFilter), responses((status = 200, body = Page<Template>)))]
pub async fn list_templates(
    State(state): State<Devices>,
    user: CurrentUser,
    Query(page): Query<PageQuery>,
    Query(filter): Query<TemplateFilter>,
) -> Result<Json<Page<Template>>> {
    listed(&state, &user, page, &filter).await
}

/// Looks for templates by a text in name or description.
#[utoipa::path(get, path = "/templates/search", tag = "templates", params(PageQuery, KeywordQuery), responses((status = 200, body = Page<Template>)))]
pub async fn search_templates(
    State(state): State<Devices>,
    user: CurrentUser,
    Query(page): Query<PageQuery>,
    Query(query): Query<KeywordQuery>,
) -> Result<Json<Page<Template>>> {
    let filter = TemplateFilter {
        search: query.keyword,
        ..TemplateFilter::default()
    };
    listed(&state, &user, page, &filter).await
}

/// Lists the templates that the caller sees, the most used first.
#[utoipa::path(get, path = "/templates/popular", tag = "templates", params(SliceQuery), responses((status = 200, body = Vec<Template>)))]
pub async fn popular_templates(
    State(state): State<Devices>,
    user: CurrentUser,
    Query(query): Query<SliceQuery>,
) -> Result<Json<Vec<Template>>> {
    let mut conn = state.platform.db.acquire().await?;
    Ok(Json(
        db::popular(&mut conn, viewer(&user), query.slice()).await?,
    ))
}

/// Counts the templates that the caller sees.
#[utoipa::path(get, path = "/templates/stats", tag = "templates", responses((status = 200, body = TemplateStats)))]
pub async fn template_stats(
    State(state): State<Devices>,
    user: CurrentUser,
) -> Result<Json<TemplateStats>> {
    let mut conn = state.platform.db.acquire().await?;
    let mut stats = TemplateStats::default();
    for (category, count, public, used) in db::stats(&mut conn, viewer(&user)).await? {
        stats.total += count;
        stats.public += public;
        stats.private += count - public;
        stats.total_usage += used;
        stats.by_category.insert(category, count);
    }
    Ok(Json(stats))
}

/// Shows a template.
#[utoipa::path(get, path = "/templates/{id}", tag = "templates", params(("id" = String, Path)), responses((status = 200, body = Template), (status = 404)))]
pub async fn find_template(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<String>,
) -> Result<Json<Template>> {
    let mut conn = state.platform.db.acquire().await?;
    Ok(Json(visible(&mut conn, &user, &id).await?))
}

/// Makes a template.
#[utoipa::path(post, path = "/templates", tag = "templates", request_body = CreateTemplate, responses((status = 201, body = Template), (status = 400), (status = 403, description = "The caller has 500 templates")))]
pub async fn create_template(
    State(state): State<Devices>,
    user: CurrentUser,
    Json(body): Json<CreateTemplate>,
) -> Result<(StatusCode, Json<Template>)> {
    let now = state.platform.clock.now();
    let template = Template {
        id: new_id(),
        name: body.name,
        description: body.description,
        category: body.category.unwrap_or(Category::General),
        cpu_cores: body.cpu_cores.unwrap_or(2),
        memory_mb: body.memory_m_b.unwrap_or(4_096),
        storage_mb: body.storage_m_b.unwrap_or(10_240),
        resolution: body.resolution.unwrap_or_else(|| "1080x1920".into()),
        dpi: body.dpi.unwrap_or(320),
        android_version: body.android_version.unwrap_or_else(|| "11".into()),
        tags: body.tags.unwrap_or_default(),
        is_public: body.is_public.unwrap_or_default(),
        usage_count: 0,
        created_by: user.id,
        created_at: now,
        updated_at: now,
    };
    store(&state, &template).await?;
    Ok((StatusCode::CREATED, Json(template)))
}

/// Makes a template of what a device is.
#[utoipa::path(post, path = "/templates/from-device/{device_id}", tag = "templates", params(("device_id" = String, Path)), request_body = TemplateOfDevice,
    responses((status = 201, body = Template), (status = 400), (status = 403, description = "The caller has 500 templates"), (status = 404)))]
pub async fn create_template_of_device(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(device_id): Path<DeviceId>,
    Json(body): Json<TemplateOfDevice>,
) -> Result<(StatusCode, Json<Template>)> {
    let now = state.platform.clock.now();
    let device = {
        let mut conn = state.platform.db.acquire().await?;
        device::db::find(&mut conn, &device_id).await?
    };
    let device = device.filter(|device| user.may_see(&device.user_id));
    let device = device.ok_or(Error::NoSuchDevice { device: device_id })?;
    let template = Template {
        id: new_id(),
        name: body.name,
        description: body.description,
        category: body.category.unwrap_or(Category::Custom),
        cpu_cores: device.cpu_cores,
        memory_mb: device.memory_mb,
        storage_mb: device.storage_mb,
        resolution: device.resolution,
        dpi: device.dpi,
        android_version: device.android_version,
        tags: device.tags,
        is_public: body.is_public.unwrap_or_default(),
        usage_count: 0,
        created_by: user.id,
        created_at: now,
        updated_at: now,
    };
    store(&state, &template).await?;
    Ok((StatusCode::CREATED, Json(template)))
}

/// Writes a template, unless its maker has as many as one may.
async fn store(state: &Devices, template: &Template) -> Result<()> {
    let mut tx = state.platform.db.begin().await?;
    let current = db::count_locked(&mut tx, &template.created_by).await?;
    if current >= db::MOST {
        return Err(Error::QuotaExceeded {
            quota: "templates",
            key: "templates",
            current,
            limit: db::MOST,
        });
    }
    db::insert(&mut tx, template).await?;
    tx.commit().await?;
    Ok(())
}

/// Changes one of the caller's templates; admins change any.
#[utoipa::path(patch, path = "/templates/{id}", tag = "templates", params(("id" = String, Path)), request_body = PatchTemplate,
    responses((status = 200, body = Template), (status = 400), (status = 403, description = "It is another user's"), (status = 404)))]
pub async fn patch_template(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<String>,
    Json(body): Json<PatchTemplate>,
) -> Result<Json<Template>> {
    let mut tx = state.platform.db.begin().await?;
    visible(&mut tx, &user, &id).await?;
    let now = state.platform.clock.now();
    if !db::patch(&mut tx, (&id, viewer(&user)), &body, now).await? {
        return Err(foreign());
    }
    let template = visible(&mut tx, &user, &id).await?;
    tx.commit().await?;
    Ok(Json(template))
}

/// Removes one of the caller's templates; devices that were made of it stay.
#[utoipa::path(delete, path = "/templates/{id}", tag = "templates", params(("id" = String, Path)),
    responses((status = 200, body = TemplateDeleted), (status = 403, description = "It is another user's"), (status = 404)))]
pub async fn delete_template(
    State(state): State<Devices>,
    user: CurrentUser,
    Path(id): Path<String>,
) -> Result<Json<TemplateDeleted>> {
    let mut conn = state.platform.db.acquire().await?;
    visible(&mut conn, &user, &id).await?;
    if !db::delete(&mut conn, &id, viewer(&user)).await? {
        return Err(foreign());
    }
    Ok(Json(TemplateDeleted {
        message: "the template was deleted".into(),
    }))
}

/// A template that the caller sees.
pub async fn visible(conn: &mut PgConnection, user: &CurrentUser, id: &str) -> Result<Template> {
    let found = match contracts::id::is_valid(id) {
        true => db::find(conn, id, viewer(user)).await?,
        false => None,
    };
    found.ok_or_else(|| Problem::not_found("template").into())
}

async fn listed(
    state: &Devices,
    user: &CurrentUser,
    page: PageQuery,
    filter: &TemplateFilter,
) -> Result<Json<Page<Template>>> {
    let mut conn = state.platform.db.acquire().await?;
    let templates = db::list(&mut conn, viewer(user), filter, page.slice()).await?;
    let total = db::count(&mut conn, viewer(user), filter).await?;
    Ok(Json(Page::new(templates, total, page)))
}

/// By whose eyes templates are seen; admins see all.
fn viewer(user: &CurrentUser) -> Option<&UserId> {
    (!user.is_admin).then_some(&user.id)
}

fn foreign() -> Error {
    Problem::forbidden("only its maker may change a template").into()
}

fn new_id() -> String {
    // Not a task's, but an id like all of ours.
    TaskId::new().to_string()
}
