//! Clients for a cluster's stores.

use std::time::Duration;

use anyhow::Context as _;
use fred::prelude::*;
use fred::types::RespVersion;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

/// Connects to PostgreSQL.
pub async fn database(url: &str) -> anyhow::Result<PgPool> {
    let options = PgPoolOptions::new()
        .max_connections(5)
        .acquire_timeout(Duration::from_secs(10));
    options
        .connect(url)
        .await
        .context("could not connect to the cluster's PostgreSQL")
}

/// Connects to Redis.
pub async fn redis(url: &str) -> anyhow::Result<Pool> {
    let mut config = Config::from_url(url)?;
    config.version = RespVersion::RESP3;
    let mut builder = Builder::from_config(config);
    builder
        .set_policy(ReconnectPolicy::new_exponential(0, 50, 1000, 2))
        .with_performance_config(|performance| {
            performance.default_command_timeout = Duration::from_secs(5)
        })
        .with_connection_config(|connection| {
            connection.connection_timeout = Duration::from_secs(2)
        });
    let pool = builder.build_pool(2)?;
    pool.init()
        .await
        .context("could not connect to the cluster's Redis")?;
    Ok(pool)
}
