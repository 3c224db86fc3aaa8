//! The URL map.

use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};
use utoipa_axum::routes;

use crate::provider::sandbox;
use crate::{
    Billing, balance, coupon, export, invoice, ledger, order, payment, plan, refund, stats, usage,
    webhook,
};

/// The routes of billing. Plans and orders stand under `/billing` too.
pub fn router(state: Billing) -> OpenApiRouter {
    routes().with_state(state)
}

/// What the routes say of themselves.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().into_openapi()
}

fn routes() -> OpenApiRouter<Billing> {
    OpenApiRouter::new()
        .routes(twice(routes!(
            plan::api::list_plans,
            plan::admin::create_plan
        )))
        .routes(twice(routes!(plan::api::list_active_plans)))
        .routes(twice(routes!(plan::api::list_plan_names)))
        .routes(twice(routes!(plan::admin::delete_plans)))
        .routes(twice(routes!(
            plan::api::find_plan,
            plan::admin::change_plan,
            plan::admin::delete_plan
        )))
        .routes(twice(routes!(
            order::api::create_order,
            order::api::list_orders
        )))
        .routes(twice(routes!(order::admin::count_orders)))
        .routes(twice(routes!(order::admin::list_order_names)))
        .routes(twice(routes!(
            order::api::find_order_or_list,
            order::admin::note_order,
            order::admin::put_order_note
        )))
        .routes(routes!(export::api::export_table))
        .routes(twice(routes!(order::api::cancel_order)))
        .routes(twice(routes!(order::api::cancel_orders)))
        .routes(twice(routes!(order::api::confirm_order)))
        .routes(twice(routes!(order::refund::refund_order)))
        .routes(routes!(
            payment::api::create_payment,
            payment::api::list_payments
        ))
        .routes(routes!(payment::api::find_payment))
        .routes(routes!(payment::api::query_payment))
        .routes(routes!(refund::api::refund_payment))
        .routes(routes!(
            sandbox::api::show_sandbox_payment,
            sandbox::api::carry_out_sandbox_payment
        ))
        .routes(routes!(payment::admin::list_all_payments))
        .routes(routes!(payment::admin::payment_statistics))
        .routes(routes!(payment::admin::show_providers))
        .routes(routes!(payment::admin::find_any_payment))
        .routes(routes!(payment::admin::sync_payment))
        .routes(routes!(refund::api::refund_payment_as_admin))
        .routes(routes!(refund::api::list_open_refunds))
        .routes(routes!(refund::api::approve_refund))
        .routes(routes!(refund::api::reject_refund))
        .routes(routes!(webhook::api::receive_payment_notice))
        .routes(routes!(webhook::providers::receive_stripe_notice))
        .routes(routes!(webhook::providers::receive_alipay_notice))
        .routes(routes!(webhook::providers::receive_alipay_notice_as_before))
        .routes(routes!(webhook::providers::receive_wechatpay_notice))
        .routes(routes!(
            webhook::providers::receive_wechatpay_notice_as_before
        ))
        .routes(routes!(webhook::kept::list_notices))
        .routes(routes!(webhook::kept::replay_notice))
        .routes(routes!(balance::api::find_balance))
        .routes(routes!(balance::api::list_alerts))
        .routes(routes!(balance::api::recharge))
        .routes(routes!(balance::api::consume))
        .routes(routes!(balance::api::freeze))
        .routes(routes!(balance::api::unfreeze))
        .routes(routes!(balance::api::adjust))
        .routes(routes!(balance::statistics::balance_statistics))
        .routes(routes!(balance::history::list_transactions))
        .routes(routes!(balance::history::list_balance_transactions))
        .routes(routes!(usage::api::list_usage))
        .routes(routes!(usage::api::usage_statistics))
        .routes(routes!(usage::api::page_usage))
        .routes(routes!(usage::api::list_all_usage))
        .routes(routes!(usage::api::sum_all_usage))
        .routes(routes!(usage::record::record_usage))
        .routes(routes!(usage::session::start_usage))
        .routes(routes!(usage::session::stop_usage))
        .routes(routes!(usage::metering::meter_user))
        .routes(routes!(usage::metering::meter_device))
        .routes(routes!(usage::metering::meter_all))
        .routes(routes!(usage::metering::list_metered_users))
        .routes(routes!(usage::metering::list_metered_devices))
        .routes(routes!(usage::metering::meter_trend))
        .routes(routes!(coupon::api::create_coupon))
        .routes(routes!(coupon::api::claim_coupon))
        .routes(routes!(coupon::api::list_my_coupons))
        .routes(routes!(coupon::api::count_my_coupons))
        .routes(routes!(coupon::api::find_coupon))
        .routes(routes!(coupon::api::use_coupon))
        .routes(routes!(invoice::api::generate_invoice))
        .routes(routes!(
            invoice::api::create_invoice,
            invoice::api::list_invoices
        ))
        .routes(routes!(invoice::api::list_user_invoices))
        .routes(routes!(invoice::api::invoice_statistics))
        .routes(routes!(invoice::api::find_invoice))
        .routes(routes!(invoice::api::print_invoice))
        .routes(routes!(invoice::api::publish_invoice))
        .routes(routes!(invoice::api::cancel_invoice))
        .routes(routes!(invoice::pay::pay_invoice))
        .routes(routes!(stats::api::show_dashboard))
        .routes(routes!(stats::api::show_overview))
        .routes(routes!(stats::api::count_online_devices))
        .routes(routes!(stats::api::count_new_users))
        .routes(routes!(stats::api::revenue_today))
        .routes(routes!(stats::api::revenue_month))
        .routes(routes!(stats::api::device_distribution))
        .routes(routes!(stats::api::revenue_trend))
        .routes(routes!(stats::api::user_growth))
        .routes(routes!(stats::api::user_activity))
        .routes(routes!(stats::reports::report_bills))
        .routes(routes!(stats::reports::report_revenue))
        .routes(routes!(ledger::api::verify_ledger))
}

/// The same handlers under `/billing`, described there under names of their own.
fn twice(
    (schemas, mut paths, methods): UtoipaMethodRouter<Billing>,
) -> UtoipaMethodRouter<Billing> {
    let copies: Vec<_> = paths
        .paths
        .iter()
        .map(|(path, item)| {
            let mut item = item.clone();
            let operations = [
                &mut item.get,
                &mut item.post,
                &mut item.put,
                &mut item.patch,
                &mut item.delete,
            ];
            for operation in operations.into_iter().flatten() {
                let id = operation.operation_id.as_mut();
                if let Some(id) = id {
                    id.insert_str(0, "billing_");
                }
            }
            (format!("/billing{path}"), item)
        })
        .collect();
    paths.paths.extend(copies);
    (schemas, paths, methods)
}
