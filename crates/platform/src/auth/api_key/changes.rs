//! API keys that changed a moment ago, read from PostgreSQL several times a second: whoever verified one of an older version
//! looks it up anew.

use chrono::TimeDelta;
use contracts::ApiKeyId;
use sqlx::PgPool;

use crate::Clock;
use crate::auth::freshness::Freshness;
use crate::auth::latest::{Change, Latest, PAGE, Reading};
use crate::lifecycle::Tick;

/// What is read twice: a change has the time of its statement, and shows with the end of its transaction. Longer than a
/// key counts as looked up by more than a transaction may take.
const OVERLAP: TimeDelta = TimeDelta::seconds(90);

/// The versions of the keys that changed within the last minutes.
#[derive(Debug)]
pub struct Changes(Latest<ApiKeyId, i64>);

impl Changes {
    /// Nothing is known yet.
    pub fn new(clock: Clock) -> Self {
        Self(Latest::new("the API keys that have changed", clock))
    }

    /// How old what is known is.
    pub fn freshness(&self) -> &Freshness {
        self.0.freshness()
    }

    /// Whether no later version of a key is known.
    pub fn is_latest(&self, id: &ApiKeyId, version: i64) -> bool {
        self.0.of(id).is_none_or(|latest| latest <= version)
    }

    /// Reads one page of what PostgreSQL knows; more where there is another one.
    pub async fn read(&self, db: &PgPool) -> Tick {
        let page = async |reading: &Reading<_>| changed_after(db, reading).await;
        self.0.read(page).await
    }
}

/// The next keys that changed since they were made, by the clock of the database alone: how far back the first page begins is a span.
async fn changed_after(
    db: &PgPool,
    Reading { round, after }: &Reading<ApiKeyId>,
) -> sqlx::Result<Vec<Change<ApiKeyId, i64>>> {
    let (at, id) = after.as_ref().map(|(at, id)| (at, id)).unzip();
    sqlx::query_as(
        "-- api_keys::changed_after
        select changed_at, id, version from platform.api_keys
        where version > 1 and changed_at >= coalesce($1, now() - make_interval(secs => $2))
          and ($1 is null or changed_at > $1 or id > $3)
        order by changed_at, id limit $4",
    )
    .bind(at)
    .bind((round.silence() + OVERLAP).as_seconds_f64())
    .bind(id)
    .bind(PAGE)
    .fetch_all(db)
    .await
}
