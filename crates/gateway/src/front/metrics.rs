//! What the front door counts.

use contracts::Service;
use metrics::{counter, gauge};

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
pub fn ejected(service: Service) {
    counter!("gateway_ejections_total", "service" => service.name()).increment(1);
}

/// A request bore a token: the door gave its word, left it to the service, or refused it.
pub fn identity(result: &'static str) {
    counter!("gateway_identities_total", "result" => result).increment(1);
}

/// A socket was opened, or closed.
pub fn open_upgrades(change: f64) {
    gauge!("gateway_open_upgrades").increment(change);
}
