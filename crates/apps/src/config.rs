//! Settings of the service.

use platform::Env;

/// Settings of the service.
#[derive(Clone, Debug)]
pub struct Config {
    /// `APPS_MAX_UPLOAD_BYTES`: the largest package. Default 2 GiB.
    pub max_upload: u64,
}

impl Config {
    /// Reads the settings; faults are collected in `env`.
    pub fn from_env(env: &mut Env) -> Self {
        Self {
            max_upload: env.within("APPS_MAX_UPLOAD_BYTES", 2 << 30, (1024, 1 << 40)),
        }
    }
}
