//! Consumers: each event of a kind they subscribed to has their effect once.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use contracts::Event;
use fred::clients::Client;
use fred::error::ErrorKind;
use fred::interfaces::StreamsInterface;
use futures::StreamExt;
use metrics::counter;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{FIELD, STREAM};
use crate::Platform;
use crate::lifecycle::Tasks;
use crate::problem::causes;

const BATCH: u64 = 64;
const AT_ONCE: usize = 8;
/// Below the command time-out of the clients.
const BLOCK_MILLISECONDS: u64 = 1_000;
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(500);

/// One service's handling of events.
pub trait Consumer: Send + Sync + 'static {
    /// The name under which its handling is recorded; never changed once used.
    const NAME: &'static str;
    /// The kinds it subscribes to.
    const KINDS: &'static [&'static str];

    /// Has the effect, in the transaction that records the handling. An error rolls both back, and the event comes
    /// again.
    fn apply(
        &self,
        tx: &mut PgConnection,
        event: &Event,
    ) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Goes on after the commit. May be skipped by a crash: what must not be lost stands in the transaction.
    fn committed(&self, _event: &Event) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// Subscribes and starts handling.
///
/// # Errors
/// Where a store does not answer at start.
pub async fn spawn_consumer<C: Consumer>(
    platform: &Platform,
    tasks: &Tasks,
    consumer: C,
) -> anyhow::Result<()> {
    subscribe::<C>(platform).await?;
    // A blocking read holds its connection, so it gets one of its own.
    let client = crate::redis::client(&platform.redis_url).await?;
    let platform = platform.clone();
    let stop = tasks.stopping();
    tasks.spawn(C::NAME, async move {
        consume(&platform, &client, Arc::new(consumer), stop).await;
        Ok(())
    });
    Ok(())
}

async fn subscribe<C: Consumer>(platform: &Platform) -> anyhow::Result<()> {
    sqlx::query(
        "insert into platform.subscriptions (consumer, kind) select $1, unnest($2::text[]) on conflict do nothing",
    )
    .bind(C::NAME)
    .bind(C::KINDS)
    .execute(&platform.db)
    .await
    .with_context(|| format!("subscribing {} to its events", C::NAME))?;
    Ok(())
}

async fn consume<C: Consumer>(
    platform: &Platform,
    client: &Client,
    consumer: Arc<C>,
    stop: CancellationToken,
) {
    let name =
        platform.settings.advertise_address.to_string() + ":" + &std::process::id().to_string();
    while !stop.is_cancelled() {
        let events = tokio::select! {
            () = stop.cancelled() => break,
            events = read(platform, client, C::NAME, &name) => events,
        };
        match events {
            Ok(events) => {
                let wanted = events
                    .into_iter()
                    .filter(|event| C::KINDS.contains(&event.body.kind()));
                futures::stream::iter(wanted)
                    .for_each_concurrent(AT_ONCE, |event| {
                        handle(platform, consumer.as_ref(), event)
                    })
                    .await;
            }
            Err(error) => {
                debug!(
                    consumer = C::NAME,
                    "could not read the stream of events: {error:#}"
                );
                tokio::select! { () = stop.cancelled() => break, () = tokio::time::sleep(PAUSE_AFTER_FAILURE) => {} }
            }
        }
    }
}

/// Reads what came for this group. Nothing is kept pending in Redis: the outbox publishes again what was not handled.
async fn read(
    platform: &Platform,
    client: &Client,
    group: &str,
    reader: &str,
) -> anyhow::Result<Vec<Event>> {
    let key = platform.keys.key(STREAM);
    type Entries = HashMap<String, Vec<(String, HashMap<String, String>)>>;
    let answer: Result<Option<Entries>, _> = client
        .xreadgroup_map(
            group,
            reader,
            Some(BATCH),
            Some(BLOCK_MILLISECONDS),
            true,
            &key,
            ">",
        )
        .await
        .map(Some);
    let entries = match answer {
        Ok(entries) => entries.unwrap_or_default(),
        Err(error) if error.details().contains("NOGROUP") => {
            // Redis is new or has lost its data. From its beginning: handling twice has no second effect.
            client
                .xgroup_create::<(), _, _, _>(&key, group, "0", true)
                .await?;
            return Ok(Vec::new());
        }
        // An empty answer after the block, or a connection that came back.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Parse) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error.into()),
    };
    let entries = entries.into_values().flatten();
    Ok(entries
        .filter_map(
            |(id, fields)| match serde_json::from_str(fields.get(FIELD)?) {
                Ok(event) => Some(event),
                Err(error) => {
                    warn!("the stream entry {id} is not an event, left to newer replicas: {error}");
                    None
                }
            },
        )
        .collect())
}

/// Handles one event, if this consumer has not.
pub async fn handle<C: Consumer>(platform: &Platform, consumer: &C, event: Event) {
    match apply_once(platform, consumer, &event).await {
        Ok(true) => {
            counter!("events_consumed_total", "consumer" => C::NAME).increment(1);
            consumer.committed(&event).await;
        }
        Ok(false) => counter!("events_repeated_total", "consumer" => C::NAME).increment(1),
        Err(error) => {
            counter!("events_failed_total", "consumer" => C::NAME).increment(1);
            warn!(consumer = C::NAME, event.id = %event.id, "{} was not handled and will come again: {}", event.body.kind(), causes(error.as_ref()));
        }
    }
}

/// Whether this was the time that counted.
async fn apply_once<C: Consumer>(
    platform: &Platform,
    consumer: &C,
    event: &Event,
) -> anyhow::Result<bool> {
    let mut tx = platform.db.begin().await?;
    let insert = sqlx::query(
        "insert into platform.consumed_events (consumer, event_id, consumed_at)
        select $1, id, $3 from platform.outbox where id = $2
        on conflict do nothing",
    );
    let first = insert
        .bind(C::NAME)
        .bind(&event.id)
        .bind(platform.clock.now())
        .execute(&mut *tx)
        .await?;
    if first.rows_affected() == 0 {
        return Ok(false);
    }
    consumer.apply(&mut tx, event).await?;
    tx.commit().await?;
    Ok(true)
}
