//! A private Redis and PostgreSQL for a machine that has none configured.
//!
//! All replicas that use the same folder share them. They run under a small process of their own, the *supervisor*
//! (this same program, started again with another command), so that no replica's death disturbs the stores of the
//! others. A replica is a member for as long as it holds a connection to the supervisor's Unix socket; the first
//! member starts the supervisor, the last to leave ends it, and a supervisor that dies is started again by a member.
//! PostgreSQL's data stays, Redis keeps nothing.

mod binaries;
mod error;
mod lock;
mod member;
mod news;
mod place;
mod postgres;
pub mod process;
mod record;
mod redis;
mod socket;
mod store;
mod supervisor;

pub use error::Error;
pub use lock::is_running;
pub use member::{Stores, SupervisorCommand, join};
pub use record::{Addresses, addresses};
pub use supervisor::supervise;
