//! Joining a cluster: the stores, the shared secrets, and the platform that services are handed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use coordination::Keys;
use embedded::SupervisorCommand;
use platform::auth::Auth;
use platform::config::Stores;
use platform::lifecycle::Readiness;
use platform::{Clock, Platform, Settings, db, redis, secrets};
use secrecy::ExposeSecret;

/// How long the database connections may take to close.
const CLOSING: Duration = Duration::from_millis(500);

/// A cluster that this process has joined.
pub struct Cluster {
    /// What services are handed.
    pub platform: Platform,
    /// The place at the private stores, where they are used.
    embedded: Option<embedded::Stores>,
}

impl Cluster {
    /// Finds or starts the stores, migrates the database, and agrees on secrets with the other replicas.
    pub async fn join(settings: Settings, readiness: Readiness) -> anyhow::Result<Self> {
        let (redis_url, database_url, embedded) = stores(&settings).await?;
        let db = db::connect(&database_url, settings.database_pool).await?;
        let redis = redis::connect(&redis_url).await?;
        db::migrate(&db).await?;

        let keys = Keys::new(&settings.key_prefix);
        let clock = Clock::system();
        clock.set(&db).await?;
        let signing_key = settings.auth_signing_key.clone();
        let signing_key = secrets::configured_or_made(&db, "AUTH_SIGNING_KEY", signing_key).await?;
        let service_secret = settings.service_secret.clone();
        let service_secret =
            secrets::configured_or_made(&db, "SERVICE_SECRET", service_secret).await?;
        let stores = (db.clone(), redis.pool.clone(), keys.clone());
        let auth = Auth::new(
            &signing_key,
            &service_secret,
            settings.sandbox,
            stores,
            clock.clone(),
        )?;
        let platform = Platform::new(Arc::new(settings), db, redis, keys, clock, auth, readiness);
        Ok(Self { platform, embedded })
    }

    /// Closes the connections and gives up the place at the private stores.
    pub async fn leave(self) {
        // A connection in the hands of a task that did not stop must not keep us from what follows.
        let _ = tokio::time::timeout(CLOSING, self.platform.db.close()).await;
        if let Err(error) = fred::interfaces::ClientLike::quit(&self.platform.redis).await {
            tracing::debug!("Redis did not hear our goodbye: {error}");
        }
        if let Some(stores) = self.embedded {
            stores.leave().await;
        }
    }
}

async fn stores(settings: &Settings) -> anyhow::Result<(String, String, Option<embedded::Stores>)> {
    match &settings.stores {
        Stores::External { redis, database } => Ok((
            redis.expose_secret().to_owned(),
            database.expose_secret().to_owned(),
            None,
        )),
        Stores::Embedded => {
            let dir = stores_folder(settings)?;
            let program = std::env::current_exe().context("finding this program")?;
            let args = [
                "stores".into(),
                "--dir".into(),
                dir.clone().into_os_string(),
            ]
            .to_vec();
            let stores = embedded::join(&dir, SupervisorCommand { program, args }).await?;
            Ok((
                stores.redis_url.clone(),
                stores.database_url.clone(),
                Some(stores),
            ))
        }
    }
}

/// The folder of the private stores.
pub fn stores_folder(settings: &Settings) -> anyhow::Result<PathBuf> {
    std::path::absolute(&settings.home).context("finding the folder of the private stores")
}
