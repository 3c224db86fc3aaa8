//! What is counted.

use metrics::{counter, gauge};

use crate::order::OrderState;
use crate::refund::RefundState;

/// Counts orders that reached a state.
pub fn orders_reached(state: OrderState, count: usize) {
    counter!("cloudphone_orders_total", "status" => state.five()).increment(count as u64);
}

/// Counts a payment that succeeded.
pub fn payment_succeeded() {
    counter!("cloudphone_payments_success_total").increment(1);
}

/// Counts a payment of which nobody could say how it ended.
pub fn payment_given_up() {
    counter!("cloudphone_payments_given_up_total").increment(1);
}

/// Counts minutes that devices ran, as they are stored for the first time or told again.
pub fn device_minutes(minutes: i32) {
    counter!("cloudphone_device_minutes_total").increment(minutes.unsigned_abs().into());
}

/// Counts what was made of a notice.
pub fn webhook(result: &'static str) {
    counter!("cloudphone_webhooks_total", "result" => result).increment(1);
}

/// Shows what must stay 0.
pub fn invariants(imbalances: usize, paid_twice: i64) {
    gauge!("ledger_imbalance").set(imbalances as f64);
    counter!("orders_paid_twice_total").absolute(paid_twice.unsigned_abs());
}

/// Counts refunds that ended.
pub fn refund(state: RefundState) {
    let result = match state {
        RefundState::Succeeded => "succeeded",
        RefundState::Failed => "failed",
        RefundState::Rejected => "rejected",
        RefundState::Requested | RefundState::Pending | RefundState::Processing => return,
    };
    counter!("cloudphone_refunds_total", "result" => result).increment(1);
}

/// Shows how many notices wait for somebody to look at them, and how many payments and refunds for their providers.
pub fn waiting(unapplied: i64, payments: i64, refunds: i64) {
    gauge!("webhook_events_unapplied").set(unapplied as f64);
    gauge!("cloudphone_payments_in_flight").set(payments as f64);
    gauge!("cloudphone_refunds_in_flight").set(refunds as f64);
}
