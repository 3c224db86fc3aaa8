//! Events between services: at least once on the way, exactly once in effect.
//!
//! [`emit`] writes an event into the outbox, in the transaction of the effect that it tells of. The relay of any
//! replica puts what is due into a Redis stream; the consumer of any replica handles it in one transaction with the
//! record that it did. An event stays due, with growing pauses, until PostgreSQL knows that every consumer that
//! subscribed to its kind has handled it. So Redis makes delivery quick, and may lose everything it has. What a consumer fails to handle again
//! and again becomes a [dead letter](dead_letter).

mod consumer;
pub mod dead_letter;
mod outbox;
mod reader;
mod relay;

pub use consumer::{Consumer, spawn_consumer};
pub use outbox::{emit, purge};
pub use relay::spawn_relay;

/// The stream, and the field of its entries.
const STREAM: &str = "events";
const FIELD: &str = "event";
