//! What the platform promises, against real stores: events, sessions, idempotent replies, callers and layers.

mod callers;
mod events;
mod idempotency;
mod layers;
mod redis;
mod sessions;
mod support;
