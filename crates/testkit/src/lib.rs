//! Starts real clusters for tests: replicas of `gateway` as processes, stores of their own, faults on command.
//!
//! Each cluster has a loopback address of its own, so that any number of them use the well-known ports side by side
//! (Linux: the whole of 127.0.0.0/8 is there). Everything ends with the [`Cluster`], and with the test's process.

mod address;
pub mod any;
mod authority;
mod clock;
mod cluster;
mod engine;
mod eventually;
mod http;
mod lines;
mod logs;
mod mail;
pub mod package;
mod private;
mod program;
mod proxy;
mod redis;
mod replica;
mod server;
mod spawn;
mod stores;

pub use authority::{Authority, Issued};
pub use clock::shifted;
pub use cluster::{Builder, Cluster};
pub use engine::{Engine, IMAGE};
pub use eventually::eventually;
pub use http::{client, fresh};
pub use lines::Lines;
pub use mail::MailServer;
pub use private::PrivateStores;
pub use program::gateway as gateway_program;
pub use proxy::{Proxy, Wire};
pub use redis::{RedisCluster, RedisServer, RedisServers, Sentinels, TlsRedis};
pub use replica::Replica;
