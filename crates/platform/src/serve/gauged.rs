//! What is counted for as long as it lives.

use metrics::{Gauge, gauge};

/// One more of what a gauge shows, until this is dropped.
pub struct Gauged(Gauge);

impl Gauged {
    /// Counts in the gauge of this name, for a service.
    pub fn new(name: &'static str, service: &'static str) -> Self {
        let gauge = gauge!(name, "service" => service);
        gauge.increment(1);
        Self(gauge)
    }
}

impl Drop for Gauged {
    fn drop(&mut self) {
        self.0.decrement(1);
    }
}
