//! The URL map.

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::{api as access, remote, tunnel};
use crate::device::{api, create, list};
use crate::node::{api as node, check};
use crate::operation::api as operation;
use crate::{Devices, port, reconcile};

/// The routes of the service.
pub fn router(state: Devices) -> OpenApiRouter {
    routes().with_state(state)
}

/// What the routes say of themselves.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().into_openapi()
}

fn routes() -> OpenApiRouter<Devices> {
    OpenApiRouter::new()
        .routes(routes!(create::create_device, list::list_devices))
        .routes(routes!(list::list_my_devices))
        .routes(routes!(list::my_device_stats))
        .routes(routes!(list::device_stats))
        .routes(routes!(list::count_devices))
        .routes(routes!(operation::find_saga))
        .routes(routes!(
            list::find_device,
            api::patch_device,
            api::delete_device
        ))
        .routes(routes!(operation::start_device))
        .routes(routes!(operation::stop_device))
        .routes(routes!(operation::restart_device))
        .routes(routes!(operation::reboot_device))
        .routes(routes!(access::create_adb_ticket))
        .routes(routes!(access::create_webrtc_token))
        .routes(routes!(access::create_scrcpy_session))
        .routes(routes!(tunnel::open_adb_tunnel))
        .routes(routes!(tunnel::open_stream_tunnel))
        .routes(routes!(access::find_connection))
        .routes(routes!(access::find_stream_info))
        .routes(routes!(access::enable_adb))
        .routes(routes!(access::disable_adb))
        .routes(routes!(access::find_adb_info))
        .routes(routes!(remote::run_shell))
        .routes(routes!(remote::list_device_packages))
        .routes(routes!(remote::find_device_properties))
        .routes(routes!(remote::find_device_log))
        .routes(routes!(remote::clear_device_log))
        .routes(routes!(remote::find_screenshot, remote::take_screenshot))
        .routes(routes!(remote::uninstall_app))
        .routes(routes!(port::api::find_device_ports))
        .routes(routes!(port::api::port_stats))
        .routes(routes!(port::api::port_leases))
        .routes(routes!(port::api::resting_ports))
        .routes(routes!(node::list_nodes, node::create_node))
        .routes(routes!(
            node::find_node,
            node::patch_node,
            node::delete_node
        ))
        .routes(routes!(node::cordon_node))
        .routes(routes!(node::uncordon_node))
        .routes(routes!(node::drain_node))
        .routes(routes!(check::check_node))
        .routes(routes!(reconcile::api::list_reconciliations))
}
