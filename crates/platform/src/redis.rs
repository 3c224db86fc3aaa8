//! Redis: clients that reconnect, with a deadline on every command.

use std::time::Duration;

use anyhow::Context;
use fred::prelude::*;
use fred::types::RespVersion;
use fred::types::config::UnresponsiveConfig;

const COMMAND_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const POOL_SIZE: usize = 4;

/// A builder of clients for a URL, single, Sentinel or Cluster.
///
/// # Errors
/// Where the URL cannot be read.
pub fn builder(url: &str) -> anyhow::Result<Builder> {
    let mut config = Config::from_url(url).map_err(|_| {
        anyhow::anyhow!("REDIS_URL cannot be read: it looks like redis://user:password@host:6379")
    })?;
    config.version = RespVersion::RESP3;
    let mut builder = Builder::from_config(config);
    builder
        // Without a policy a client never reconnects.
        .set_policy(ReconnectPolicy::new_exponential(0, 50, 1000, 2))
        .with_performance_config(|performance| {
            performance.default_command_timeout = COMMAND_TIMEOUT;
            performance.broadcast_channel_capacity = 8192;
        })
        .with_connection_config(|connection| {
            connection.connection_timeout = Duration::from_secs(1);
            connection.internal_command_timeout = Duration::from_secs(1);
            // A frozen server keeps its connections open; only silence shows it.
            connection.unresponsive = UnresponsiveConfig {
                max_timeout: Some(Duration::from_millis(1500)),
                interval: Duration::from_millis(250),
            };
        });
    Ok(builder)
}

/// Connects a pool; each member has been asked once, so that idle members are not taken for frozen ones.
///
/// # Errors
/// Where no server answers within 5 s.
pub async fn connect(url: &str) -> anyhow::Result<Pool> {
    let pool = builder(url)?
        .build_pool(POOL_SIZE)
        .context("building the Redis clients")?;
    let connecting = async {
        pool.init().await?;
        for client in pool.clients() {
            client.ping::<()>(None).await?;
            speak_after_reconnect(client);
        }
        Ok::<_, fred::error::Error>(())
    };
    let place = place(url);
    tokio::time::timeout(CONNECT_DEADLINE, connecting)
        .await
        .map_err(|_| anyhow::anyhow!("no answer within 5 s"))
        .and_then(|answer| answer.map_err(anyhow::Error::from))
        .with_context(|| {
            format!("Redis at {place} does not answer: start it, or correct REDIS_URL")
        })?;
    Ok(pool)
}

/// A client of its own, for subscriptions.
///
/// # Errors
/// Where no server answers.
pub async fn client(url: &str) -> anyhow::Result<Client> {
    let client = short_lived(url).await?;
    speak_after_reconnect(&client);
    Ok(client)
}

/// A client of its own for calls that block; it never falls silent, and may be replaced by another at any time.
///
/// # Errors
/// Where no server answers.
pub async fn short_lived(url: &str) -> anyhow::Result<Client> {
    let client = builder(url)?.build().context("building a Redis client")?;
    let connecting = async {
        client.init().await?;
        client.ping::<()>(None).await
    };
    let place = place(url);
    tokio::time::timeout(CONNECT_DEADLINE, connecting)
        .await
        .map_err(|_| anyhow::anyhow!("no answer within 5 s"))
        .and_then(|answer| answer.map_err(anyhow::Error::from))
        .with_context(|| {
            format!("Redis at {place} does not answer: start it, or correct REDIS_URL")
        })?;
    Ok(client)
}

/// Asks once after each new connection: one on which nothing was asked yet is taken for frozen and closed, again and
/// again. For clients that live as long as the process: the task holds its client.
fn speak_after_reconnect(client: &Client) {
    let asking = client.clone();
    client.on_reconnect(move |_| {
        let client = asking.clone();
        async move {
            // A connection that is gone again is followed by another reconnect.
            let _ = client.ping::<()>(None).await;
            Ok(())
        }
    });
}

/// The URL without user and password.
fn place(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    rest.split(['/', '?']).next().unwrap_or(rest)
}
