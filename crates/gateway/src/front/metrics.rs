//! What the front door counts.

use std::time::Duration;

use contracts::Service;
use metrics::{counter, gauge, histogram};

use crate::front::gate::{GateReport, Shed};
use crate::front::group::GroupReport;

/// A request to a service ended.
pub fn upstream_request(service: Service, result: &'static str) {
    counter!("gateway_upstream_requests_total", "service" => service.name(), "result" => result)
        .increment(1);
}

/// A request is tried once more.
pub fn retried(service: Service) {
    counter!("gateway_retries_total", "service" => service.name()).increment(1);
}

/// An instance is left alone for a while.
pub fn ejected(service: Service, reason: &'static str) {
    counter!("gateway_ejections_total", "service" => service.name(), "reason" => reason)
        .increment(1);
}

/// A request had to wait for a place.
pub fn queued(service: Service, waited: Duration) {
    histogram!("gateway_queue_seconds", "service" => service.name()).record(waited);
}

/// A request was refused because too many are under way.
pub fn shed(service: Service, why: Shed) {
    counter!("gateway_shed_total", "service" => service.name(), "reason" => why.name())
        .increment(1);
}

/// The gateway itself said no.
pub fn refused(reason: &str) {
    counter!("gateway_refusals_total", "reason" => reason.to_owned()).increment(1);
}

/// How a service is.
pub fn group(service: Service, report: &GroupReport) {
    let service = service.name();
    let open = match report.state {
        "CLOSED" => 0.0,
        "HALF_OPEN" => 0.5,
        _ => 1.0,
    };
    gauge!("gateway_circuit_open", "service" => service).set(open);
    for (state, count) in [
        ("available", report.stats.available),
        ("ejected", report.stats.ejected),
        ("warming", report.stats.warming),
    ] {
        gauge!("gateway_instances", "service" => service, "state" => state).set(count as f64);
    }
    in_flight(service, &report.requests);
}

fn in_flight(service: &'static str, requests: &GateReport) {
    gauge!("gateway_requests_in_flight", "service" => service).set(requests.in_flight as f64);
    gauge!("gateway_requests_queued", "service" => service).set(requests.queued as f64);
}

/// The access log had no room for a line.
pub fn line_left_out() {
    counter!("gateway_access_lines_left_out_total").increment(1);
}

/// How much of the front door's room is taken.
pub fn all(requests: &GateReport) {
    in_flight("all", requests);
}

/// A request bore a token: the door gave its word, left it to the service, or refused it.
pub fn identity(result: &'static str) {
    counter!("gateway_identities_total", "result" => result).increment(1);
}

/// A socket was opened, or closed.
pub fn open_upgrades(change: f64) {
    gauge!("gateway_open_upgrades").increment(change);
}
