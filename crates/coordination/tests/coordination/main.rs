//! The guarantees of the crate against a real Redis and a real PostgreSQL (`REDIS_URL`, `DATABASE_URL`).

#![expect(
    clippy::unwrap_used,
    reason = "a test says by panicking what went wrong"
)]

mod children;
mod cron;
mod cron_ends;
mod cron_process;
mod cron_races;
mod fencing;
mod idempotency;
mod invariants;
mod lease;
mod overlap;
mod ports;
mod ports_moving;
mod ports_random;
mod ports_rivals;
mod proxy;
mod rate_limit;
mod redlock;
mod registry;
mod registry_process;
mod replication;
mod schedules;
mod servers;
mod stores;
mod tour;
