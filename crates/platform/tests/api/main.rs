//! What the platform promises, against real stores: events, sessions, idempotent replies, callers and layers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

mod api_keys;
mod callers;
mod events;
mod idempotency;
mod layers;
mod migrations;
mod pool;
mod redis;
mod sessions;
mod support;
mod vouching;
