//! API keys in the database. Whoever changes one locks it first; who verifies them hears of it by a trigger.

use contracts::{ApiKeyId, Timestamp, UserId};
use platform::auth::api_key::KeyHash;
use platform::http::Slice;
use serde_json::Value;
use sqlx::PgConnection;

use super::view::{ApiKey, ApiKeyStatistics, Status};

/// A key that is about to be made.
#[derive(Debug)]
pub struct New {
    pub id: ApiKeyId,
    pub user_id: UserId,
    pub name: String,
    pub description: Option<String>,
    pub metadata: Option<Value>,
    pub scopes: Vec<String>,
    pub expires_at: Option<Timestamp>,
}

/// A key that is locked.
#[derive(Debug, sqlx::FromRow)]
pub struct Held {
    pub user_id: UserId,
    pub status: Status,
}

/// A change of a key; what is absent stays.
#[derive(Debug)]
pub struct Change {
    pub name: Option<String>,
    pub scopes: Option<Vec<String>>,
    pub status: Option<Status>,
}

/// Which keys are wanted.
#[derive(Debug)]
pub struct Filter {
    pub user_id: Option<UserId>,
    pub status: Option<Status>,
}

/// Locks the account of a user that may have keys, so that of several who make one at once each counts the others'; `false`
/// where there is none.
pub async fn lock_user(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<bool> {
    let lock = sqlx::query(
        "select from users.accounts where id = $1 and status = 'active' for no key update",
    );
    Ok(lock.bind(user).fetch_optional(conn).await?.is_some())
}

/// How many keys a user has.
pub async fn count_of(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "select count(*) from users.api_keys where user_id = $1 and deleted_at is null",
    )
    .bind(user)
    .fetch_one(conn)
    .await
}

/// Whether a key may be used, with the secret of this hash.
pub async fn is_secret(
    conn: &mut PgConnection,
    id: &ApiKeyId,
    hash: KeyHash,
) -> sqlx::Result<bool> {
    let is_secret = sqlx::query_scalar(
        "select exists (select from users.api_keys
            where id = $1 and key_hash = $2 and status = 'active' and deleted_at is null)",
    );
    is_secret
        .bind(id)
        .bind(hash.as_slice())
        .fetch_one(conn)
        .await
}

/// Writes down a new key.
pub async fn insert(
    conn: &mut PgConnection,
    new: &New,
    (prefix, hash): (&str, KeyHash),
    now: Timestamp,
) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "insert into users.api_keys
            (id, user_id, name, description, metadata, prefix, key_hash, scopes, status, expires_at, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, 'active', $9, $10, $10)",
    );
    insert
        .bind(&new.id)
        .bind(&new.user_id)
        .bind(&new.name)
        .bind(&new.description)
        .bind(&new.metadata)
        .bind(prefix)
        .bind(hash.as_slice())
        .bind(&new.scopes)
        .bind(new.expires_at)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}

/// A key by its id.
pub async fn find(
    conn: &mut PgConnection,
    id: &ApiKeyId,
    now: Timestamp,
) -> sqlx::Result<Option<ApiKey>> {
    let key: Option<ApiKey> = sqlx::query_as("select * from users.api_key_listing where id = $1")
        .bind(id)
        .fetch_optional(conn)
        .await?;
    Ok(key.map(|key| key.at(now)))
}

/// Locks a key for a change.
pub async fn lock(
    conn: &mut PgConnection,
    id: &ApiKeyId,
    now: Timestamp,
) -> sqlx::Result<Option<Held>> {
    sqlx::query_as(
        "-- api_key::lock
        select user_id,
            case when status <> 'revoked' and expires_at <= $2 then 'expired' else status end as status
        from users.api_keys where id = $1 and deleted_at is null for update",
    )
    .bind(id)
    .bind(now)
    .fetch_optional(conn)
    .await
}

