//! The metrics of this crate, one function each.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counts what became of a lease: `acquired`, `held` by another, `lost`.
pub fn lease(result: &'static str) {
    metrics::counter!("leases_total", "result" => result).increment(1);
}

/// Counts a write that was refused because its fencing token is not the latest.
pub fn fenced_write(name: &str) {
    // The name before the first colon is the kind; whole names would be without bound.
    let kind = name.split_once(':').map_or("other", |(kind, _)| kind);
    let kind = kind.to_owned();
    *untold().entry(kind.clone()).or_default() += 1;
    metrics::counter!("fenced_writes_total", "kind" => kind).increment(1);
}

/// Fenced writes of this process that are not added to the stored totals yet. Process-wide as the recorder of metrics
/// is: a guard is checked in places that know no more than a connection.
static UNTOLD: Mutex<BTreeMap<String, i64>> = Mutex::new(BTreeMap::new());

/// The fenced writes by kind that nobody has stored.
pub fn untold() -> MutexGuard<'static, BTreeMap<String, i64>> {
    UNTOLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes stored writes off those that are not.
pub fn told(stored: &BTreeMap<String, i64>) {
    untold().retain(|kind, count| {
        *count -= stored.get(kind).copied().unwrap_or_default();
        *count > 0
    });
}

/// Tells a number that the database keeps for the whole cluster.
pub fn stored_total(name: String, total: u64) {
    metrics::counter!(name).absolute(total);
}

/// Tells the fenced writes of all replicas there ever were.
pub fn fenced_writes_stored(kind: String, total: u64) {
    metrics::counter!("cluster_fenced_writes_total", "kind" => kind).absolute(total);
}

/// Counts what became of a request for ports: `leased`, `exhausted`, `index-missing`.
pub fn port_lease(result: &'static str) {
    metrics::counter!("port_leases_total", "result" => result).increment(1);
}

/// Counts ports that were taken back from owners that no longer renew.
pub fn ports_expired(count: u32) {
    metrics::counter!("port_leases_expired_total").increment(count.into());
}

/// Counts ports that were found unusable, by reason.
pub fn port_quarantined(reason: &'static str) {
    metrics::counter!("ports_quarantined_total", "reason" => reason).increment(1);
}

/// Counts indexes of ports that were built anew, and attempts that found it done.
pub fn ports_rebuilt(built: bool) {
    let result = if built { "built" } else { "found" };
    metrics::counter!("port_index_rebuilds_total", "result" => result).increment(1);
}

/// Counts a run of a job by how it ended, and a run that began as `started`.
pub fn cron_run(job: &str, state: &'static str) {
    metrics::counter!("cron_runs_total", "job" => job.to_owned(), "state" => state).increment(1);
}

/// Counts a run of a job that was given up, by the state it was left in.
pub fn cron_state(job: &str, state: &str) {
    metrics::counter!("cron_runs_total", "job" => job.to_owned(), "state" => state.to_owned())
        .increment(1);
}

/// Says when an invariant was last looked at with success, in seconds of Unix time.
pub fn invariant_checked(invariant: &str, at: i64) {
    metrics::gauge!("invariant_checked_timestamp_seconds", "invariant" => invariant.to_owned())
        .set(at as f64);
}

/// Measures how many milliseconds after its slot a run began.
pub fn cron_lag(job: &str, milliseconds: i64) {
    metrics::histogram!("cron_lag_seconds", "job" => job.to_owned())
        .record(milliseconds as f64 / 1000.0);
}

/// Says how many instances of a service are in the registry, on all machines.
pub fn instances(service: &str, count: usize) {
    metrics::gauge!("registry_instances", "service" => service.to_owned()).set(count as f64);
}

/// Counts instances that fell silent without leaving.
pub fn instance_lost(service: &str) {
    metrics::counter!("registry_instances_lost_total", "service" => service.to_owned())
        .increment(1);
}

/// Counts instance slots that were found taken and left for another one.
pub fn slot_moved(service: &str) {
    metrics::counter!("registry_slots_moved_total", "service" => service.to_owned()).increment(1);
}

/// Says whether a job is paused, so that an alert can stand on it.
pub fn cron_job_paused(job: &str, paused: bool) {
    metrics::gauge!("cron_job_paused", "job" => job.to_owned()).set(if paused { 1.0 } else { 0.0 });
}
