//! News between instances, over Redis: that a user's notifications changed, that a session ended. They may be lost.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use contracts::{SessionId, UserId};
use fred::clients::SubscriberClient;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use platform::Platform;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::{Frame, Hub};
use crate::socket::Sockets;

const CHANNEL: &str = "notifications:news";
/// News that go in one message.
const BATCH: usize = 256;
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// What one instance tells the others.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct News {
    /// Who speaks.
    #[serde(default)]
    pub origin: String,
    /// Users whose notifications changed.
    #[serde(default)]
    pub users: Vec<UserId>,
    /// Sessions to look at.
    #[serde(default)]
    pub sessions: Vec<SessionId>,
    /// Frames that are not stored.
    #[serde(default)]
    pub pushes: Vec<Push>,
}

/// A frame that is not stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Push {
    /// Whose sockets it goes to.
    pub user: UserId,
    /// The name of the event.
    pub event: String,
    /// Its payload.
    pub data: Value,
}

/// Publishes this instance's news until the stop.
pub async fn publish(
    hub: Arc<Hub>,
    platform: Platform,
    mut outgoing: mpsc::Receiver<News>,
    stop: CancellationToken,
) {
    let channel = platform.keys.key(CHANNEL);
    let mut batch = Vec::new();
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = outgoing.recv_many(&mut batch, BATCH) => received,
        };
        if received == 0 {
            return;
        }
        let mut news = News {
            origin: hub.origin.clone(),
            ..News::default()
        };
        for one in batch.drain(..) {
            news.users.extend(one.users);
            news.sessions.extend(one.sessions);
            news.pushes.extend(one.pushes);
        }
        news.users.sort_unstable();
        news.users.dedup();
        let Ok(text) = serde_json::to_string(&news) else {
            continue;
        };
        if let Err(error) = platform
            .redis
            .next()
            .publish::<(), _, _>(&channel, text)
            .await
        {
            debug!("other instances learn by their sweep: {error}");
        }
    }
}

/// A client that hears the other instances.
///
/// # Errors
/// Where Redis does not answer.
pub async fn subscriber(platform: &Platform) -> anyhow::Result<SubscriberClient> {
    let client = platform::redis::builder(&platform.redis_url)?.build_subscriber_client()?;
    tokio::time::timeout(CONNECT_DEADLINE, client.init())
        .await
        .map_err(|_| anyhow::anyhow!("no answer within 5 s"))?
        .context("connecting a subscriber to Redis")?;
    client
        .ping::<()>(None)
        .await
        .context("connecting a subscriber to Redis")?;
    platform.redis_switches.follow(client.clone());
    Ok(client)
}

/// Hears the other instances until the stop. After each reconnection it subscribes anew and compares every socket
/// with the store, since news were lost.
pub async fn listen(
    sockets: Sockets,
    client: SubscriberClient,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let hub = &sockets.hub;
    let channel = sockets.platform.keys.key(CHANNEL);
    let (mut messages, mut connected) = (client.message_rx(), client.reconnect_rx());
    subscribe(&client, &channel, &stop).await;
    loop {
        tokio::select! {
            () = stop.cancelled() => {
                let _ = client.quit().await;
                return Ok(());
            }
            back = connected.recv() => {
                if matches!(back, Err(RecvError::Closed)) {
                    anyhow::bail!("the Redis subscriber ended");
                }
                subscribe(&client, &channel, &stop).await;
                info!("Redis is back: comparing live sockets with the store");
                hub.sweep_soon();
            }
            message = messages.recv() => match message {
                Ok(message) => {
                    let text = message.value.into_string().unwrap_or_default();
                    match serde_json::from_str::<News>(&text) {
                        Ok(news) if news.origin == hub.origin => {}
                        Ok(news) => {
                            for push in news.pushes {
                                hub.push_here(&push.user, &Frame::new(push.event, push.data));
                            }
                            hub.stir(news.users);
                            for session in news.sessions {
                                sockets.check_sessions(Some(&session)).await;
                            }
                        }
                        Err(error) => debug!("news that cannot be read, left to newer replicas: {error}"),
                    }
                }
                Err(RecvError::Lagged(_)) => hub.sweep_soon(),
                Err(RecvError::Closed) => anyhow::bail!("the Redis subscriber ended"),
            },
        }
    }
}

async fn subscribe(client: &SubscriberClient, channel: &str, stop: &CancellationToken) {
    // The first command keeps a fresh, idle connection from being taken for a frozen one.
    while client.ping::<()>(None).await.is_err() || client.subscribe(channel).await.is_err() {
        tokio::select! { () = stop.cancelled() => return, () = tokio::time::sleep(RETRY_PAUSE) => {} }
    }
}
