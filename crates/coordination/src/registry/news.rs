//! Hearing that the registry has changed: a connection of its own that subscribes, and has the registry read.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::Inner;

/// How long connecting and subscribing may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long after a failure it is tried again; until then the poll does it.
const RETRY: Duration = Duration::from_secs(2);
/// How often it is looked whether the registry still exists, and where its Redis is.
const LOOK_UP: Duration = Duration::from_secs(1);

/// Hears news until the registry is left or dropped.
pub async fn run(registry: Weak<Inner>) {
    loop {
        let Some((client, channel, left)) = registry.upgrade().map(|inner| {
            let client = inner.redis.next().clone_new();
            (client, inner.keys.registry_news(), inner.left.clone())
        }) else {
            return;
        };
        let heard = left.run_until_cancelled(hear(&registry, &client, &channel));
        if let Some(Err(error)) = heard.await {
            debug!("news of the registry are not heard, the poll goes on: {error}");
        }
        if let Some(inner) = registry.upgrade() {
            inner.pushed.store(false, Ordering::Relaxed);
        }
        let _ = timeout(DEADLINE, client.quit()).await;
        if registry.strong_count() == 0 || left.is_cancelled() {
            return;
        }
        sleep(RETRY).await;
    }
}

async fn hear(registry: &Weak<Inner>, client: &Client, channel: &str) -> Result<(), Error> {
    let mut messages = client.message_rx();
    let mut connected = client.reconnect_rx();
    in_time(client.init()).await?;
    subscribe(registry, client, channel).await?;
    loop {
        tokio::select! {
            message = messages.recv() => match message {
                // One that was missed is news as well.
                Ok(_) | Err(RecvError::Lagged(_)) => match registry.upgrade() {
                    Some(inner) => inner.read_now.notify_one(),
                    None => return Ok(()),
                },
                Err(RecvError::Closed) => return Ok(()),
            },
            again = connected.recv() => match again {
                Ok(_) | Err(RecvError::Lagged(_)) => subscribe(registry, client, channel).await?,
                Err(RecvError::Closed) => return Ok(()),
            },
            () = sleep(LOOK_UP) => match registry.upgrade() {
                // Not the next one: looking changes nothing for those who send.
                Some(inner) if is_elsewhere(client, &inner.redis.clients()[0]) => return Ok(()),
                Some(_) => {}
                None => return Ok(()),
            },
        }
    }
}

/// Whether each has one server and they differ: the master is another one now, and this client did not notice.
fn is_elsewhere(client: &Client, other: &Client) -> bool {
    let (here, there) = (client.active_connections(), other.active_connections());
    here.len() == 1 && there.len() == 1 && here != there
}

/// Subscribes on a new connection, and has read what may have been missed before.
async fn subscribe(registry: &Weak<Inner>, client: &Client, channel: &str) -> Result<(), Error> {
    // A connection on which nothing was ever asked is taken for frozen.
    in_time(client.ping::<()>(None)).await?;
    in_time(client.subscribe(channel)).await?;
    if let Some(inner) = registry.upgrade() {
        inner.pushed.store(true, Ordering::Relaxed);
        inner.read_now.notify_one();
    }
    Ok(())
}

async fn in_time<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = |_| Error::new(fred::error::ErrorKind::Timeout, "no answer in time");
    timeout(DEADLINE, call).await.map_err(late)?
}
