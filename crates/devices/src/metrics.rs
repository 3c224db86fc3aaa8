//! What the service measures, one function per metric.

use std::time::Duration;

use coordination::PortKind;
use metrics::{counter, gauge, histogram};

/// Devices of the cluster in a status.
pub fn devices(status: &'static str, count: i64) {
    gauge!("cloudphone_devices_by_status", "status" => status).set(count as f64);
}

/// How an operation on a device ended, and how long it took from its claim.
pub fn operation(kind: &'static str, result: &'static str, took: Duration) {
    histogram!("cloudphone_device_operation_duration_seconds", "operation" => kind, "result" => result)
        .record(took);
}

/// Ports of a kind that devices hold, over the cluster.
pub fn ports_allocated(kind: PortKind, count: i64) {
    gauge!("cloudphone_ports_allocated", "kind" => kind.as_str()).set(count as f64);
}

/// A set of ports that was given up because `reason`.
pub fn ports_contended(reason: &'static str) {
    counter!("cloudphone_ports_contended_total", "reason" => reason).increment(1);
}

/// Simulated devices that this replica listens for.
pub fn hosted(count: usize) {
    gauge!("cloudphone_devices_hosted").set(count as f64);
}

/// Simulated devices taken over from a replica that fell silent.
pub fn taken_over(count: usize) {
    counter!("cloudphone_devices_taken_over_total").increment(count as u64);
}
