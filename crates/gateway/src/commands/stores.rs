//! Where the stores of the cluster are, for commands that do not join it.

use anyhow::{Context, bail};
use platform::Settings;
use platform::config::Stores;
use secrecy::ExposeSecret;

use crate::cluster::stores_folder;

/// The URLs of the stores.
pub struct Addresses {
    /// Of Redis.
    pub redis: String,
    /// Of PostgreSQL.
    pub database: String,
}

/// The configured stores, or the private ones of replicas that run on this machine.
pub fn addresses(settings: &Settings) -> anyhow::Result<Addresses> {
    match &settings.stores {
        Stores::External { redis, database } => Ok(Addresses {
            redis: redis.expose_secret().to_owned(),
            database: database.expose_secret().to_owned(),
        }),
        Stores::Embedded => {
            let dir = stores_folder(settings)?;
            if !embedded::is_running(&dir) {
                bail!(
                    "no replica runs with its stores in {}: `gateway` (`cargo run -p gateway` in the folder of the project) starts one, CLOUDPHONE_HOME names another folder, or REDIS_URL and DATABASE_URL another cluster",
                    dir.display()
                );
            }
            let found =
                embedded::addresses(&dir).context("reading where the private stores are")?;
            Ok(Addresses {
                redis: found.redis_url,
                database: found.database_url,
            })
        }
    }
}
