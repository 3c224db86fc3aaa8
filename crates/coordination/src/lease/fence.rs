//! Fencing tokens in PostgreSQL: the one place where an old holder and a new one always meet.

use std::collections::{HashMap, HashSet};
use std::fmt;

use sqlx::PgPool;

use crate::StoreError;

/// A fencing token: the later of two holders has the higher one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub i64);

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The highest token of a key; 0 before the first.
pub async fn known_fence(db: &PgPool, key: &str) -> Result<Fence, StoreError> {
    let known = highest(db, vec![key.to_owned()]).await?;
    Ok(Fence(known.get(key).copied().unwrap_or_default()))
}

/// Takes the token after `known`, or none where another has taken one since `known` was read.
pub async fn step_fence(db: &PgPool, key: &str, known: Fence) -> Result<Option<Fence>, StoreError> {
    let query = sqlx::query_scalar(
        "-- lease::step_fence
        insert into coordination.fences as f (key, token) values ($1, $2 + 1)
        on conflict (key) do update set token = excluded.token where f.token = $2
        returning token",
    );
    let token = query.bind(key).bind(known.0).fetch_optional(db).await;
    let token = token.map_err(StoreError::postgres("take a fencing token"))?;
    Ok(token.map(Fence))
}

/// Records tokens and answers the keys for which it did; where one as high is known Redis has gone back in time.
/// Waits for transactions that have proven an earlier token.
pub async fn record(
    db: &PgPool,
    keys: Vec<String>,
    tokens: Vec<i64>,
) -> Result<HashSet<String>, StoreError> {
    // In the order of the keys, so that two replicas never wait for each other.
    let query = sqlx::query_scalar(
        "-- lease::record
        insert into coordination.fences as f (key, token)
        select key, token from unnest($1::text[], $2::bigint[]) as new (key, token) order by key
        on conflict (key) do update set token = excluded.token where f.token < excluded.token
        returning key",
    );
    let recorded = query.bind(keys).bind(tokens).fetch_all(db).await;
    let recorded: Vec<String> = recorded.map_err(StoreError::postgres("record a fencing token"))?;
    Ok(recorded.into_iter().collect())
}

/// The highest token recorded for each key that has one.
pub async fn highest(db: &PgPool, keys: Vec<String>) -> Result<HashMap<String, i64>, StoreError> {
    let query = sqlx::query_as("select key, token from coordination.fences where key = any($1)");
    let known = query.bind(keys).fetch_all(db).await;
    let known: Vec<(String, i64)> = known.map_err(StoreError::postgres("read a fencing token"))?;
    Ok(known.into_iter().collect())
}
