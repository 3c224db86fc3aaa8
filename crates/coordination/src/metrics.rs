//! The metrics of this crate, one function each.

/// Counts what became of a lease: `acquired`, `held` by another, `lost`.
pub fn lease(result: &'static str) {
    metrics::counter!("leases_total", "result" => result).increment(1);
}

/// Counts a write that was refused because its fencing token is not the latest.
pub fn fenced_write(name: &str) {
    // The name before the first colon is the kind; whole names would be without bound.
    let kind = name.split(':').next().unwrap_or_default().to_owned();
    metrics::counter!("fenced_writes_total", "kind" => kind).increment(1);
}

/// Counts what became of a request for ports: `leased`, `exhausted`, `index-missing`.
pub fn port_lease(result: &'static str) {
    metrics::counter!("port_leases_total", "result" => result).increment(1);
}

/// Counts ports that were taken back from owners that no longer renew.
pub fn ports_expired(count: u32) {
    metrics::counter!("port_leases_expired_total").increment(count.into());
}

/// Counts a run of a job by how it ended, and a run that began as `started`.
pub fn cron_run(job: &str, state: &'static str) {
    metrics::counter!("cron_runs_total", "job" => job.to_owned(), "state" => state).increment(1);
}

/// Measures how many milliseconds after its slot a run began.
pub fn cron_lag(job: &str, milliseconds: i64) {
    metrics::histogram!("cron_lag_seconds", "job" => job.to_owned())
        .record(milliseconds as f64 / 1000.0);
}

/// Counts instance slots that were found taken and left for another one.
pub fn slot_moved(service: &str) {
    metrics::counter!("registry_slots_moved_total", "service" => service.to_owned()).increment(1);
}
