//! The URL map.

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::{api as access, remote, tunnel};
use crate::batch::{api as batch, commands as batch_commands, create as batch_create};
use crate::device::{api, browse, create, list};
use crate::group::api as group;
use crate::installation::{api as installation, on_device};
use crate::lifecycle::api as lifecycle;
use crate::measure::{api as measure, heartbeat};
use crate::node::{api as node, check};
use crate::operation::api as operation;
use crate::quota::{api as quota, book};
use crate::snapshot::api as snapshot;
use crate::template::{api as template, make};
use crate::{Devices, Quotas, port, reconcile};

/// The routes of the service.
pub fn router(state: Devices) -> OpenApiRouter {
    routes().with_state(state)
}

/// What the routes say of themselves.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().into_openapi()
}

/// The routes of quotas. Clients find them at the service of users, which they are about; their rows are this service's, since
/// the transaction that makes a device charges them.
pub fn quota_router(quotas: Quotas) -> OpenApiRouter {
    quota_routes().with_state(quotas)
}

/// What the routes of quotas say of themselves.
pub fn quota_openapi() -> utoipa::openapi::OpenApi {
    quota_routes().into_openapi()
}

fn quota_routes() -> OpenApiRouter<Quotas> {
    OpenApiRouter::new()
        .routes(routes!(quota::list_quotas, quota::set_quota))
        .routes(routes!(quota::find_own_quota))
        .routes(routes!(quota::own_quota_usage_stats))
        .routes(routes!(quota::find_quota))
        .routes(routes!(quota::quota_usage_stats))
        .routes(routes!(quota::check_quota))
        .routes(routes!(quota::check_quotas))
        .routes(routes!(quota::list_quota_alerts))
        .routes(routes!(quota::summarize_quotas))
        .routes(routes!(quota::change_quota, quota::reset_quota))
        .routes(routes!(quota::renew_quota))
        .routes(routes!(book::deduct_quota))
        .routes(routes!(book::restore_quota))
        .routes(routes!(book::book_device))
}

fn routes() -> OpenApiRouter<Devices> {
    OpenApiRouter::new()
        .routes(routes!(create::create_device, list::list_devices))
        .routes(routes!(list::list_my_devices))
        .routes(routes!(list::my_device_stats))
        .routes(routes!(list::device_stats))
        .routes(routes!(list::count_devices))
        .routes(routes!(browse::list_devices_by_cursor))
        .routes(routes!(browse::quick_list_devices))
        .routes(routes!(browse::list_available_devices))
        .routes(routes!(browse::find_devices))
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
        .routes(routes!(installation::install_app))
        .routes(routes!(on_device::list_apps_on_device))
        .routes(routes!(on_device::list_devices_with_app))
        .routes(routes!(port::api::find_device_ports))
        .merge(snapshots())
        .merge(measurements())
        .merge(batches())
        .merge(templates())
        .merge(lifecycle_rules())
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

fn snapshots() -> OpenApiRouter<Devices> {
    OpenApiRouter::new()
        .routes(routes!(
            snapshot::create_snapshot,
            snapshot::list_device_snapshots
        ))
        .routes(routes!(
            snapshot::create_snapshot_of_device,
            snapshot::list_snapshots_of_device
        ))
        .routes(routes!(snapshot::restore_named_snapshot))
        .routes(routes!(snapshot::restore_device_snapshot))
        .routes(routes!(snapshot::delete_device_snapshot))
        .routes(routes!(snapshot::list_snapshots))
        .routes(routes!(snapshot::summarize_snapshots))
        .routes(routes!(snapshot::delete_snapshots))
        .routes(routes!(snapshot::find_snapshot, snapshot::delete_snapshot))
        .routes(routes!(snapshot::restore_snapshot))
}

fn batches() -> OpenApiRouter<Devices> {
    OpenApiRouter::new()
        .routes(routes!(batch::start_devices))
        .routes(routes!(batch::stop_devices))
        .routes(routes!(batch::restart_devices))
        .routes(routes!(batch::reboot_devices))
        .routes(routes!(batch::delete_devices))
        .routes(routes!(batch::operate_devices))
        .routes(routes!(batch::device_statuses))
        .routes(routes!(batch::group_devices))
        .routes(routes!(batch_create::create_devices))
        .routes(routes!(batch_commands::execute_on_devices))
        .routes(routes!(batch_commands::uninstall_from_devices))
        .routes(routes!(installation::install_on_devices))
        .routes(routes!(installation::find_installations))
        .routes(routes!(group::list_groups, group::create_group))
        .routes(routes!(group::patch_group, group::delete_group))
}

fn lifecycle_rules() -> OpenApiRouter<Devices> {
    OpenApiRouter::new()
        .routes(routes!(lifecycle::list_rules, lifecycle::create_rule))
        .routes(routes!(
            lifecycle::find_rule,
            lifecycle::put_rule,
            lifecycle::delete_rule
        ))
        .routes(routes!(lifecycle::toggle_rule))
        .routes(routes!(lifecycle::execute_rule))
        .routes(routes!(lifecycle::test_rule))
        .routes(routes!(lifecycle::list_executions))
        .routes(routes!(lifecycle::lifecycle_history))
        .routes(routes!(lifecycle::lifecycle_stats))
        .routes(routes!(lifecycle::trigger_cleanup))
        .routes(routes!(lifecycle::trigger_backup))
        .routes(routes!(lifecycle::check_expiration))
        .routes(routes!(lifecycle::trigger_autoscaling))
        .routes(routes!(lifecycle::cleanup_statistics))
        .routes(routes!(lifecycle::backup_statistics))
        .routes(routes!(lifecycle::autoscaling_status))
}

fn templates() -> OpenApiRouter<Devices> {
    OpenApiRouter::new()
        .routes(routes!(template::list_templates, template::create_template))
        .routes(routes!(template::search_templates))
        .routes(routes!(template::popular_templates))
        .routes(routes!(template::template_stats))
        .routes(routes!(
            template::find_template,
            template::patch_template,
            template::delete_template
        ))
        .routes(routes!(template::create_template_of_device))
        .routes(routes!(make::create_device_of_template))
        .routes(routes!(make::create_devices_of_template))
}

fn measurements() -> OpenApiRouter<Devices> {
    OpenApiRouter::new()
        .routes(routes!(measure::device_metrics))
        .routes(routes!(measure::device_usage))
        .routes(routes!(measure::device_metrics_history))
        .routes(routes!(heartbeat::hear_heartbeat))
        .routes(routes!(measure::devices_metrics))
}
