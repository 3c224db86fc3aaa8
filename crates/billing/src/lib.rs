//! Billing: plans, orders, payments and their webhooks, balances, usage, and the double-entry ledger below them all.
//!
//! Whatever must happen once is decided by a row lock and refused by a constraint: an order is paid in one
//! transaction with its payment, its ledger entry and its event, whichever replica was told and how often.

mod balance;
mod callers;
mod config;
mod coupon;
mod error;
mod export;
mod invoice;
mod ledger;
mod metrics;
mod order;
mod payment;
mod plan;
mod provider;
mod refund;
mod routes;
mod rsa;
mod rules;
mod stats;
mod times;
mod usage;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use coordination::cron::Job;
use coordination::{Keys, RateLimiter};
use platform::Platform;
use platform::export::Exports;
use platform::lifecycle::{Tasks, Tick};

pub use config::Config;
pub use error::{Error, Result};
use provider::Providers;
pub use routes::{openapi, router};
pub use stats::census::Census;
pub use usage::{Meter, price::UnitPrice};

/// How often a replica counts what waits.
const GAUGES: Duration = Duration::from_secs(30);
/// How often a replica looks for notices that the provider of the sandbox has to deliver.
const NOTICES: Duration = Duration::from_millis(300);

/// The service: what its handlers and jobs work with.
#[derive(Clone)]
pub struct Billing {
    platform: Platform,
    config: Arc<Config>,
    limiter: RateLimiter,
    providers: Providers,
    exports: Exports,
}

impl Billing {
    /// Puts the service together.
    ///
    /// # Errors
    /// Where no client for a payment provider can be made.
    pub async fn new(platform: &Platform, config: Config) -> anyhow::Result<Self> {
        let keys: Keys = platform.keys.clone();
        Ok(Self {
            providers: Providers::new(platform, &config)?,
            exports: Exports::default(),
            platform: platform.clone(),
            config: Arc::new(config),
            limiter: RateLimiter::new(platform.redis.clone(), keys),
        })
    }

    /// Starts what every replica does for itself: hearing how long devices ran, and of users and devices; counting
    /// what waits; and in the sandbox delivering what its payment provider has to tell. All other periodic work is cluster-wide.
    ///
    /// # Errors
    /// Where a store does not answer at start.
    pub async fn spawn_jobs(&self, tasks: &Tasks) -> anyhow::Result<()> {
        if self.platform.settings.sandbox {
            let (state, client) = (self.clone(), provider::client()?);
            tasks.every("sandbox-notices", NOTICES, move || {
                let (state, client) = (state.clone(), client.clone());
                async move { provider::sandbox::deliver_due(&state, &client).await }
            });
        }
        let state = self.clone();
        tasks.every("billing-gauges", GAUGES, move || {
            let state = state.clone();
            async move { state.show_waiting().await }
        });
        let price = self.config.device_minute_price;
        platform::events::spawn_consumer(&self.platform, tasks, Meter { price }).await?;
        platform::events::spawn_consumer(&self.platform, tasks, Census).await
    }

    /// Shows the same on every replica, whichever of them ran a job last.
    async fn show_waiting(&self) -> anyhow::Result<Tick> {
        let mut conn = self.platform.db.acquire().await?;
        let unapplied = webhook::db::unapplied(&mut conn).await?;
        let (payments, refunds) = payment::db::in_flight(&mut conn).await?;
        metrics::waiting(unapplied, payments, refunds);
        Ok(Tick::Idle)
    }

    /// The jobs that run once a slot in the whole cluster. None needs the guard of its run: an order is expired or
    /// completed, a payment or refund settled and a debt collected by whoever locks its row, once, with its event; and
    /// the verification writes nothing.
    pub fn cron_jobs(&self) -> Vec<Job> {
        let (expiring, verifying) = (self.clone(), self.clone());
        let (asking, retrying) = (self.clone(), self.clone());
        let (completing, collecting) = (self.clone(), self.clone());
        vec![
            Job::new(
                "cancel-expired-orders",
                self.config.expiry_schedule.clone(),
                move |run| {
                    let state = expiring.clone();
                    async move { order::jobs::expire_orders(&state, &run.cancelled).await }
                },
            ),
            Job::new(
                "complete-orders",
                self.config.completion_schedule.clone(),
                move |run| {
                    let state = completing.clone();
                    async move { order::jobs::complete_orders(&state, &run.cancelled).await }
                },
            ),
            Job::new(
                "collect-debts",
                self.config.debt_schedule.clone(),
                move |run| {
                    let state = collecting.clone();
                    async move { usage::debt::collect(&state, &run.cancelled).await }
                },
            ),
            Job::new(
                "ledger-verify",
                self.config.verify_schedule.clone(),
                move |_run| {
                    let state = verifying.clone();
                    async move { ledger::verify::measure(&state).await }
                },
            ),
            Job::new("retry-kept-notices", "*/5 * * * *", move |run| {
                let state = retrying.clone();
                async move { webhook::kept::retry_due(&state, &run.cancelled).await }
            }),
            Job::new(
                "ask-payment-providers",
                self.config.ask_schedule.clone(),
                move |run| {
                    let state = asking.clone();
                    async move { payment::ask::run(&state, &run.cancelled).await }
                },
            ),
        ]
    }
}
