//! The OpenAPI document of all services, merged.

use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
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
    document
}
