//! The routes of templates, for admins alone.

use axum::extract::State;
use contracts::TemplateId;
use garde::Validate;
use http::StatusCode;
use platform::http::{Json, Page, PageQuery, Path, Query};
use platform::problem::ProblemBody;
use platform::{Admin, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::db::{self, Content, Filter};
use super::{LANGUAGE, Rendered, Template, Version, render, text};
use crate::notification::api::{Done, check_data};
use crate::notification::{Channel, Kind};
use crate::{Error, Notifications, Result};

const TAG: &str = "notification-templates";

/// A template to make.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateTemplate {
    /// What programs call it. That of a domain event, as in `order.paid`, gives its notifications these words.
    #[garde(length(min = 1, max = 100), pattern(r"^[A-Za-z0-9_.:-]+$"))]
    code: String,
    /// What people call it.
    #[garde(length(chars, min = 1, max = 200))]
    name: String,
    /// What its notifications are about; `system` where it is not said.
    #[garde(skip)]
    #[serde(rename = "type")]
    kind: Option<Kind>,
    /// The heading, with placeholders such as `{{orderNo}}`.
    #[garde(length(chars, min = 1, max = 200), custom(is_text))]
    title: String,
    /// The text, with placeholders.
    #[garde(length(chars, min = 1, max = 10_000), custom(is_text))]
    body: String,
    /// The ways its notifications take; `websocket` where none is named.
    #[garde(inner(length(min = 1, max = 4)))]
    channels: Option<Vec<Channel>>,
    /// The language of its words; `zh-CN` where it is not said.
    #[garde(inner(custom(is_language)))]
    language: Option<String>,
    /// Whether it is used; true where it is not said.
    #[garde(skip)]
    is_active: Option<bool>,
}

/// What shall be different. What is left out stays.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PatchTemplate {
    /// What programs call it.
    #[garde(inner(length(min = 1, max = 100), pattern(r"^[A-Za-z0-9_.:-]+$")))]
    code: Option<String>,
    /// What people call it.
    #[garde(inner(length(chars, min = 1, max = 200)))]
    name: Option<String>,
    /// What its notifications are about.
    #[garde(skip)]
    #[serde(rename = "type")]
    kind: Option<Kind>,
    /// The heading, with placeholders.
    #[garde(inner(length(chars, min = 1, max = 200), custom(is_text)))]
    title: Option<String>,
    /// The text, with placeholders.
    #[garde(inner(length(chars, min = 1, max = 10_000), custom(is_text)))]
    body: Option<String>,
    /// The ways its notifications take.
    #[garde(inner(length(min = 1, max = 4)))]
    channels: Option<Vec<Channel>>,
    /// The language of its words.
    #[garde(inner(custom(is_language)))]
    language: Option<String>,
    /// Whether it is used.
    #[garde(skip)]
    is_active: Option<bool>,
}

/// Which templates a list shows.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TemplateQuery {
    /// Only those about this.
    #[garde(skip)]
    #[serde(rename = "type")]
    kind: Option<Kind>,
    /// Only those in this language.
    #[garde(inner(custom(is_language)))]
    language: Option<String>,
}

/// In which language a template is wanted.
#[derive(Debug, Deserialize, Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LanguageQuery {
    /// Before others; `zh-CN` where it is not said.
    #[garde(inner(custom(is_language)))]
    language: Option<String>,
}

/// A template to fill in.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RenderTemplate {
    /// The code of the template.
    #[garde(length(min = 1, max = 100))]
    template_code: String,
    /// In this language before others; `zh-CN` where it is not said.
    #[garde(inner(custom(is_language)))]
    language: Option<String>,
    /// What its placeholders stand for, at most 16 KiB.
    #[garde(skip)]
    #[schema(value_type = Option<Object>)]
    data: Option<Map<String, Value>>,
}

