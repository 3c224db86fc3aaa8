//! Hearing what is published on a Redis channel, by a connection of its own that follows the master and comes back.
//! Messages can be lost: whoever listens reads the state itself when told to, and now and then without being told.

use std::ops::ControlFlow;
use std::time::Duration;

use fred::clients::{Client, Pool};
use fred::error::Error;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// How long connecting and subscribing may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How often a listener is asked whether it goes on, where nothing is said, and it is looked where the master is.
const LOOK_UP: Duration = Duration::from_secs(1);

/// What a listener is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// From now on messages are heard; those of before may have been missed.
    Listening,
    /// A message.
    Told(String),
    /// Messages came faster than they were heard, and some are lost.
    Missed,
    /// Nothing is heard any more, until the next [`News::Listening`].
    Deaf,
    /// Nothing was said for a second.
    Quiet,
}

/// Tells `hear` what is said on a channel, until it breaks off or `stop` is cancelled.
pub async fn listen(
    redis: &Pool,
    channel: &str,
    stop: &CancellationToken,
    mut hear: impl FnMut(News) -> ControlFlow<()>,
) {
    loop {
        // Clients of the pool have answered before; this one has not, and must not be taken for frozen.
        let client = redis.next().clone_new();
        let heard = stop.run_until_cancelled(follow(redis, &client, channel, &mut hear));
        let heard = heard.await;
        if let Some(Err(error)) = &heard {
            debug!("{channel} is not heard for a moment: {error}");
        }
        let _ = timeout(DEADLINE, client.quit()).await;
        let ends = matches!(heard, None | Some(Ok(ControlFlow::Break(()))));
        if ends || hear(News::Deaf).is_break() {
            return;
        }
        if stop.run_until_cancelled(sleep(RETRY)).await.is_none() {
            return;
        }
    }
}

async fn follow(
    redis: &Pool,
    client: &Client,
    channel: &str,
    hear: &mut impl FnMut(News) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, Error> {
    let mut messages = client.message_rx();
    let mut connected = client.reconnect_rx();
    in_time(client.init()).await?;
    subscribe(client, channel).await?;
    let mut news = News::Listening;
    loop {
        if hear(news).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        news = tokio::select! {
            message = messages.recv() => match message {
                Ok(message) => News::Told(message.value.as_string().unwrap_or_default()),
                Err(RecvError::Lagged(_)) => News::Missed,
                Err(RecvError::Closed) => return Ok(ControlFlow::Continue(())),
            },
            again = connected.recv() => match again {
                Ok(_) | Err(RecvError::Lagged(_)) => {
                    subscribe(client, channel).await?;
                    News::Listening
                }
                Err(RecvError::Closed) => return Ok(ControlFlow::Continue(())),
            },
            () = sleep(LOOK_UP) => {
                // Not the next one: looking changes nothing for those who send.
                if is_elsewhere(client, &redis.clients()[0]) {
                    return Ok(ControlFlow::Continue(()));
                }
                News::Quiet
            }
        };
    }
}

/// Whether each has one server and they differ: the master is another one now, and this client did not notice.
fn is_elsewhere(client: &Client, other: &Client) -> bool {
    let (here, there) = (client.active_connections(), other.active_connections());
    here.len() == 1 && there.len() == 1 && here != there
}

async fn subscribe(client: &Client, channel: &str) -> Result<(), Error> {
    // A connection on which nothing was ever asked is taken for frozen.
    in_time(client.ping::<()>(None)).await?;
    in_time(client.subscribe(channel)).await
}

async fn in_time<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = |_| Error::new(fred::error::ErrorKind::Timeout, "no answer in time");
    timeout(DEADLINE, call).await.map_err(late)?
}
