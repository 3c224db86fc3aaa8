//! The URL map.

use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Apps;
use crate::app::{api, package};

/// All routes of the service.
pub fn router(state: Apps) -> OpenApiRouter {
    routes().with_state(state)
}

/// What the routes say of themselves.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().into_openapi()
}

fn routes() -> OpenApiRouter<Apps> {
    // The upload counts its bytes itself, against its own bound.
    let upload = OpenApiRouter::new()
        .routes(routes!(api::upload_app))
        .layer(DefaultBodyLimit::disable());
    OpenApiRouter::new()
        .merge(upload)
        .routes(routes!(api::list_apps))
        .routes(routes!(api::count_apps))
        .routes(routes!(api::find_app, api::delete_app))
        .routes(routes!(api::download_app))
        // For services alone, which is why no document names it.
        .route(
            "/internal/apps/{app_id}/package",
            get(package::give_package),
        )
}