/// Words to fill in that are not stored.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
pub struct PreviewTemplate {
    /// The heading.
    #[garde(length(chars, min = 1, max = 200), custom(is_text))]
    title: String,
    /// The text.
    #[garde(length(chars, min = 1, max = 10_000), custom(is_text))]
    body: String,
    /// What their placeholders stand for, at most 16 KiB.
    #[garde(skip)]
    #[schema(value_type = Option<Object>)]
    data: Option<Map<String, Value>>,
}

/// Words to judge.
#[derive(Debug, Deserialize, Validate, utoipa::ToSchema)]
#[garde(allow_unvalidated)]
pub struct ValidateTemplate {
    /// The heading.
    title: Option<String>,
    /// The text.
    body: Option<String>,
}

/// Whether words can be a template's, and which placeholders they have.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Validity {
    valid: bool,
    errors: Vec<String>,
    /// The names that data must have.
    placeholders: Vec<String>,
}

/// Lists templates, newest first.
#[utoipa::path(get, path = "/notification-templates", tag = TAG, operation_id = "list_notification_templates", params(PageQuery, TemplateQuery),
    responses((status = 200, body = Page<Template>), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn list_templates(
    State(state): State<Notifications>,
    _: Admin,
    Query(page): Query<PageQuery>,
    Query(query): Query<TemplateQuery>,
) -> Result<Json<Page<Template>>> {
    let filter = Filter {
        kind: query.kind,
        language: query.language,
    };
    let mut conn = state.platform.db.acquire().await?;
    let templates = db::list(&mut conn, &filter, page.slice()).await?;
    let total = db::count(&mut conn, &filter).await?;
    Ok(Json(Page::new(templates, total, page)))
}

/// Makes a template.
#[utoipa::path(post, path = "/notification-templates", tag = TAG, operation_id = "create_notification_template", request_body = CreateTemplate,
    responses((status = 201, body = Template), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn create_template(
    State(state): State<Notifications>,
    Admin(admin): Admin,
    Json(body): Json<CreateTemplate>,
) -> Result<(StatusCode, Json<Template>)> {
    let content = Content {
        code: body.code,
        name: body.name,
        kind: body.kind.unwrap_or_default(),
        title: body.title,
        body: body.body,
        channels: body.channels.unwrap_or_else(|| vec![Channel::Websocket]),
        language: body.language.unwrap_or_else(|| LANGUAGE.to_owned()),
        is_active: body.is_active.unwrap_or(true),
    };
    let mut tx = state.platform.db.begin().await?;
    let now = state.platform.clock.now();
    let template = db::insert(&mut tx, content, &admin.id, now)
        .await
        .map_err(taken)?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, Json(template)))
}

