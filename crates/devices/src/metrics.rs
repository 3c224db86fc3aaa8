//! What the service measures, one function per metric.

use std::time::Duration;

use coordination::PortKind;
use metrics::{Counter, counter, gauge, histogram};

use crate::reconcile::Action;

/// Devices of the cluster in a status.
pub fn devices(status: &'static str, count: i64) {
    gauge!("cloudphone_devices_by_status", "status" => status).set(count as f64);
}

/// How an operation on a device ended, and how long it took from its claim.
pub fn operation(kind: &'static str, result: &'static str, took: Duration) {
    histogram!("cloudphone_device_operation_duration_seconds", "operation" => kind, "result" => result)
        .record(took);
}

/// A node that this replica marked as down.
pub fn node_down() {
    counter!("cloudphone_nodes_down_total").increment(1);
}

/// A difference between engines, database and Redis, and what was done about it.
pub fn reconciled(action: Action) {
    counter!("cloudphone_devices_reconciled_total", "action" => action.as_str()).increment(1);
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

/// A ticket that was given.
pub fn ticket(kind: PortKind) {
    counter!("cloudphone_access_tickets_total", "kind" => kind.as_str()).increment(1);
}

/// What became of a request for a tunnel.
pub fn tunnel(kind: PortKind, result: &'static str) {
    counter!("cloudphone_tunnels_total", "kind" => kind.as_str(), "result" => result).increment(1);
}

/// Counts the bytes that go through tunnels: `up` to the device, `down` to the client.
pub fn tunnel_bytes(kind: PortKind, direction: &'static str) -> Counter {
    counter!("cloudphone_tunnel_bytes_total", "kind" => kind.as_str(), "direction" => direction)
}

/// Why a tunnel ended.
pub fn tunnel_ended(kind: PortKind, reason: &'static str) {
    counter!("cloudphone_tunnels_ended_total", "kind" => kind.as_str(), "reason" => reason)
        .increment(1);
}

/// Counts an open tunnel for as long as it lives.
#[derive(Debug)]
pub struct OpenTunnel(PortKind);

impl OpenTunnel {
    /// A tunnel to a kind of port was opened.
    pub fn new(kind: PortKind) -> Self {
        gauge!("cloudphone_tunnels_open", "kind" => kind.as_str()).increment(1);
        Self(kind)
    }
}

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        gauge!("cloudphone_tunnels_open", "kind" => self.0.as_str()).decrement(1);
    }
}

/// A command that was given to a device by ADB.
pub fn command(name: &'static str, result: &'static str) {
    counter!("cloudphone_device_commands_total", "command" => name, "result" => result)
        .increment(1);
}

/// Devices that this replica measured, and those that did not answer.
pub fn measured(answered: usize, silent: usize) {
    counter!("cloudphone_devices_measured_total", "result" => "measured")
        .increment(answered as u64);
    counter!("cloudphone_devices_measured_total", "result" => "silent").increment(silent as u64);
}

/// What all running devices use together.
pub fn used((cpu_cores, memory_mb, storage_mb): (f64, f64, f64)) {
    gauge!("cloudphone_devices_cpu_cores_used").set(cpu_cores);
    gauge!("cloudphone_devices_memory_megabytes_used").set(memory_mb);
    gauge!("cloudphone_devices_storage_megabytes_used").set(storage_mb);
}

/// Counts a device that ran beyond a limit and was stopped.
pub fn stopped_by_quota(limit: &'static str) {
    counter!("cloudphone_devices_stopped_by_quota_total", "limit" => limit).increment(1);
}

/// What was kept of a snapshot that there is not, and was removed.
pub fn snapshot_swept() {
    counter!("cloudphone_snapshots_swept_total").increment(1);
}

/// How a move of a device ended that was to leave a node.
pub fn moved(result: &'static str) {
    counter!("cloudphone_device_moves_total", "result" => result).increment(1);
}

/// Bytes of images that this replica brought from one node to another.
pub fn brought(bytes: u64) {
    counter!("cloudphone_device_moved_bytes_total").increment(bytes);
}

/// An execution of a lifecycle rule is over.
pub fn lifecycle_executed(kind: crate::lifecycle::RuleType, is_whole: bool) {
    let result = if is_whole { "completed" } else { "failed" };
    counter!("cloudphone_devices_lifecycle_executions_total", "type" => kind.as_str(), "result" => result)
        .increment(1);
}
