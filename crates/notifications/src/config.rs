//! The settings of this service.

use std::time::Duration;

use platform::Env;

/// The settings of this service.
#[derive(Clone, Debug)]
pub struct Config {
    /// How often every instance compares its live sockets with the store, for what Redis lost.
    /// `NOTIFICATIONS_SWEEP_SECONDS`, default 1.
    pub sweep_every: Duration,
    /// How often the sessions of live sockets are checked, beside the news that one has ended.
    /// `NOTIFICATIONS_SESSION_CHECK_SECONDS`, default 5.
    pub check_sessions_every: Duration,
}

impl Config {
    /// Reads the settings; faults are collected in `env`.
    pub fn from_env(env: &mut Env) -> Self {
        Self {
            sweep_every: env.seconds("NOTIFICATIONS_SWEEP_SECONDS", Duration::from_secs(1)),
            check_sessions_every: env.seconds(
                "NOTIFICATIONS_SESSION_CHECK_SECONDS",
                Duration::from_secs(5),
            ),
        }
    }
}
