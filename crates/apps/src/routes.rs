//! The URL map.

use axum::extract::DefaultBodyLimit;
use axum::middleware::map_response;
use axum::routing::get;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Apps;
use crate::app::{api, browse, change, download, icon, link, package};
use crate::install::{api as install, on_device};
use crate::resumable::api as resumable;
use crate::review::api as review;

/// All routes of the service.
pub fn router(state: Apps) -> OpenApiRouter {
    routes().with_state(state)
}

/// What the routes say of themselves.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().into_openapi()
}

fn routes() -> OpenApiRouter<Apps> {
    // Uploads count their bytes themselves, against their own bound.
    let upload = OpenApiRouter::new()
        .routes(routes!(api::upload_app))
        .layer(DefaultBodyLimit::disable());
    let resumable = OpenApiRouter::new()
        .routes(routes!(
            resumable::describe_uploads,
            resumable::begin_upload
        ))
        .routes(routes!(
            resumable::find_upload,
            resumable::continue_upload,
            resumable::give_up_upload
        ))
        .layer(DefaultBodyLimit::disable())
        .layer(map_response(resumable::name_version));
    OpenApiRouter::new()
        .merge(upload)
        .merge(resumable)
        .routes(routes!(api::list_apps))
        .routes(routes!(api::count_apps))
        .routes(routes!(browse::list_apps_by_cursor))
        .routes(routes!(browse::quick_list_apps))
        .routes(routes!(browse::app_stats))
        .routes(routes!(browse::top_apps))
        .routes(routes!(browse::list_versions))
        .routes(routes!(browse::find_latest_version))
        .routes(routes!(install::install_apps))
        .routes(routes!(install::uninstall_apps))
        .routes(routes!(install::find_install_saga))
        .routes(routes!(on_device::list_apps_of_device))
        .routes(routes!(on_device::list_devices_of_app))
        .routes(routes!(review::list_pending))
        .routes(routes!(review::list_reviews))
        .routes(routes!(
            api::find_app,
            change::change_app,
            change::delete_app
        ))
        .routes(routes!(download::download_app))
        .routes(routes!(icon::find_icon))
        .routes(routes!(link::make_link))
        .routes(routes!(review::list_reviews_of_app))
        .routes(routes!(review::submit_app))
        .routes(routes!(review::approve_app))
        .routes(routes!(review::reject_app))
        .routes(routes!(review::request_changes))
        .routes(routes!(review::publish_app))
        .routes(routes!(review::unpublish_app))
        // For services alone, which is why no document names it.
        .route(
            "/internal/apps/{app_id}/package",
            get(package::give_package),
        )
}
