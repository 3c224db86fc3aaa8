//! The relay: puts due events into the stream. Every replica runs one.

use std::time::Duration;

use anyhow::Context;
use contracts::EventId;
use fred::interfaces::StreamsInterface;
use metrics::counter;
use serde_json::Value;
use tokio::time::timeout;
use tracing::warn;

use super::{FIELD, STREAM, outbox};
use crate::lifecycle::{Tasks, Tick};
use crate::{Platform, retention};

const PERIOD: Duration = Duration::from_millis(100);
const BATCH: i64 = 256;
const STEP_DEADLINE: Duration = Duration::from_secs(15);
/// The stream is only the quick way; what it drops comes again from the outbox.
const STREAM_LENGTH: i64 = 10_000;

/// Starts relaying, and clearing away what is settled and what else [`crate::retention`] deletes.
pub fn spawn_relay(platform: &Platform, tasks: &Tasks) {
    let relaying = platform.clone();
    tasks.every("events.relay", PERIOD, move || {
        let platform = relaying.clone();
        async move { relay(&platform).await }
    });
    retention::spawn(platform, tasks);
}

/// One step: settles what is handled, publishes what is due.
/// A Redis that does not answer is no error of the step, or the pauses between tries would grow long: what could not be
/// published is due again at once.
async fn relay(platform: &Platform) -> anyhow::Result<Tick> {
    // A connection whose other end is gone would hold the step for as long as TCP tries.
    timeout(STEP_DEADLINE, step(platform))
        .await
        .context("relaying took too long")?
}

async fn step(platform: &Platform) -> anyhow::Result<Tick> {
    let now = platform.clock.now();
    let mut tx = platform.db.begin().await?;
    let settled = outbox::settle_due(&mut tx, now, BATCH).await?;
    if Tick::after_batch(settled as usize, BATCH) == Tick::More {
        // The next ones due may be handled too, and need not be published again.
        tx.commit().await?;
        return Ok(Tick::More);
    }
    let due = outbox::take_due(&mut tx, now, BATCH).await?;
    tx.commit().await?;
    if due.is_empty() {
        return Ok(Tick::Idle);
    }
    // A crash from here on only means that these are due again in a few seconds.
    if let Err(error) = publish(platform, &due).await {
        warn!("the events due could not be published, Redis does not answer: {error}");
        let ids: Vec<EventId> = due.into_iter().map(|(id, _)| id).collect();
        outbox::give_back(&mut *platform.db.acquire().await?, &ids, now).await?;
        return Ok(Tick::Idle);
    }
    counter!("events_relayed_total").increment(due.len() as u64);
    Ok(Tick::after_batch(due.len(), BATCH))
}

async fn publish(platform: &Platform, due: &[(EventId, Value)]) -> Result<(), fred::error::Error> {
    let pipeline = platform.redis.next().pipeline();
    let key = platform.keys.key(STREAM);
    for (_, event) in due {
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
    pipeline.all::<()>().await
}
