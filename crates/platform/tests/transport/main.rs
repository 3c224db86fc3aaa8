//! Connections as clients see them: TLS with certificates that are renewed, clients that rest, and clients that do not read.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails where something is not as it should be"
)]

mod certificates;
mod host;
mod resting;
mod stalls;
mod tls;