/// Changes a key that is locked.
pub async fn update(
    conn: &mut PgConnection,
    id: &ApiKeyId,
    change: &Change,
    now: Timestamp,
) -> sqlx::Result<()> {
    let update = sqlx::query(
        "-- api_key::update
        update users.api_keys set name = coalesce($2, name), scopes = coalesce($3, scopes),
            status = coalesce($4, status), updated_at = $5
        where id = $1",
    );
    update
        .bind(id)
        .bind(&change.name)
        .bind(&change.scopes)
        .bind(change.status)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}

/// Gives a key that is locked another secret.
pub async fn replace_secret(
    conn: &mut PgConnection,
    id: &ApiKeyId,
    (prefix, hash): (&str, KeyHash),
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "update users.api_keys set prefix = $2, key_hash = $3, updated_at = $4 where id = $1",
    )
    .bind(id)
    .bind(prefix)
    .bind(hash.as_slice())
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Deletes a key that is locked.
pub async fn delete(conn: &mut PgConnection, id: &ApiKeyId, now: Timestamp) -> sqlx::Result<()> {
    sqlx::query("update users.api_keys set status = 'revoked', deleted_at = $2 where id = $1")
        .bind(id)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}

/// How many keys pass a filter.
pub async fn count(conn: &mut PgConnection, filter: &Filter, now: Timestamp) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "-- api_key::count
        select count(*) from users.api_keys
        where deleted_at is null and ($1::text is null or user_id = $1)
          and ($2::text is null
               or $2 = case when status <> 'revoked' and expires_at <= $3 then 'expired' else status end)",
    )
    .bind(&filter.user_id)
    .bind(filter.status)
    .bind(now)
    .fetch_one(conn)
    .await
}

/// The keys that pass a filter, newest first.
pub async fn list(
    conn: &mut PgConnection,
    filter: &Filter,
    slice: Slice,
    now: Timestamp,
) -> sqlx::Result<Vec<ApiKey>> {
    let keys: Vec<ApiKey> = sqlx::query_as(
        "-- api_key::list
        select * from users.api_key_listing
        where ($1::text is null or user_id = $1)
          and ($2::text is null
               or $2 = case when status <> 'revoked' and expires_at <= $3 then 'expired' else status end)
        order by created_at desc, seq desc limit $4 offset $5",
    )
    .bind(&filter.user_id)
    .bind(filter.status)
    .bind(now)
    .bind(slice.limit)
    .bind(slice.offset)
    .fetch_all(conn)
    .await?;
    Ok(keys.into_iter().map(|key| key.at(now)).collect())
}

/// The keys of a user, counted.
pub async fn statistics(
    conn: &mut PgConnection,
    user: &UserId,
    now: Timestamp,
) -> sqlx::Result<ApiKeyStatistics> {
    sqlx::query_as(
        "-- api_key::statistics
        select $1 as user_id, count(*) as total,
            count(*) filter (where status = 'active' and not is_over) as active,
            count(*) filter (where status = 'inactive' and not is_over) as inactive,
            count(*) filter (where status = 'revoked') as revoked,
            count(*) filter (where status <> 'revoked' and is_over) as expired,
            coalesce(sum(usage_count), 0)::bigint as total_usage, max(last_used_at) as last_used_at
        from (select *, coalesce(expires_at <= $2, false) as is_over from users.api_key_listing where user_id = $1) of_user",
    )
    .bind(user)
    .bind(now)
    .fetch_one(conn)
    .await
}

/// Forgets keys that were deleted before a moment, and names them.
pub async fn purge(
    conn: &mut PgConnection,
    before: Timestamp,
    limit: i64,
) -> sqlx::Result<Vec<ApiKeyId>> {
    sqlx::query_scalar(
        "-- api_key::purge
        delete from users.api_keys where id in (
            select id from users.api_keys where deleted_at < $1 order by deleted_at limit $2 for update skip locked)
        returning id",
    )
    .bind(before)
    .bind(limit)
    .fetch_all(conn)
    .await
}

impl ApiKey {
    fn at(self, now: Timestamp) -> Self {
        let status = super::shown(self.status, self.expires_at, now);
        Self { status, ..self }
    }
}
