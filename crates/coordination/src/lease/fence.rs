//! Fencing tokens in PostgreSQL: the one place where an old holder and a new one always meet.

use std::fmt;

use sqlx::{PgConnection, PgPool};

use crate::{StoreError, metrics};

/// A fencing token: the later of two holders has the higher one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub i64);

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Proves inside a transaction that the holder of a lease or the runner of a job is still the latest one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The key the token belongs to.
    pub name: String,
    /// The holder's token.
    pub fence: Fence,
}

impl Guard {
    /// Says whether nobody has a higher token, and keeps it so until the transaction ends: a successor's acquisition
    /// waits for the commit. `false` is counted in `fenced_writes_total`, and the caller must roll back.
    pub async fn verify(&self, conn: &mut PgConnection) -> Result<bool, StoreError> {
        let query = sqlx::query_scalar::<_, i32>(
            "select 1 from coordination.fences where key = $1 and token = $2 for share",
        );
        let found = query
            .bind(&self.name)
            .bind(self.fence.0)
            .fetch_optional(conn)
            .await;
        let current = found
            .map_err(StoreError::postgres("check a fencing token"))?
            .is_some();
        if !current {
            metrics::fenced_write(&self.name);
        }
        Ok(current)
    }
}

/// Takes the next token of a key that has no counter in Redis, such as that of a cron job.
pub async fn next_fence(conn: &mut PgConnection, key: &str) -> Result<Fence, StoreError> {
    let query = sqlx::query_scalar(
        "insert into coordination.fences as f (key, token) values ($1, 1)
        on conflict (key) do update set token = f.token + 1 returning token",
    );
    let token = query.bind(key).fetch_one(conn).await;
    token
        .map(Fence)
        .map_err(StoreError::postgres("take a fencing token"))
}

/// Records a token, or answers `false` where one as high is known: then Redis has gone back in time.
pub async fn record(db: &PgPool, key: &str, fence: Fence) -> Result<bool, StoreError> {
    let query = sqlx::query(
        "insert into coordination.fences as f (key, token) values ($1, $2)
        on conflict (key) do update set token = excluded.token where f.token < excluded.token",
    );
    let done = query.bind(key).bind(fence.0).execute(db).await;
    Ok(done
        .map_err(StoreError::postgres("record a fencing token"))?
        .rows_affected()
        == 1)
}

/// The highest token recorded for a key, 0 where there is none.
pub async fn highest(db: &PgPool, key: &str) -> Result<i64, StoreError> {
    let query = sqlx::query_scalar(
        "select coalesce(max(token), 0) from coordination.fences where key = $1",
    );
    query
        .bind(key)
        .fetch_one(db)
        .await
        .map_err(StoreError::postgres("read a fencing token"))
}
