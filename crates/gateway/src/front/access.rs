//! The access log: one line for a request, under the target `access`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::front::metrics;
use crate::front::record::{End, Record};

/// Which requests get a line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AccessLog {
    /// Of ordinary requests this share, 0 to 1. What is notable gets a line in any case.
    pub sample: f64,
    /// The head of an answer that takes longer is slow, unless waiting is what the request is for.
    pub slow: Duration,
    /// So many lines a second of what is notable; the others are counted.
    pub most: u32,
}

/// The access log with what it has written lately.
#[derive(Debug)]
pub struct Access {
    log: AccessLog,
    began: Instant,
    /// The second since the beginning, and the lines in it: its upper and its lower half.
    spent: AtomicU64,
    left_out: AtomicU64,
}

impl AccessLog {
    /// Draws whether an ordinary request gets a line.
    pub fn draw(&self) -> bool {
        self.sample >= 1.0 || (self.sample > 0.0 && rand::random::<f64>() < self.sample)
    }

    /// Whether somebody may ask about this request later on: it was slow, was tried again, or failed for a reason that is
    /// not the client's. What was refused before any instance was tried, and whom nobody waited for in the end, come in
    /// any number, and would wash the others away.
    pub fn is_notable(&self, record: &Record, patient: bool) -> bool {
        if record.refusal.is_some() && record.tries.is_empty() {
            return false;
        }
        let slow = !patient && record.head_ms >= self.slow.as_secs_f64() * 1000.0;
        let failed = record.status.is_some_and(|status| status >= 500);
        slow || failed || record.retries() > 0 || record.end == End::BrokeOff
    }

    /// Whether it gets a line though it is not drawn: what is notable, who left before the answer, and what was refused for
    /// a reason that is not the client's, unless there is too much of everything.
    fn is_told(&self, record: &Record, patient: bool) -> bool {
        let left = record.status.is_none() && !patient;
        let refusal = record.refusal.as_ref().map(|refused| &*refused.reason);
        let refused = refusal
            .is_some_and(|reason| !["overloaded", "circuit_open"].contains(&reason))
            && record.status.is_some_and(|status| status >= 500);
        left || refused || self.is_notable(record, patient)
    }
}

impl Access {
    /// Nothing was written yet.
    pub fn new(log: AccessLog) -> Self {
        Self {
            log,
            began: Instant::now(),
            spent: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
        }
    }

    /// What is told.
    pub fn log(&self) -> &AccessLog {
        &self.log
    }

    /// Writes the line of a request that was drawn, or of one that gets a line in any case as long as they are not too many:
    /// writing waits for whoever reads.
    pub fn tell(&self, record: &Record, patient: bool, drawn: bool) {
        if drawn || (self.log.is_told(record, patient) && self.may_write(Instant::now())) {
            write(record);
        }
    }

    /// Says how many lines were left out since this was called last. It wants to be called every few seconds.
    pub fn tell_left_out(&self) {
        let count = self.left_out.swap(0, Ordering::Relaxed);
        if count > 0 {
            let most = self.log.most;
            warn!(
                lines = count,
                "left {count} lines of failed or slow requests out of the access log, which takes {most} a second"
            );
        }
    }

    fn may_write(&self, now: Instant) -> bool {
        let second = now.saturating_duration_since(self.began).as_secs() & u64::from(u32::MAX);
        let spend = |spent: u64| match spent >> 32 == second {
            true => ((spent as u32) < self.log.most).then(|| spent + 1),
            false => (self.log.most > 0).then_some((second << 32) | 1),
        };
        let may = self
            .spent
            .try_update(Ordering::Relaxed, Ordering::Relaxed, spend)
            .is_ok();
        if !may {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            metrics::line_left_out();
        }
        may
    }
}

/// Writes the line.
fn write(record: &Record) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::record::{Outcome, Refused, Try};

    const LOG: AccessLog = AccessLog {
        sample: 0.0,
        slow: Duration::from_secs(1),
        most: 3,
    };

    fn record(status: Option<u16>, refusal: Option<&'static str>, tries: usize) -> Record {
        let tried = Try {
            instance: "instance-0".into(),
            address: "127.0.0.1:1".into(),
            outcome: Outcome::BrokeOff,
            status: None,
            error: None,
            began_ms: 0.0,
            took_ms: 0.0,
        };
        Record {
            status,
            refusal: refusal.map(|reason| Refused {
                reason: reason.into(),
                message: "no".into(),
            }),
            tries: vec![tried; tries],
            ..Record::for_tests("a", "/")
        }
    }

    #[test]
    fn what_anybody_can_bring_about_is_told_but_washes_nothing_away() {
        let slow = |record: Record| Record {
            head_ms: 2000.0,
            ..record
        };
        for (what, record, told, notable) in [
            ("answered", record(Some(200), None, 1), false, false),
            (
                "refused by its service",
                record(Some(404), None, 1),
                false,
                false,
            ),
            ("failed", record(Some(500), None, 1), true, true),
            ("tried twice", record(Some(200), None, 2), true, true),
            (
                "broken off",
                record(Some(502), Some("broke_off"), 1),
                true,
                true,
            ),
            ("slow", slow(record(Some(200), None, 1)), true, true),
            ("left", record(None, None, 1), true, false),
            (
                "left after a while",
                slow(record(None, None, 1)),
                true,
                true,
            ),
            (
                "limited",
                record(Some(429), Some("rate_limited"), 0),
                false,
                false,
            ),
            (
                "without an instance",
                record(Some(503), Some("no_instance"), 0),
                true,
                false,
            ),
            (
                "too much",
                record(Some(503), Some("overloaded"), 0),
                false,
                false,
            ),
            (
                "too much, after a while",
                slow(record(Some(503), Some("overloaded"), 0)),
                false,
                false,
            ),
            (
                "slow to send",
                slow(record(Some(408), Some("body_timeout"), 0)),
                false,
                false,
            ),
        ] {
            assert_eq!(LOG.is_told(&record, false), told, "{what}");
            assert_eq!(LOG.is_notable(&record, false), notable, "{what}");
        }
        assert!(
            !LOG.is_notable(&slow(record(Some(200), None, 1)), true),
            "an upload"
        );
    }

    #[test]
    fn so_many_lines_a_second_and_the_rest_is_counted() {
        let access = Access::new(LOG);
        let at = |seconds| access.began + Duration::from_secs(seconds);
        for second in [0, 1, 5] {
            for line in 1..=10 {
                assert_eq!(
                    access.may_write(at(second)),
                    line <= 3,
                    "{line} of second {second}"
                );
            }
        }
        assert_eq!(access.left_out.load(Ordering::Relaxed), 21);
        access.tell_left_out();
        assert_eq!(access.left_out.load(Ordering::Relaxed), 0);
        assert!(!Access::new(AccessLog { most: 0, ..LOG }).may_write(Instant::now()));
    }
}
