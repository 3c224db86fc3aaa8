//! Statements about resumable uploads.

use std::time::Duration;

use contracts::{AppId, Timestamp, UploadId, UserId};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::Upload;
use crate::app::upload::Fields;

/// A part of an upload.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Part {
    /// Where it begins.
    pub start: i64,
    /// Its bytes.
    pub size: i64,
    /// The object that holds it.
    pub object_key: String,
}

/// Writes an upload that begins; `None` where the user has too many that are not whole.
pub async fn insert(
    conn: &mut PgConnection,
    id: &UploadId,
    user: &UserId,
    (length, fields, metadata): (i64, Fields, &str),
    (now, expires_at): (Timestamp, Timestamp),
    most: i64,
) -> sqlx::Result<Option<Upload>> {
    let insert = sqlx::query_as(
        "-- upload::insert
        insert into apps.uploads (id, user_id, length, fields, metadata, created_at, expires_at)
        select $1, $2, $3, $4, $5, $6, $7
        where (select count(*) from apps.uploads where user_id = $2 and status = 'receiving' and expires_at > $6) < $8
        returning *",
    );
    insert
        .bind(id)
        .bind(user)
        .bind(length)
        .bind(Json(fields))
        .bind(metadata)
        .bind(now)
        .bind(expires_at)
        .bind(most)
        .fetch_optional(conn)
        .await
}

/// An upload that has not expired.
pub async fn find(
    conn: &mut PgConnection,
    id: &UploadId,
    now: Timestamp,
) -> sqlx::Result<Option<Upload>> {
    let find = sqlx::query_as(
        "-- upload::find
        select * from apps.uploads where id = $1 and expires_at > $2",
    );
    find.bind(id).bind(now).fetch_optional(conn).await
}

/// Counts a part that is stored, where the upload has come exactly so far; `None` where it has not.
pub async fn advance(
    conn: &mut PgConnection,
    id: &UploadId,
    part: &Part,
    expires_at: Timestamp,
) -> sqlx::Result<Option<Upload>> {
    let advance = sqlx::query_as(
        "-- upload::advance
        with moved as (
            update apps.uploads set received = received + $3, expires_at = $5,
                status = case when received + $3 = length then 'assembling' else status end
            where id = $1 and received = $2 and status = 'receiving' and received + $3 <= length
            returning *),
        kept as (
            insert into apps.upload_parts (upload_id, start, size, object_key) select id, $2, $3, $4 from moved)
        select * from moved",
    );
    advance
        .bind(id)
        .bind(part.start)
        .bind(part.size)
        .bind(&part.object_key)
        .bind(expires_at)
        .fetch_optional(conn)
        .await
}

/// Gives whole uploads that nobody assembles to the caller: one, or that one.
pub async fn claim(
    conn: &mut PgConnection,
    id: Option<&UploadId>,
    lease: Duration,
) -> sqlx::Result<Option<Upload>> {
    let claim = sqlx::query_as(
        "-- upload::claim
        update apps.uploads u set attempts = attempts + 1, lease_until = clock_timestamp() + $2
        where u.id = (
            select id from apps.uploads
            where status = 'assembling' and ($1::text is null or id = $1)
                and (lease_until is null or lease_until < clock_timestamp())
            order by created_at limit 1 for update skip locked)
        returning *",
    );
    claim.bind(id).bind(lease).fetch_optional(conn).await
}

/// Goes on holding an upload; `false` where another worker has it.
pub async fn renew(
    conn: &mut PgConnection,
    upload: &Upload,
    lease: Duration,
) -> sqlx::Result<bool> {
    let renew = sqlx::query(
        "-- upload::renew
        update apps.uploads set lease_until = clock_timestamp() + $3
        where id = $1 and attempts = $2 and status = 'assembling'",
    );
    let held = renew
        .bind(&upload.id)
        .bind(upload.attempts)
        .bind(lease)
        .execute(conn)
        .await?;
    Ok(held.rows_affected() == 1)
}

/// Ends the assembling of an upload, as an app or with the reason why it is none; `false` where another worker has it:
/// roll back.
pub async fn finish(
    tx: &mut PgConnection,
    upload: &Upload,
    outcome: Result<&AppId, &str>,
) -> sqlx::Result<bool> {
    let finish = sqlx::query(
        "-- upload::finish
        with ended as (
            update apps.uploads set status = case when $3::text is null then 'refused' else 'stored' end,
                app_id = $3, error = $4, lease_until = null
            where id = $1 and attempts = $2 and status = 'assembling'
            returning id),
        forgotten as (
            delete from apps.upload_parts p using ended where p.upload_id = ended.id)
        select id from ended",
    );
    let ended = finish
        .bind(&upload.id)
        .bind(upload.attempts)
        .bind(outcome.ok())
        .bind(outcome.err())
        .fetch_optional(tx)
        .await?;
    Ok(ended.is_some())
}

/// The parts of an upload, in order.
pub async fn parts(conn: &mut PgConnection, id: &UploadId) -> sqlx::Result<Vec<Part>> {
    let parts = sqlx::query_as(
        "-- upload::parts
        select start, size, object_key from apps.upload_parts where upload_id = $1 order by start",
    );
    parts.bind(id).fetch_all(conn).await
}

/// Deletes an upload that is not being assembled; the objects of its parts, or `None` where there is none to delete.
pub async fn delete(conn: &mut PgConnection, id: &UploadId) -> sqlx::Result<Option<Vec<String>>> {
    let delete = sqlx::query_scalar(
        "-- upload::delete
        with keys as (
            select coalesce(array_agg(object_key), '{}') as keys from apps.upload_parts where upload_id = $1),
        gone as (
            delete from apps.uploads where id = $1 and status <> 'assembling' returning id)
        select keys.keys from keys, gone",
    );
    delete.bind(id).fetch_optional(conn).await
}

/// Uploads that have expired, but for those that are being assembled.
pub async fn expired(
    conn: &mut PgConnection,
    now: Timestamp,
    limit: i64,
) -> sqlx::Result<Vec<UploadId>> {
    let expired = sqlx::query_scalar(
        "-- upload::expired
        select id from apps.uploads where expires_at <= $1 and status <> 'assembling' order by expires_at limit $2",
    );
    expired.bind(now).bind(limit).fetch_all(conn).await
}

/// Those of some object keys that no part names.
pub async fn without_part(conn: &mut PgConnection, keys: &[String]) -> sqlx::Result<Vec<String>> {
    let select = sqlx::query_scalar(
        "-- upload::without_part
        select key from unnest($1::text[]) as key
        where not exists (select 1 from apps.upload_parts p where p.object_key = key)",
    );
    select.bind(keys).fetch_all(conn).await
}
