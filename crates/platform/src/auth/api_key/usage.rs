//! How often each API key is used: counted here, written down every few seconds for all keys at once. A process that dies
//! takes the last few seconds with it, and one that does not hear whether it wrote counts them again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use contracts::{ApiKeyId, Timestamp};
use sqlx::PgPool;
use tokio::time::timeout;
use tracing::{debug, warn};

const PATIENCE: Duration = Duration::from_secs(2);
const BATCH: usize = 1_000;
/// Uses of more keys than this at a time are not counted.
const MOST: usize = 100_000;

/// The uses that are not written yet.
#[derive(Debug, Default)]
pub struct Usage(Mutex<HashMap<ApiKeyId, Arc<Uses>>>);

/// The uses of one key.
#[derive(Debug, Default)]
pub struct Uses {
    count: AtomicU64,
    /// Milliseconds since 1970.
    last: AtomicI64,
}

impl Uses {
    /// Counts one.
    pub fn add(&self, now: Timestamp) {
        self.last
            .fetch_max(now.utc().timestamp_millis(), Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

impl Usage {
    /// Where the uses of a key are counted.
    pub fn of(&self, id: &ApiKeyId) -> Arc<Uses> {
        let mut keys = self.keys();
        if let Some(uses) = keys.get(id) {
            return uses.clone();
        }
        let uses = Arc::<Uses>::default();
        if keys.len() < MOST {
            keys.insert(id.clone(), uses.clone());
        }
        uses
    }

    /// Writes down what was counted. What cannot be written is counted with the next.
    pub async fn write(&self, db: &PgPool) {
        let counted = self.take();
        for batch in counted.chunks(BATCH) {
            let failed = match timeout(PATIENCE, add(db, batch)).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "PostgreSQL did not answer in time".to_owned(),
            };
            debug!(
                "the uses of {} API keys are written later: {failed}",
                batch.len()
            );
            for (id, count, last) in batch {
                let uses = self.of(id);
                uses.count.fetch_add(*count, Ordering::Relaxed);
                uses.last
                    .fetch_max(last.timestamp_millis(), Ordering::Relaxed);
            }
        }
    }

    /// The last writing, which nothing follows.
    pub async fn write_last(&self, db: &PgPool) {
        self.write(db).await;
        let lost = self.take().len();
        if lost > 0 {
            warn!("the last uses of {lost} API keys are not counted: PostgreSQL did not take them");
        }
    }

    /// Takes the counts, and forgets keys that nobody holds any more.
    fn take(&self) -> Vec<(ApiKeyId, u64, DateTime<Utc>)> {
        let mut counted = Vec::new();
        self.keys().retain(|id, uses| {
            let is_held = Arc::strong_count(uses) > 1;
            let count = uses.count.swap(0, Ordering::Relaxed);
            let last = DateTime::from_timestamp_millis(uses.last.load(Ordering::Relaxed));
            if let Some(last) = last.filter(|_| count > 0) {
                counted.push((id.clone(), count, last));
            }
            is_held
        });
        // In one order, so that two replicas that write the same keys wait for each other in one direction.
        counted.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        counted
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<ApiKeyId, Arc<Uses>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn add(db: &PgPool, batch: &[(ApiKeyId, u64, DateTime<Utc>)]) -> sqlx::Result<()> {
    let ids: Vec<&str> = batch.iter().map(|(id, ..)| id.as_str()).collect();
    let counts = batch
        .iter()
        .map(|(_, count, _)| i64::try_from(*count).unwrap_or(i64::MAX));
    let counts: Vec<i64> = counts.collect();
    let lasts: Vec<DateTime<Utc>> = batch.iter().map(|(.., last)| *last).collect();
    let insert = sqlx::query(
        "-- api_keys::add_uses
        insert into platform.api_key_usage as had (key_id, usage_count, last_used_at)
        select used.id, used.uses, used.last
        from unnest($1::text[], $2::bigint[], $3::timestamptz[]) as used (id, uses, last)
        where exists (select from platform.api_keys k where k.id = used.id)
        order by used.id
        on conflict (key_id) do update set
            usage_count = had.usage_count + excluded.usage_count,
            last_used_at = greatest(had.last_used_at, excluded.last_used_at)",
    );
    insert
        .bind(ids)
        .bind(counts)
        .bind(lasts)
        .execute(db)
        .await
        .map(|_| ())
}
