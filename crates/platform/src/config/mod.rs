//! Configuration: read once, at start, from the environment; every fault is collected and told at once.

mod env;
mod objects;
mod settings;

pub use env::{ConfigError, Env, Fault};
pub use objects::{Bucket, ObjectsAt};
pub use settings::{LogFormat, Profile, Settings, Stores};

/// The exit code of a process whose configuration is wrong (`EX_CONFIG` of sysexits.h).
pub const EXIT_CONFIG: i32 = 78;
