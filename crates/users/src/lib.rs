//! Users: accounts, sign-in, sessions and their tokens, roles, API keys.

mod account;
mod api_key;
mod attempt;
mod audit;
mod captcha;
mod config;
mod error;
mod limits;
mod metrics;
mod password;
mod reset;
mod role;
mod routes;
mod secret;
mod session;
mod token;
mod two_factor;

use std::sync::Arc;

use coordination::rate_limit::RateLimiter;
use platform::Platform;
use platform::events::spawn_consumer;
use platform::export::Exports;
use platform::lifecycle::Tasks;
use platform::mail::Mailer;

use crate::password::Hasher;
use crate::two_factor::Vault;

pub use account::create_admin;
pub use audit::Recorder;
pub use config::Config;
pub use routes::{openapi, router};

/// What the handlers and jobs of the service share.
#[derive(Clone)]
pub struct Users {
    platform: Platform,
    config: Arc<Config>,
    hasher: Hasher,
    mailer: Mailer,
    vault: Option<Arc<Vault>>,
    exports: Exports,
    limiter: RateLimiter,
}

impl Users {
    /// Prepares the service.
    ///
    /// # Errors
    /// Where no password can be hashed, the mail server or the keys of second factors cannot be used, or the database does not
    /// answer.
    pub async fn new(platform: &Platform, config: Config) -> anyhow::Result<Self> {
        let hasher = Hasher::new(
            config.hash_cost,
            config.hashes_at_once,
            config.hashes_waiting,
        )
        .await?;
        let vault = two_factor::vault(platform, config.two_factor_keys.clone()).await?;
        Ok(Self {
            hasher,
            vault: vault.map(Arc::new),
            exports: Exports::default(),
            mailer: Mailer::new(&config.mail)?,
            limiter: RateLimiter::new(platform.redis.clone(), platform.keys.clone()),
            platform: platform.clone(),
            config: Arc::new(config),
        })
    }

    /// Starts what runs beside the requests.
    ///
    /// # Errors
    /// Where a store does not answer at start.
    pub async fn spawn_jobs(&self, tasks: &Tasks) -> anyhow::Result<()> {
        spawn_consumer(&self.platform, tasks, audit::Recorder).await?;
        account::spawn_jobs(self, tasks);
        audit::spawn_jobs(self, tasks);
        reset::spawn_jobs(self, tasks);
        session::spawn_jobs(self, tasks);
        api_key::spawn_jobs(self, tasks);
        Ok(())
    }

    /// Jobs that run once a slot in the whole cluster: none.
    pub fn cron_jobs(&self) -> Vec<coordination::cron::Job> {
        Vec::new()
    }

    /// Repeats each periodic step until it finds nothing more, for tests.
    ///
    /// # Errors
    /// Where a step fails.
    pub async fn run_jobs(&self) -> anyhow::Result<()> {
        account::run_jobs(self).await?;
        audit::run_jobs(self).await?;
        reset::run_jobs(self).await?;
        session::run_jobs(self).await?;
        api_key::run_jobs(self).await
    }
}
