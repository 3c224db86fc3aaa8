//! Redis: clients that reconnect, that follow the master, with a deadline on every command.

mod switches;
mod url;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use fred::prelude::*;
use fred::types::RespVersion;
use fred::types::config::UnresponsiveConfig;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

pub use switches::Switches;
use url::place;

const COMMAND_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const POOL_SIZE: usize = 4;

/// A Redis that answered, and what is needed to reach it by further clients.
#[derive(Clone)]
pub struct Redis {
    /// The clients that everybody shares.
    pub pool: Pool,
    /// The URL.
    pub url: Arc<str>,
    /// Which server is the master.
    pub switches: Switches,
}

impl fmt::Debug for Redis {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Redis").field(&place(&self.url)).finish()
    }
}

/// A builder of clients for a URL: `redis://`, `redis-sentinel://` or `redis-cluster://`, or with `rediss` for TLS.
/// With `?sslrootcert=/path/to/ca.pem` the authorities in that file are trusted in place of the system's.
///
/// # Errors
/// Where the URL or the file cannot be read.
pub fn builder(url: &str) -> anyhow::Result<Builder> {
    Ok(with_deadlines(url::read(url)?))
}

fn with_deadlines(mut config: Config) -> Builder {
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
    builder
}

/// Connects a pool; each member has been asked once, so that idle members are not taken for frozen ones.
///
/// # Errors
/// Where no server answers within 5 s.
pub async fn connect(url: &str) -> anyhow::Result<Redis> {
    let pool = builder(url)?
        .build_pool(POOL_SIZE)
        .context("building the Redis clients")?;
    answered(url, async {
        pool.init().await?;
        for client in pool.clients() {
            client.ping::<()>(None).await?;
        }
        Ok(())
    })
    .await?;
    let switches = Switches::of(&url::read(url)?);
    for client in pool.clients() {
        speak_after_reconnect(client);
        switches.follow(client.clone());
    }
    Ok(Redis {
        pool,
        url: url.into(),
        switches,
    })
}

/// A client of its own for calls that block; it never falls silent, and may be replaced by another at any time.
///
/// # Errors
/// Where no server answers.
pub async fn short_lived(url: &str) -> anyhow::Result<Client> {
    let client = builder(url)?.build().context("building a Redis client")?;
    answered(url, async {
        client.init().await?;
        client.ping::<()>(None).await
    })
    .await?;
    Ok(client)
}

/// A client of its own for the same Redis, whose connection is driven by the given runtime: what its threads ask wakes no
/// other. It connects in the background; commands wait for that as for an answer.
pub fn driven_by(runtime: &Handle, like: &Pool, switches: &Switches) -> anyhow::Result<Pool> {
    // Whatever this starts belongs to that runtime.
    let _entered = runtime.enter();
    let client = like.next().clone_new();
    speak_after_reconnect(&client);
    switches.follow(client.clone());
    client.connect();
    let first = client.clone();
    TaskTracker::new().spawn(async move {
        // The same at first: see there.
        let _ = first.wait_for_connect().await;
        let _ = first.ping::<()>(None).await;
    });
    Pool::from_clients(vec![client]).context("building a Redis client")
}

async fn answered(
    url: &str,
    connecting: impl Future<Output = Result<(), fred::error::Error>>,
) -> anyhow::Result<()> {
    let place = place(url);
    tokio::time::timeout(CONNECT_DEADLINE, connecting)
        .await
        .map_err(|_| anyhow::anyhow!("no answer within 5 s"))
        .and_then(|answer| answer.map_err(anyhow::Error::from))
        .with_context(|| {
            format!("Redis at {place} does not answer: start it, or correct REDIS_URL")
        })
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
