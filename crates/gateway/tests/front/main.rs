//! The front door against real instances over TCP: well-behaved ones, and ones that refuse, hang, break off or lie.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

mod answers;
mod backend;
mod balancing;
mod bodies;
mod door;
mod failures;
mod heads;
mod health;
mod identity;
mod limits;
mod overload;
mod records;
mod routing;
mod secure;
mod sessions;
mod smuggling;
mod sockets;
mod stalls;
