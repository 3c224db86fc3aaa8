//! Consumers: each event of a kind they subscribed to has their effect once.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use anyhow::{Context, anyhow};
use contracts::Event;
use futures::{FutureExt, StreamExt};
use metrics::counter;
use sqlx::PgConnection;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::dead_letter::{self, Late};
use super::reader::Reader;
use crate::Platform;
use crate::lifecycle::Tasks;
use crate::problem::causes;

/// How many events one process handles at once for a consumer; each holds a connection of the pool.
const AT_ONCE: usize = 4;
/// How long one event may take. Others of its batch are handled meanwhile, the next batch waits.
const HANDLING_DEADLINE: Duration = Duration::from_secs(10);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(500);

/// One service's handling of events.
pub trait Consumer: Send + Sync + 'static {
    /// The name under which its handling is recorded; never changed once used.
    const NAME: &'static str;
    /// The kinds it subscribes to. A subscription outlives its program, so that replicas of two versions agree: who
    /// drops a kind deletes its row of `platform.subscriptions` in a migration, or events of that kind wait forever.
    const KINDS: &'static [&'static str];

    /// Has the effect, in the transaction that records the handling. An error rolls both back, and the event comes
    /// again, until it has failed for so long that it is a [dead letter](dead_letter).
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
    let reader = Reader::connect(platform, C::NAME).await?;
    let platform = platform.clone();
    let stop = tasks.stopping();
    tasks.spawn(C::NAME, async move {
        consume(&platform, reader, &consumer, stop).await;
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
    mut reader: Reader,
    consumer: &C,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let events = tokio::select! {
            () = stop.cancelled() => break,
            events = reader.read() => events,
        };
        match events {
            Ok(events) => {
                let wanted = events
                    .into_iter()
                    .filter(|event| C::KINDS.contains(&event.body.kind()));
                // What is not begun when the stop comes is due again in a few seconds, at another replica.
                futures::stream::iter(wanted)
                    .take_until(stop.cancelled())
                    .for_each_concurrent(AT_ONCE, |event| handle(platform, consumer, event))
                    .await;
            }
            Err(error) => {
                warn!(
                    consumer = C::NAME,
                    "could not read the stream of events: {error:#}"
                );
                let renewed = async {
                    sleep(PAUSE_AFTER_FAILURE).await;
                    reader.renew(platform).await;
                };
                tokio::select! { () = stop.cancelled() => break, () = renewed => {} }
            }
        }
    }
    reader.close().await;
}

/// Handles one event, if this consumer has not. Whatever goes wrong, a panic too, concerns this event alone.
async fn handle<C: Consumer>(platform: &Platform, consumer: &C, event: Event) {
    let handling = async {
        let first = apply_once(platform, consumer, &event).await?;
        if first {
            consumer.committed(&event).await;
        }
        Ok(first)
    };
    let outcome = timeout(HANDLING_DEADLINE, AssertUnwindSafe(handling).catch_unwind());
    let result = match outcome.await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(anyhow!("the handling panicked")),
        Err(_) => Err(Late(HANDLING_DEADLINE).into()),
    };
    let counted = match result {
        Ok(true) => "events_consumed_total",
        Ok(false) => "events_repeated_total",
        Err(error) => {
            let why = causes(error.as_ref());
            warn!(consumer = C::NAME, event.id = %event.id, "{} was not handled: {why}", event.body.kind());
            if !dead_letter::passes(&error) {
                note_failure::<C>(platform, &event, &why).await;
            }
            "events_failed_total"
        }
    };
    counter!(counted, "consumer" => C::NAME).increment(1);
}

/// Keeps that an event was not handled. Where that fails too, the store is at fault, and the event comes again.
async fn note_failure<C: Consumer>(platform: &Platform, event: &Event, why: &str) {
    let noting = async {
        let mut conn = platform.db.acquire().await?;
        dead_letter::record(&mut conn, C::NAME, &event.id, why, platform.clock.now()).await
    };
    match timeout(HANDLING_DEADLINE, noting).await {
        Ok(Ok(true)) => {
            error!(consumer = C::NAME, event.id = %event.id, "{} is given up until an administrator lets it be tried again: {why}", event.body.kind());
            counter!("events_dead_total", "consumer" => C::NAME).increment(1);
        }
        Ok(Ok(false)) => {}
        Ok(Err(error)) => debug!("a failure was not kept: {}", causes(&error)),
        Err(_) => debug!("a failure was not kept in time"),
    }
}

/// Whether this was the time that counted.
async fn apply_once<C: Consumer>(
    platform: &Platform,
    consumer: &C,
    event: &Event,
) -> anyhow::Result<bool> {
    let mut tx = platform.db.begin().await?;
    // Settled, it was handled by everybody who had subscribed: the stream's past is not news for those who come later.
    // The failures before this time are forgiven with it.
    let insert = sqlx::query(
        "-- consumer::apply_once
        with forgiven as (
            delete from platform.dead_letters where consumer = $1 and event_id = $2 and buried_at is null)
        insert into platform.consumed_events (consumer, event_id, consumed_at)
        select $1, id, $3 from platform.outbox o where id = $2 and settled_at is null and not exists (
            select 1 from platform.dead_letters d where d.consumer = $1 and d.event_id = o.id and d.buried_at is not null)
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
