//! SQL of webhooks.

use contracts::{Timestamp, UserId};
use secrecy::{ExposeSecret, SecretSlice};
use sqlx::PgConnection;

/// Where a user is called. Its secret is not shown by `Debug`.
#[derive(Clone, sqlx::FromRow)]
pub struct Webhook {
    /// The URL.
    pub url: String,
    /// Signs the calls.
    pub secret: Vec<u8>,
    /// When it was first set.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
}

/// Where a user is called.
pub async fn find(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<Option<Webhook>> {
    sqlx::query_as("select * from notifications.webhooks where user_id = $1")
        .bind(user)
        .fetch_optional(conn)
        .await
}

/// Sets the URL. The secret counts only where there was none; whether it did.
pub async fn put(
    conn: &mut PgConnection,
    user: &UserId,
    (url, secret): (&str, &SecretSlice<u8>),
    now: Timestamp,
) -> sqlx::Result<(Webhook, bool)> {
    let stored: Webhook = sqlx::query_as(
        "-- webhook::put
        insert into notifications.webhooks (user_id, url, secret, created_at, updated_at) values ($1, $2, $3, $4, $4)
        on conflict (user_id) do update set url = $2, updated_at = $4 returning *",
    )
    .bind(user)
    .bind(url)
    .bind(secret.expose_secret())
    .bind(now)
    .fetch_one(conn)
    .await?;
    let is_new = stored.secret == secret.expose_secret();
    Ok((stored, is_new))
}

/// Puts another secret in the place of the one there is.
pub async fn rotate(
    conn: &mut PgConnection,
    user: &UserId,
    secret: &SecretSlice<u8>,
    now: Timestamp,
) -> sqlx::Result<Option<Webhook>> {
    sqlx::query_as(
        "update notifications.webhooks set secret = $2, updated_at = $3 where user_id = $1 returning *",
    )
    .bind(user)
    .bind(secret.expose_secret())
    .bind(now)
    .fetch_optional(conn)
    .await
}

/// Calls the user no longer; `false` where nobody did.
pub async fn delete(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<bool> {
    let delete = sqlx::query("delete from notifications.webhooks where user_id = $1");
    Ok(delete.bind(user).execute(conn).await?.rows_affected() == 1)
}
