//! The access log: one line for a request, under the target `access`.

use std::time::Duration;

use tracing::info;

use crate::front::record::{End, Record};

/// Which requests get a line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AccessLog {
    /// Of ordinary requests this share, 0 to 1. What is notable gets a line in any case.
    pub sample: f64,
    /// The head of an answer that takes longer is slow, unless waiting is what the request is for.
    pub slow: Duration,
}

impl AccessLog {
    /// Draws whether an ordinary request gets a line.
    pub fn draw(&self) -> bool {
        self.sample >= 1.0 || (self.sample > 0.0 && rand::random::<f64>() < self.sample)
    }

    /// Whether somebody may ask about this request: it failed, was slow, was tried again, or was refused for a reason
    /// that is not the client's. What is refused at once because there is too much is not told one by one.
    pub fn is_notable(&self, record: &Record, patient: bool) -> bool {
        let slow = !patient && record.head_ms >= self.slow.as_secs_f64() * 1000.0;
        let left = record.status.is_none() && !patient;
        let shed = record
            .refusal
            .as_ref()
            .is_some_and(|refused| ["overloaded", "circuit_open"].contains(&&*refused.reason));
        let failed = left || (!shed && record.status.is_some_and(|status| status >= 500));
        slow || failed || record.retries() > 0 || record.end == End::BrokeOff
    }
}

/// Writes the line.
pub fn write(record: &Record) {
    let (method, path) = (&record.method, &record.path);
    let status: &dyn std::fmt::Display = match &record.status {
        Some(status) => status,
        None => &"no answer",
    };
    info!(
        target: "access",
        {
            request.id = %record.request_id,
            trace.id = %record.trace_id,
            client.address = record.client.map(display),
            http.protocol = %record.protocol,
            http.method = %method,
            http.path = %path,
            http.status = record.status,
            service = record.service.map(|service| service.name()),
            instance = record.tries.last().map(|last| &*last.instance),
            retries = record.retries(),
            limit.remaining = record.limit.as_ref().map(|limit| limit.remaining),
            refusal = record.refusal.as_ref().map(|refusal| &*refusal.reason),
            end = record.end.name(),
            bytes_received = record.bytes_received,
            bytes_sent = record.bytes_sent,
            head_ms = record.head_ms,
            upstream_ms = record.upstream_ms,
            total_ms = record.total_ms,
        },
        "{method} {path} {status} in {} ms", record.total_ms
    );
}
