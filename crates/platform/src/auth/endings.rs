//! Sessions that ended a moment ago, known without asking: told at once by a message, and read from PostgreSQL several
//! times a second, so that a message that was lost is made good.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use contracts::SessionId;
use coordination::news::{News, listen};
use fred::clients::Pool;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use super::freshness::Freshness;
use super::latest::{Change, Latest, PAGE, Reading};
use crate::lifecycle::Tasks;
use crate::{Clock, Platform};

/// How often PostgreSQL is read.
const EVERY: Duration = Duration::from_millis(250);
/// What is read twice: an end is written down at the time its writer began with, by its writer's clock.
const OVERLAP: TimeDelta = TimeDelta::seconds(60);

/// The sessions that ended within the last minutes. Clones share everything.
#[derive(Clone, Debug)]
pub struct Endings(Arc<Latest<SessionId, ()>>);

impl Endings {
    /// Nothing is known yet.
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Latest::new("the sessions that have ended", clock)))
    }

    /// Begins to hear and to read, for as long as the process works.
    pub fn follow(&self, platform: &Platform, tasks: &Tasks) {
        let (heard, redis, stop) = (self.clone(), platform.redis.clone(), tasks.stopping());
        let channel = platform.keys.session_news();
        tasks.spawn("auth.endings.news", async move {
            heard.hear(&redis, &channel, &stop).await;
            Ok(())
        });
        let (this, db) = (self.clone(), platform.auth.watch().clone());
        tasks.every("auth.endings.read", EVERY, move || {
            let (this, db) = (this.clone(), db.clone());
            // The growing pauses after failures are not for this step.
            async move {
                let page = async |reading: &Reading<_>| ended_after(&db, reading).await;
                Ok(this.0.read(page).await)
            }
        });
    }

    /// Whether a session is known to have ended.
    pub fn contains(&self, id: &SessionId) -> bool {
        self.0.of(id).is_some()
    }

    /// How old what is known is.
    pub fn freshness(&self) -> &Freshness {
        self.0.freshness()
    }

    async fn hear(&self, redis: &Pool, channel: &str, stop: &CancellationToken) {
        let hear = |news| {
            if let News::Told(ids) = news {
                let ids = ids.split(',').filter_map(|id| id.parse().ok());
                self.0.hold(ids.map(|id| (id, ())));
            }
            ControlFlow::Continue(())
        };
        listen(redis, channel, stop, hear).await;
    }
}

/// The next sessions that ended, by the clocks of those who ended them.
async fn ended_after(
    db: &PgPool,
    Reading { round, after }: &Reading<SessionId>,
) -> sqlx::Result<Vec<Change<SessionId, ()>>> {
    let (at, id) = match after {
        Some((at, id)) => (*at, id.to_string()),
        None => ((round.last - OVERLAP).utc(), String::new()),
    };
    let ended: Vec<(DateTime<Utc>, SessionId)> = sqlx::query_as(
        "-- sessions::ended_after
        select ended_at, id from platform.sessions
        where ended_at >= $1 and (ended_at > $1 or id > $2) order by ended_at, id limit $3",
    )
    .bind(at)
    .bind(id)
    .bind(PAGE)
    .fetch_all(db)
    .await?;
    Ok(ended.into_iter().map(|(at, id)| (at, id, ())).collect())
}
