//! The time as the services see it: the system's, or one that a test holds still.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use contracts::Timestamp;
use sqlx::PgConnection;

/// Tells the time. Clones tell the same one.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Milliseconds since 1970 where the clock stands still.
    held: Option<Arc<AtomicI64>>,
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands still at a moment until [`Clock::advance`] moves it.
    pub fn held_at(moment: Timestamp) -> Self {
        Self {
            held: Some(Arc::new(AtomicI64::new(moment.utc().timestamp_millis()))),
        }
    }

    /// The current moment.
    pub fn now(&self) -> Timestamp {
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place that asks the system for the time"
        )]
        match &self.held {
            None => Utc::now().into(),
            Some(held) => DateTime::from_timestamp_millis(held.load(Ordering::SeqCst))
                .unwrap_or_default()
                .into(),
        }
    }

    /// The current moment by the database's clock, which all replicas share, however wrong their own are: for whatever
    /// one replica decides by a moment that another one has stored.
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
