//! Statements about uploads.

use std::collections::HashMap;

use contracts::{Timestamp, UserId};
use sqlx::PgConnection;

use super::{ContentType, MOST_TRIES};

/// An address, as the file that comes there finds it.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Upload {
    /// What clients call the file.
    pub key: String,
    /// Whose it is.
    pub user_id: UserId,
    /// What was announced.
    pub content_type: ContentType,
    /// How many bytes were announced.
    pub size: i64,
    /// How often it came whole.
    pub tries: i16,
    /// When the address ends.
    pub expires_at: Timestamp,
    /// When the file was stored.
    pub stored_at: Option<Timestamp>,
}

/// Files that may lie in the store for a row.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Leftover {
    /// What clients call the file.
    pub key: String,
    /// How many objects there may be.
    pub tries: i16,
}

/// Counts the uploads kept for a user, used or not. Until the transaction ends, others that ask for the same user wait.
pub async fn count(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<i64> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('media.uploads ' || $1, 0))")
        .bind(user)
        .execute(&mut *conn)
        .await?;
    sqlx::query_scalar("select count(*) from media.uploads where user_id = $1")
        .bind(user)
        .fetch_one(conn)
        .await
}

/// Writes an address that waits for its file.
pub async fn insert(
    conn: &mut PgConnection,
    upload: &Upload,
    ticket: &[u8],
    now: Timestamp,
) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "insert into media.uploads (key, user_id, ticket, content_type, size, created_at, expires_at)
        values ($1, $2, $3, $4, $5, $6, $7)",
    );
    insert
        .bind(&upload.key)
        .bind(&upload.user_id)
        .bind(ticket)
        .bind(upload.content_type)
        .bind(upload.size)
        .bind(now)
        .bind(upload.expires_at)
        .execute(conn)
        .await?;
    Ok(())
}

/// The address with this secret.
pub async fn find(conn: &mut PgConnection, ticket: &[u8]) -> sqlx::Result<Option<Upload>> {
    sqlx::query_as("select * from media.uploads where ticket = $1")
        .bind(ticket)
        .fetch_optional(conn)
        .await
}

/// Counts a try before its object is written; its number, or `None` where the address takes no file any more.
pub async fn begin_try(
    conn: &mut PgConnection,
    key: &str,
    now: Timestamp,
) -> sqlx::Result<Option<i16>> {
    let update = sqlx::query_scalar(
        "update media.uploads set tries = tries + 1
        where key = $1 and stored_at is null and expires_at > $2 and tries < $3 returning tries",
    );
    update
        .bind(key)
        .bind(now)
        .bind(MOST_TRIES)
        .fetch_optional(conn)
        .await
}

/// Names the object that counts; `false` where another one was first, or the address ended.
pub async fn store(
    conn: &mut PgConnection,
    key: &str,
    object_key: &str,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update media.uploads set object_key = $2, stored_at = $3
        where key = $1 and stored_at is null and expires_at > $3",
    );
    let update = update.bind(key).bind(object_key).bind(now);
    Ok(update.execute(conn).await?.rows_affected() == 1)
}

/// The objects behind keys, in their order; `None` for one that is not there, not the owner's, or stored too long ago.
pub async fn objects(
    conn: &mut PgConnection,
    keys: &[String],
    owner: Option<&UserId>,
    since: Timestamp,
) -> sqlx::Result<Vec<Option<String>>> {
    let found: Vec<(String, String)> = sqlx::query_as(
        "select key, object_key from media.uploads
        where key = any($1) and ($2::text is null or user_id = $2) and stored_at > $3",
    )
    .bind(keys)
    .bind(owner)
    .bind(since)
    .fetch_all(conn)
    .await?;
    let found: HashMap<_, _> = found.into_iter().collect();
    Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
}

/// Uploads that nobody needs any more: never used before their address ended, or stored long ago.
pub async fn leftovers(
    conn: &mut PgConnection,
    unused_before: Timestamp,
    stored_before: Timestamp,
    batch: i64,
) -> sqlx::Result<Vec<Leftover>> {
    sqlx::query_as(
        "-- upload::leftovers
        (select key, tries from media.uploads where stored_at is null and expires_at < $1 order by expires_at limit $3)
        union all
        (select key, tries from media.uploads where stored_at < $2 order by stored_at limit $3)
        limit $3",
    )
    .bind(unused_before)
    .bind(stored_before)
    .bind(batch)
    .fetch_all(conn)
    .await
}

/// Deletes uploads.
pub async fn delete(conn: &mut PgConnection, keys: &[String]) -> sqlx::Result<()> {
    let delete = sqlx::query("delete from media.uploads where key = any($1)");
    delete.bind(keys).execute(conn).await?;
    Ok(())
}

/// The object that an address gives out.
pub async fn linked(
    conn: &mut PgConnection,
    ticket: &[u8],
    now: Timestamp,
) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar("select object_key from media.links where ticket = $1 and expires_at > $2")
        .bind(ticket)
        .bind(now)
        .fetch_optional(conn)
        .await
}

/// Deletes addresses that give nothing out any more.
pub async fn delete_links(conn: &mut PgConnection, now: Timestamp) -> sqlx::Result<u64> {
    let delete = sqlx::query("delete from media.links where expires_at < $1");
    Ok(delete.bind(now).execute(conn).await?.rows_affected())
}
