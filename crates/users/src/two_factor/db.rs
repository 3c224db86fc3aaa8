//! Second factors in the database. Whoever writes here, but for what is only offered, has locked the account.

use contracts::{Timestamp, UserId};
use sqlx::PgConnection;

use crate::token::TokenHash;

/// A second factor.
#[derive(Debug, sqlx::FromRow)]
pub struct Factor {
    /// Sealed.
    pub secret: Vec<u8>,
    pub enabled_at: Option<Timestamp>,
    /// The period of the last code that counted.
    pub last_step: i64,
}

/// Keeps a secret for a user who has none, or one that was offered before a moment and is not on. What stands afterwards is
/// the one that counts.
pub async fn offer(
    conn: &mut PgConnection,
    user: &UserId,
    secret: &[u8],
    (now, before): (Timestamp, Timestamp),
) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "-- two_factor::offer
        insert into users.two_factors as t (user_id, secret, made_at) values ($1, $2, $3)
        on conflict (user_id) do update set secret = excluded.secret, made_at = excluded.made_at
        where t.enabled_at is null and t.made_at <= $4",
    );
    insert
        .bind(user)
        .bind(secret)
        .bind(now)
        .bind(before)
        .execute(conn)
        .await?;
    Ok(())
}

/// The factor of a user, on or not.
pub async fn find(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<Option<Factor>> {
    sqlx::query_as("select secret, enabled_at, last_step from users.two_factors where user_id = $1")
        .bind(user)
        .fetch_optional(conn)
        .await
}

/// The factor of a user, where it is on.
pub async fn find_enabled(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<Option<Factor>> {
    let factor = find(conn, user).await?;
    Ok(factor.filter(|factor| factor.enabled_at.is_some()))
}

/// Switches a factor on by the code of a period, where its secret is still the one that the code was of.
pub async fn enable(
    conn: &mut PgConnection,
    user: &UserId,
    (secret, step): (&[u8], i64),
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "-- two_factor::enable
        update users.two_factors set enabled_at = $4, last_step = $3
        where user_id = $1 and secret = $2 and enabled_at is null",
    );
    let done = update.bind(user).bind(secret).bind(step).bind(now);
    Ok(done.execute(conn).await?.rows_affected() == 1)
}

/// Writes down recovery codes.
pub async fn insert_recovery(
    conn: &mut PgConnection,
    user: &UserId,
    hashes: &[TokenHash],
) -> sqlx::Result<()> {
    let hashes: Vec<&[u8]> = hashes.iter().map(<[u8; 32]>::as_slice).collect();
    sqlx::query(
        "insert into users.recovery_codes (user_id, code_hash) select $1, unnest($2::bytea[])",
    )
    .bind(user)
    .bind(hashes)
    .execute(conn)
    .await?;
    Ok(())
}

/// Lets the code of a period count; `false` where it or a later one has.
pub async fn spend_step(conn: &mut PgConnection, user: &UserId, step: i64) -> sqlx::Result<bool> {
    let update =
        "update users.two_factors set last_step = $2 where user_id = $1 and last_step < $2";
    let update = sqlx::query(update).bind(user).bind(step);
    Ok(update.execute(conn).await?.rows_affected() == 1)
}

/// Spends a recovery code; `false` where there is none such.
pub async fn spend_recovery(
    conn: &mut PgConnection,
    user: &UserId,
    hash: &TokenHash,
) -> sqlx::Result<bool> {
    let delete = "delete from users.recovery_codes where user_id = $1 and code_hash = $2";
    let delete = sqlx::query(delete).bind(user).bind(hash.as_slice());
    Ok(delete.execute(conn).await?.rows_affected() == 1)
}

/// Removes a factor and its recovery codes.
pub async fn remove(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<()> {
    sqlx::query("delete from users.two_factors where user_id = $1")
        .bind(user)
        .execute(conn)
        .await?;
    Ok(())
}
