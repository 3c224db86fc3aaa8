//! The URL map. Sockets come in by [`crate::wrap`], which names the paths that lead to them.

use axum::routing::any;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Notifications;
use crate::broadcast::api as broadcast;
use crate::delivery::api as delivery;
use crate::notification::{api, stats};
use crate::preference::api as preference;
use crate::presence::api as presence;
use crate::socket::{PLAIN_PATH, plain, stream};
use crate::template::api as template;
use crate::webhook::api as webhook;

/// All routes of the service.
pub fn router(state: Notifications) -> OpenApiRouter {
    // An upgrade is no operation that OpenAPI could describe.
    documented()
        .route(PLAIN_PATH, any(plain::open))
        .with_state(state)
}

/// What the routes say of themselves.
pub fn openapi() -> OpenApi {
    documented().into_openapi()
}

fn documented() -> OpenApiRouter<Notifications> {
    OpenApiRouter::new()
        .routes(routes!(api::list_notifications, api::create_notification))
        .routes(routes!(api::send_notification))
        .routes(routes!(api::list_notifications_of_user))
        .routes(routes!(api::count_unread))
        .routes(routes!(api::read_all_notifications))
        .routes(routes!(api::delete_notifications))
        .routes(routes!(stats::find_notification_stats))
        .routes(routes!(stream::stream_notifications))
        .routes(routes!(api::find_notification, api::delete_notification))
        .routes(routes!(
            api::read_notification,
            api::read_notification_by_post
        ))
        .merge(broadcasts())
        .merge(deliveries())
        .merge(preferences())
        .routes(routes!(presence::list_presence))
        .routes(routes!(presence::find_presence))
        .merge(templates())
}

fn broadcasts() -> OpenApiRouter<Notifications> {
    OpenApiRouter::new()
        .routes(routes!(broadcast::send_broadcast))
        .routes(routes!(broadcast::list_broadcasts))
        .routes(routes!(broadcast::find_broadcast))
        .routes(routes!(broadcast::cancel_broadcast))
}

fn deliveries() -> OpenApiRouter<Notifications> {
    OpenApiRouter::new()
        .routes(routes!(delivery::list_deliveries))
        .routes(routes!(delivery::retry_delivery))
        .routes(routes!(delivery::list_deliveries_of_notification))
        .routes(routes!(
            webhook::find_webhook,
            webhook::put_webhook,
            webhook::delete_webhook
        ))
        .routes(routes!(webhook::rotate_webhook_secret))
}

fn preferences() -> OpenApiRouter<Notifications> {
    OpenApiRouter::new()
        .routes(routes!(preference::find_preferences))
        .routes(routes!(preference::list_types))
        .routes(routes!(preference::put_preferences))
        .routes(routes!(preference::reset_preferences))
        .routes(routes!(preference::put_preference))
}

fn templates() -> OpenApiRouter<Notifications> {
    OpenApiRouter::new()
        .routes(routes!(template::list_templates, template::create_template))
        .routes(routes!(template::render_template))
        .routes(routes!(template::preview_template))
        .routes(routes!(template::validate_template))
        .routes(routes!(template::find_template_by_code))
        .routes(routes!(
            template::find_template,
            template::patch_template,
            template::put_template,
            template::delete_template
        ))
        .routes(routes!(template::toggle_template))
        .routes(routes!(template::list_template_versions))
        .routes(routes!(template::find_template_version))
}
