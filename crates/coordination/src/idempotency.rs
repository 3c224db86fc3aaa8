//! Idempotency keys, kept by the database alone: a key is claimed, and its answer stored, in the transaction of the
//! effect itself. The unique index makes a second claim wait for the first and then replay its answer.

use std::time::Duration;

use serde_json::Value;
use sqlx::{Connection, PgConnection};

use crate::StoreError;

/// How long a claim waits for another request with the same key before it says [`Claim::Running`].
const PATIENCE: &str = "2s";

/// What claiming a key found.
#[derive(Clone, Debug, PartialEq)]
pub enum Claim {
    /// Nobody used the key: do the work, then [`store`] its answer before the commit.
    Fresh,
    /// The work was done before; this was the answer.
    Replay {
        /// HTTP status of the first answer.
        status: u16,
        /// Body of the first answer.
        body: Value,
    },
    /// The key was used for a different request.
    Mismatch,
    /// The first request with this key has not ended yet.
    Running,
}

/// Claims a key inside the caller's transaction, which stays usable whatever the answer. A roll-back gives the key
/// back. The key expires `ttl` after the claim and may then be used anew. `fingerprint` is a digest of the request.
///
/// Outside a transaction the claim would be final before the effect is: call it after `begin`.
pub async fn claim(
    conn: &mut PgConnection,
    scope: &str,
    key: &str,
    fingerprint: &[u8],
    ttl: Duration,
) -> Result<Claim, StoreError> {
    attempt(conn, scope, key, fingerprint, ttl)
        .await
        .map_err(StoreError::postgres("claim an idempotency key"))
}

async fn attempt(
    conn: &mut PgConnection,
    scope: &str,
    key: &str,
    fingerprint: &[u8],
    ttl: Duration,
) -> sqlx::Result<Claim> {
    // A savepoint: a lock time-out aborts no more than it.
    let mut savepoint = conn.begin().await?;
    let before: String = sqlx::query_scalar("select current_setting('lock_timeout')")
        .fetch_one(&mut *savepoint)
        .await?;
    set_lock_timeout(&mut savepoint, PATIENCE).await?;
    let inserted = sqlx::query(
        "-- idempotency::claim
        insert into coordination.idempotency_keys as k (scope, key, fingerprint, expires_at)
        values ($1, $2, $3, clock_timestamp() + make_interval(secs => $4))
        on conflict (scope, key) do update
        set fingerprint = excluded.fingerprint, status = null, body = null,
            created_at = clock_timestamp(), expires_at = excluded.expires_at
        where k.expires_at <= clock_timestamp()",
    )
    .bind(scope)
    .bind(key)
    .bind(fingerprint)
    .bind(ttl.as_secs_f64())
    .execute(&mut *savepoint)
    .await;
    let inserted = match inserted {
        Ok(done) => done.rows_affected() == 1,
        Err(error) if is_lock_timeout(&error) => {
            savepoint.rollback().await?;
            return Ok(Claim::Running);
        }
        Err(error) => return Err(error),
    };
    let claim = if inserted {
        Claim::Fresh
    } else {
        found(&mut savepoint, scope, key, fingerprint).await?
    };
    // Released, not rolled back, the savepoint leaves its settings behind.
    set_lock_timeout(&mut savepoint, &before).await?;
    savepoint.commit().await?;
    Ok(claim)
}

async fn found(
    conn: &mut PgConnection,
    scope: &str,
    key: &str,
    fingerprint: &[u8],
) -> sqlx::Result<Claim> {
    let row: Option<(Vec<u8>, Option<i32>, Option<Value>)> = sqlx::query_as(
        "select fingerprint, status, body from coordination.idempotency_keys where scope = $1 and key = $2",
    )
    .bind(scope)
    .bind(key)
    .fetch_optional(conn)
    .await?;
    Ok(match row {
        Some((first, ..)) if first != fingerprint => Claim::Mismatch,
        Some((_, Some(status), body)) => Claim::Replay {
            status: u16::try_from(status).unwrap_or(500),
            body: body.unwrap_or_default(),
        },
        // Claimed and committed without an answer, claimed earlier in this transaction, or purged just now.
        Some((_, None, _)) | None => Claim::Running,
    })
}

/// Stores the answer to a claimed key, in the transaction that claimed it.
pub async fn store(
    conn: &mut PgConnection,
    scope: &str,
    key: &str,
    status: u16,
    body: &Value,
) -> Result<(), StoreError> {
    let tried = "store the answer to an idempotency key";
    let update = sqlx::query(
        "update coordination.idempotency_keys set status = $3, body = $4
        where scope = $1 and key = $2 and status is null",
    );
    let update = update
        .bind(scope)
        .bind(key)
        .bind(i32::from(status))
        .bind(body);
    let stored = update
        .execute(conn)
        .await
        .map_err(StoreError::postgres(tried))?
        .rows_affected();
    if stored == 1 {
        Ok(())
    } else {
        Err(StoreError::postgres(tried)(sqlx::Error::RowNotFound))
    }
}

/// Puts a later answer in the place of the stored one, for an effect that goes on after its commit. A key that has
/// expired meanwhile needs none.
pub async fn amend(
    conn: &mut PgConnection,
    scope: &str,
    key: &str,
    status: u16,
    body: &Value,
) -> Result<(), StoreError> {
    let update = sqlx::query(
        "update coordination.idempotency_keys set status = $3, body = $4
        where scope = $1 and key = $2 and status is not null",
    );
    let update = update
        .bind(scope)
        .bind(key)
        .bind(i32::from(status))
        .bind(body);
    let done = update.execute(conn).await;
    done.map(drop).map_err(StoreError::postgres(
        "amend the answer to an idempotency key",
    ))
}

/// Deletes up to `limit` expired keys and says how many there were; call it again while that equals `limit`.
pub async fn purge(conn: &mut PgConnection, limit: i64) -> Result<u64, StoreError> {
    let delete = sqlx::query(
        "-- idempotency::purge
        delete from coordination.idempotency_keys where (scope, key) in (
            select scope, key from coordination.idempotency_keys where expires_at <= clock_timestamp()
            order by expires_at limit $1 for update skip locked
        )",
    );
    let done = delete.bind(limit).execute(conn).await;
    Ok(done
        .map_err(StoreError::postgres("purge idempotency keys"))?
        .rows_affected())
}

async fn set_lock_timeout(conn: &mut PgConnection, value: &str) -> sqlx::Result<()> {
    sqlx::query("select set_config('lock_timeout', $1, true)")
        .bind(value)
        .execute(conn)
        .await?;
    Ok(())
}

fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(|error| error.code().as_deref() == Some("55P03"))
}
