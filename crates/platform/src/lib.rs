//! What every service stands on: configuration, telemetry, errors, authentication, stores, events, tasks and shutdown.

pub mod auth;
pub mod clock;
pub mod config;
pub mod db;
pub mod events;
pub mod export;
pub mod health;
pub mod http;
pub mod idempotency;
pub mod lifecycle;
pub mod listen;
pub mod mail;
mod migrate;
pub mod network;
pub mod objects;
pub mod outbound;
pub mod problem;
pub mod redis;
pub mod retention;
pub mod secrets;
pub mod serve;
pub mod standard_webhook;
pub mod telemetry;
pub mod testing;

mod platform;

pub use auth::{Admin, Caller, CurrentUser};
pub use clock::Clock;
pub use config::{Env, Profile, Settings};
pub use platform::Platform;
pub use problem::Problem;
