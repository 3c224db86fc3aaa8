//! The relay: puts due events into the stream. Every replica runs one.

use std::time::Duration;

use fred::interfaces::StreamsInterface;
use metrics::counter;

use super::{FIELD, STREAM, outbox};
use crate::Platform;
use crate::lifecycle::{Tasks, Tick};

const PERIOD: Duration = Duration::from_millis(100);
const PURGE_PERIOD: Duration = Duration::from_secs(600);
const BATCH: i64 = 256;
/// The stream is only the quick way; what it drops comes again from the outbox.
const STREAM_LENGTH: i64 = 100_000;

/// Starts relaying and clearing.
pub fn spawn_relay(platform: &Platform, tasks: &Tasks) {
    let relaying = platform.clone();
    tasks.every("events.relay", PERIOD, move || {
        let platform = relaying.clone();
        async move { relay(&platform).await }
    });
    let purging = platform.clone();
    tasks.every("events.purge", PURGE_PERIOD, move || {
        let platform = purging.clone();
        async move {
            let deleted = outbox::purge(
                &mut *platform.db.acquire().await?,
                platform.clock.now(),
                BATCH,
            )
            .await?;
            Ok(Tick::after_batch(deleted as usize, BATCH as usize))
        }
    });
}

/// One step: settles what is handled, publishes what is due.
pub async fn relay(platform: &Platform) -> anyhow::Result<Tick> {
    let now = platform.clock.now();
    let mut tx = platform.db.begin().await?;
    outbox::settle_due(&mut tx, now, BATCH).await?;
    let due = outbox::take_due(&mut tx, now, BATCH).await?;
    tx.commit().await?;
    if due.is_empty() {
        return Ok(Tick::Idle);
    }
    // A crash from here on only means that these are due again in a few seconds.
    let pipeline = platform.redis.next().pipeline();
    let key = platform.keys.key(STREAM);
    for event in &due {
        pipeline
            .xadd::<(), _, _, _, _>(
                &key,
                false,
                ("MAXLEN", "~", STREAM_LENGTH),
                "*",
                vec![(FIELD, event.to_string())],
            )
            .await?;
    }
    pipeline.all::<()>().await?;
    counter!("events_relayed_total").increment(due.len() as u64);
    Ok(Tick::after_batch(due.len(), BATCH as usize))
}
