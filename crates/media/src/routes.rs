//! The URL map.

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::{Media, callback, feature, job, provider, task, upload};

/// All routes of the service.
pub fn router(state: Media) -> OpenApiRouter {
    routes().with_state(state)
}

/// What the routes say of themselves.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().into_openapi()
}

fn routes() -> OpenApiRouter<Media> {
    OpenApiRouter::new()
        .routes(routes!(task::api::create_task, task::api::list_tasks))
        .routes(routes!(task::api::find_task))
        .routes(routes!(task::api::cancel_task))
        .routes(routes!(task::api::fetch_result))
        .routes(routes!(feature::list_features))
        .routes(routes!(feature::find_feature))
        .routes(routes!(upload::api::create_upload))
        .routes(routes!(
            upload::api::store_upload,
            upload::api::fetch_linked
        ))
        .routes(routes!(callback::receive_callback))
        .routes(routes!(provider::api::list_providers))
        .routes(routes!(provider::api::check_provider))
        .routes(routes!(job::api::list_jobs))
        .routes(routes!(job::api::job_stats))
}
