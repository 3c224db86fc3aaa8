//! The OpenAPI document of all services, merged.

use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;

use crate::local;

/// The frame that the services' documents are merged into.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Cloudphone",
        description = "The control plane of a cloud-phone platform."
    ),
    components(schemas(platform::problem::ProblemBody, platform::problem::FieldFault))
)]
struct Frame;

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
