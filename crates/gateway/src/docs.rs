//! The OpenAPI document of all services, merged.

use http::Method;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi as Document, Ref, RefOr, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use crate::local;

/// The frame that the services' documents are merged into.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Cloudphone",
        description = "The control plane of a cloud-phone platform."
    ),
    servers((url = "/api"), (url = "/")),
    components(schemas(platform::problem::ProblemBody, platform::problem::FieldFault)),
    security(("bearer" = [])),
    modifiers(&Bearer)
)]
struct Frame;

/// Names the token that most routes want, so that the page can send it.
struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut Document) {
        let token = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("JWT")
            .description(Some("The access_token that POST /auth/login gives"))
            .build();
        if let Some(components) = document.components.as_mut() {
            components.add_security_scheme("bearer", SecurityScheme::Http(token));
        }
    }
}

/// What every service says of its routes, in one document.
pub fn document() -> Document {
    let mut document = Frame::openapi();
    let services = [
        local::openapi(),
        users::openapi(),
        devices::openapi(),
        apps::openapi(),
        media::openapi(),
        billing::openapi(),
        notifications::openapi(),
    ];
    for service in services {
        document.merge(service);
    }
    let operations = document.paths.paths.values_mut().flat_map(operations);
    operations.for_each(complete);
    document
}

/// Adds what holds for every route: one that is not marked as open refuses a call without a token, and every refusal
/// is a problem document.
fn complete(operation: &mut Operation) {
    let is_open = is_open(operation);
    let responses = &mut operation.responses.responses;
    let refusal = |text: &str| ResponseBuilder::new().description(text).build().into();
    if !is_open {
        let no_token = || refusal("no token, or one that is no longer good");
        responses.entry("401".to_owned()).or_insert_with(no_token);
    }
    let any = || refusal("any other refusal");
    responses.entry("default".to_owned()).or_insert_with(any);
    for (status, response) in responses {
        let is_refusal = status.starts_with(['4', '5']) || status == "default";
        if let RefOr::T(response) = response
            && is_refusal
            && response.content.is_empty()
        {
            let problem = Ref::from_schema_name("ProblemBody");
            let content = ContentBuilder::new().schema(Some(problem)).build();
            let media_type = "application/problem+json".to_owned();
            response.content.insert(media_type, content.into());
        }
    }
}

/// The routes that want a token, as their services know them.
pub fn guarded() -> Vec<(Method, String)> {
    let mut guarded = Vec::new();
    for (path, item) in document().paths.paths {
        let operations = [
            (Method::GET, item.get),
            (Method::PUT, item.put),
            (Method::POST, item.post),
            (Method::DELETE, item.delete),
            (Method::PATCH, item.patch),
        ];
        for (method, operation) in operations {
            if operation.is_some_and(|operation| !is_open(&operation)) {
                guarded.push((method, path.clone()));
            }
        }
    }
    guarded
}

fn is_open(operation: &Operation) -> bool {
    let wanted = operation.security.as_ref();
    wanted.is_some_and(|wanted| wanted.contains(&SecurityRequirement::default()))
}

fn operations(path: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [
        &mut path.get,
        &mut path.put,
        &mut path.post,
        &mut path.delete,
        &mut path.patch,
    ]
    .into_iter()
    .flatten()
}
