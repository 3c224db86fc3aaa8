//! Settings of the service.

use std::path::PathBuf;

use platform::Env;

/// Settings of the service.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where packages are kept; a folder that every replica sees. `APPS_FOLDER`, default `objects` below
    /// `CLOUDPHONE_HOME`.
    pub folder: PathBuf,
    /// The largest package, in bytes. `APPS_MAX_UPLOAD_BYTES`, default 2 GiB.
    pub max_upload: u64,
}

impl Config {
    /// Reads the settings; faults are collected in `env`.
    pub fn from_env(env: &mut Env) -> Self {
        let home = PathBuf::from(env.text("CLOUDPHONE_HOME").unwrap_or_else(|| ".cloudphone".into()));
        Self {
            folder: env.text("APPS_FOLDER").map_or_else(|| home.join("objects"), PathBuf::from),
            max_upload: env.within("APPS_MAX_UPLOAD_BYTES", 2 << 30, (1024, 1 << 40)),
        }
    }
}
