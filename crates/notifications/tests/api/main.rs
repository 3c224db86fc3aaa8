//! The notifications service as clients meet it: two instances over one PostgreSQL and one Redis.

#![expect(
    clippy::unwrap_used,
    reason = "in a test a failure of the means is a failure"
)]

mod app;
mod broadcasts;
mod deliveries;
mod events;
mod faults;
mod plain;
mod preferences;
mod presence;
mod retention;
mod sending;
mod sinks;
mod socketio;
mod stats;
mod stream;
mod templates;
