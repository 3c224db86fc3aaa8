//! The time as the services see it: that of the database, or one that a test holds still.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use chrono::{DateTime, TimeDelta, Utc};
use contracts::Timestamp;
use sqlx::{PgConnection, PgPool};
use tokio::time::timeout;
use tracing::warn;

use crate::lifecycle::{Tasks, Tick};

/// How often a replica reads the database's clock: a quartz that is wrong by 200 ppm gains 2 ms between two readings.
const SET_EVERY: Duration = Duration::from_secs(10);
/// How long a reading may take, and from which round trip on it says too little: half of it is the error.
const READING: Duration = Duration::from_secs(2);
const CLEAR: Duration = Duration::from_millis(200);
/// From which error on a replica's own clock is worth a word.
const WRONG: TimeDelta = TimeDelta::seconds(1);

/// Tells the time. Clones tell the same one.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Milliseconds since 1970 where the clock stands still.
    held: Option<Arc<AtomicI64>>,
    set: Arc<ArcSwapOption<Reading>>,
}

/// What the database's clock told at a moment of ours.
#[derive(Debug)]
struct Reading {
    told: DateTime<Utc>,
    at: Instant,
}

impl Clock {
    /// The system's clock until [`Clock::set`] has read a better one.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands still at a moment until [`Clock::advance`] moves it.
    pub fn held_at(moment: Timestamp) -> Self {
        Self {
            held: Some(Arc::new(AtomicI64::new(moment.utc().timestamp_millis()))),
            set: Arc::default(),
        }
    }

    /// The current moment. Where the clock was [set](Clock::set) it is the database's, wrong by no more than half a
    /// round trip of 200 ms: what was read, and the time since by a clock that nobody sets.
    pub fn now(&self) -> Timestamp {
        if let Some(held) = &self.held {
            let millis = held.load(Ordering::SeqCst);
            return DateTime::from_timestamp_millis(millis)
                .unwrap_or_default()
                .into();
        }
        match &*self.set.load() {
            Some(reading) => (reading.told + reading.at.elapsed()).into(),
            None => system().into(),
        }
    }

    /// Reads the database's clock, so that all replicas tell one time, however wrong their own clocks are.
    ///
    /// # Errors
    /// Where the database does not answer within 2 s; the clock goes on as it was set before.
    pub async fn set(&self, db: &PgPool) -> anyhow::Result<()> {
        let mut conn = timeout(READING, db.acquire())
            .await
            .context("no connection to read the database's clock")??;
        let began = Instant::now();
        let told: DateTime<Utc> = timeout(
            READING,
            sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut *conn),
        )
        .await
        .context("the database's clock did not answer")??;
        let way = began.elapsed();
        let (told, at) = (told + way / 2, began + way);
        let error = system() - told;
        metrics::gauge!("cloudphone_clock_error_seconds").set(error.as_seconds_f64());
        let known = self.set.load().is_some();
        if !known && error.abs() > WRONG {
            warn!(
                "the clock of this machine is wrong by {:.1} s beside the database's, which is used: set it, as by NTP",
                error.as_seconds_f64()
            );
        }
        // A slow answer says less than the last quick one and the time since.
        if way < CLEAR || !known {
            self.set.store(Some(Arc::new(Reading { told, at })));
        }
        Ok(())
    }

    /// Keeps the clock [set](Clock::set).
    pub fn keep_set(&self, db: &PgPool, tasks: &Tasks) {
        let (clock, db) = (self.clone(), db.clone());
        tasks.every("platform.clock", SET_EVERY, move || {
            let (clock, db) = (clock.clone(), db.clone());
            async move {
                clock.set(&db).await?;
                Ok(Tick::Idle)
            }
        });
    }

    /// The current moment by the database's clock itself, asked now: for whatever one replica decides by a moment that
    /// another one has stored, where the error of [`Clock::now`] would matter.
    ///
    /// # Errors
    /// Where the database does not answer.
    pub async fn shared(&self, conn: &mut PgConnection) -> sqlx::Result<Timestamp> {
        if self.held.is_some() {
            return Ok(self.now());
        }
        let now: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()")
            .fetch_one(conn)
            .await?;
        Ok(now.into())
    }

    /// Moves a held clock; the system's goes its own way.
    pub fn advance(&self, span: TimeDelta) {
        if let Some(held) = &self.held {
            held.fetch_add(span.num_milliseconds(), Ordering::SeqCst);
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that asks the system for the time"
)]
fn system() -> DateTime<Utc> {
    Utc::now()
}