/// Shows a template.
#[utoipa::path(get, path = "/notification-templates/{id}", tag = TAG, operation_id = "find_notification_template", params(("id" = String, Path)),
    responses((status = 200, body = Template), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn find_template(
    State(state): State<Notifications>,
    _: Admin,
    Path(id): Path<TemplateId>,
) -> Result<Json<Template>> {
    let mut conn = state.platform.db.acquire().await?;
    let template = db::find(&mut conn, &id).await?;
    Ok(Json(template.ok_or(Error::TemplateNotFound)?))
}

/// Shows the template of a code.
#[utoipa::path(get, path = "/notification-templates/by-code/{code}", tag = TAG, params(("code" = String, Path), LanguageQuery),
    responses((status = 200, body = Template), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn find_template_by_code(
    State(state): State<Notifications>,
    _: Admin,
    Path(code): Path<String>,
    Query(query): Query<LanguageQuery>,
) -> Result<Json<Template>> {
    let language = query.language.as_deref().unwrap_or(LANGUAGE);
    let mut conn = state.platform.db.acquire().await?;
    let template = db::by_code(&mut conn, &code, language).await?;
    Ok(Json(template.ok_or(Error::TemplateNotFound)?))
}

/// Changes a template; what it said before stays among its versions.
#[utoipa::path(patch, path = "/notification-templates/{id}", tag = TAG, operation_id = "patch_notification_template", params(("id" = String, Path)), request_body = PatchTemplate,
    responses((status = 200, body = Template), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn patch_template(
    State(state): State<Notifications>,
    Admin(admin): Admin,
    Path(id): Path<TemplateId>,
    Json(body): Json<PatchTemplate>,
) -> Result<Json<Template>> {
    change(&state, &admin.id, &id, body).await
}

/// The same for clients that put.
#[utoipa::path(put, path = "/notification-templates/{id}", tag = TAG, operation_id = "put_notification_template", params(("id" = String, Path)), request_body = PatchTemplate,
    responses((status = 200, body = Template), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn put_template(
    State(state): State<Notifications>,
    Admin(admin): Admin,
    Path(id): Path<TemplateId>,
    Json(body): Json<PatchTemplate>,
) -> Result<Json<Template>> {
    change(&state, &admin.id, &id, body).await
}

async fn change(
    state: &Notifications,
    admin: &contracts::UserId,
    id: &TemplateId,
    body: PatchTemplate,
) -> Result<Json<Template>> {
    let mut tx = state.platform.db.begin().await?;
    let old = db::lock(&mut tx, id)
        .await?
        .ok_or(Error::TemplateNotFound)?;
    let content = Content {
        code: body.code.unwrap_or(old.code),
        name: body.name.unwrap_or(old.name),
        kind: body.kind.unwrap_or(old.kind),
        title: body.title.unwrap_or(old.title),
        body: body.body.unwrap_or(old.body),
        channels: body.channels.unwrap_or(old.channels.0),
        language: body.language.unwrap_or(old.language),
        is_active: body.is_active.unwrap_or(old.is_active),
    };
    let now = state.platform.clock.now();
    let template = db::update(&mut tx, id, content, admin, now)
        .await
        .map_err(taken)?;
    tx.commit().await?;
    Ok(Json(template))
}

/// Uses a template that was not used, and the other way round.
#[utoipa::path(patch, path = "/notification-templates/{id}/toggle", tag = TAG, params(("id" = String, Path)),
    responses((status = 200, body = Template), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn toggle_template(
    State(state): State<Notifications>,
    _: Admin,
    Path(id): Path<TemplateId>,
) -> Result<Json<Template>> {
    let mut conn = state.platform.db.acquire().await?;
    let toggled = db::toggle(&mut conn, &id, state.platform.clock.now()).await?;
    Ok(Json(toggled.ok_or(Error::TemplateNotFound)?))
}

/// Deletes a template and its versions.
#[utoipa::path(delete, path = "/notification-templates/{id}", tag = TAG, operation_id = "delete_notification_template", params(("id" = String, Path)),
    responses((status = 200, body = Done), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn delete_template(
    State(state): State<Notifications>,
    _: Admin,
    Path(id): Path<TemplateId>,
) -> Result<Json<Done>> {
    let mut conn = state.platform.db.acquire().await?;
    match db::delete(&mut conn, &id).await? {
        true => Ok(Json(Done::new("Template deleted"))),
        false => Err(Error::TemplateNotFound),
    }
}

/// Lists what a template said after each change, newest first.
#[utoipa::path(get, path = "/notification-templates/{id}/versions", tag = TAG, params(("id" = String, Path), PageQuery),
    responses((status = 200, body = Page<Version>), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn list_template_versions(
    State(state): State<Notifications>,
    _: Admin,
    Path(id): Path<TemplateId>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Version>>> {
    let mut conn = state.platform.db.acquire().await?;
    let template = db::find(&mut conn, &id).await?;
    let template = template.ok_or(Error::TemplateNotFound)?;
    let versions = db::versions(&mut conn, &id, page.slice()).await?;
    // They are numbered without a gap.
    Ok(Json(Page::new(versions, template.version.into(), page)))
}

/// Shows what a template said after one change.
#[utoipa::path(get, path = "/notification-templates/{id}/versions/{version}", tag = TAG, params(("id" = String, Path), ("version" = i32, Path)),
    responses((status = 200, body = Version), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn find_template_version(
    State(state): State<Notifications>,
    _: Admin,
    Path((id, version)): Path<(TemplateId, i32)>,
) -> Result<Json<Version>> {
    let mut conn = state.platform.db.acquire().await?;
    let version = db::version(&mut conn, &id, version).await?;
    Ok(Json(version.ok_or(Error::TemplateNotFound)?))
}

/// Fills in a template, active or not.
#[utoipa::path(post, path = "/notification-templates/render", tag = TAG, request_body = RenderTemplate,
    responses((status = 200, body = Rendered), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody), (status = 404, body = ProblemBody)))]
pub async fn render_template(
    State(state): State<Notifications>,
    _: Admin,
    Json(body): Json<RenderTemplate>,
) -> Result<Json<Rendered>> {
    check_data(body.data.as_ref())?;
    let language = body.language.as_deref().unwrap_or(LANGUAGE);
    let mut conn = state.platform.db.acquire().await?;
    let template = db::by_code(&mut conn, &body.template_code, language).await?;
    let template = template.ok_or(Error::TemplateNotFound)?;
    let data = body.data.unwrap_or_default();
    Ok(Json(filled((&template.title, &template.body), &data)?))
}

/// Fills in words that are not stored.
#[utoipa::path(post, path = "/notification-templates/preview", tag = TAG, request_body = PreviewTemplate,
    responses((status = 200, body = Rendered), (status = 400, body = ProblemBody), (status = 403, body = ProblemBody)))]
pub async fn preview_template(
    _: Admin,
    Json(body): Json<PreviewTemplate>,
) -> Result<Json<Rendered>> {
    check_data(body.data.as_ref())?;
    let data = body.data.unwrap_or_default();
    Ok(Json(filled((&body.title, &body.body), &data)?))
}

/// Tells whether words can be a template's.
#[utoipa::path(post, path = "/notification-templates/validate", tag = TAG, request_body = ValidateTemplate,
    responses((status = 200, body = Validity), (status = 403, body = ProblemBody)))]
pub async fn validate_template(_: Admin, Json(body): Json<ValidateTemplate>) -> Json<Validity> {
    let mut validity = Validity {
        valid: true,
        errors: Vec::new(),
        placeholders: Vec::new(),
    };
    let parts = [("title", body.title, 200), ("body", body.body, 10_000)];
    if parts.iter().all(|(_, text, _)| text.is_none()) {
        validity.errors.push("title or body is required".to_owned());
    }
    for (field, text, most) in &parts {
        let Some(text) = text else { continue };
        if !(1..=*most).contains(&text.chars().count()) {
            let fault = format!("{field}: has 1 to {most} characters");
            validity.errors.push(fault);
            continue;
        }
        match text::placeholders(text) {
            Ok(names) => validity
                .placeholders
                .extend(names.into_iter().map(str::to_owned)),
            Err(fault) => validity.errors.push(format!("{field}: {fault}")),
        }
    }
    validity.valid = validity.errors.is_empty();
    validity.placeholders.sort_unstable();
    validity.placeholders.dedup();
    Json(validity)
}

fn filled(words: (&str, &str), data: &Map<String, Value>) -> Result<Rendered> {
    render(words, data).map_err(|(field, fault)| {
        let told = format!("the {field} cannot be filled in: {fault}");
        Problem::invalid_field("data", told).into()
    })
}

fn is_text(text: &str, (): &()) -> garde::Result {
    let judged = text::placeholders(text).map(|_| ());
    judged.map_err(garde::Error::new)
}

/// Whether a text names a language, as in `zh-CN`.
pub fn is_language(text: &str, (): &()) -> garde::Result {
    let is_part = |part: &str| {
        (1..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    match text.len() <= 35 && text.split('-').all(is_part) {
        true => Ok(()),
        false => Err(garde::Error::new("is a language such as zh-CN or en")),
    }
}

fn taken(error: sqlx::Error) -> Error {
    let database = error.as_database_error();
    match database.and_then(|error| error.constraint()) {
        Some("templates_code_key") => Error::TemplateExists,
        _ => error.into(),
    }
}
