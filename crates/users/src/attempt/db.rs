//! The counters of attempts, in the row of the account.

use contracts::{Timestamp, UserId};
use sqlx::PgConnection;

use super::LIMIT;
use crate::password::PasswordHash;

/// Opens an attempt where the account is not locked and one more may be wrong; forgets a lock that is over.
pub async fn open(
    conn: &mut PgConnection,
    user: &UserId,
    now: Timestamp,
    open_until: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "-- attempt::open
        update users.accounts set
            failed_logins = case when locked_until <= $2 then 0 else failed_logins end,
            locked_until = case when locked_until <= $2 then null else locked_until end,
            open_attempts = case when open_attempts_until > $2 then open_attempts else 0 end + 1,
            open_attempts_until = $3
        where id = $1
          and (locked_until is null or locked_until <= $2)
          and case when locked_until <= $2 then 0 else failed_logins end
            + case when open_attempts_until > $2 then open_attempts else 0 end < $4",
    );
    let done = update
        .bind(user)
        .bind(now)
        .bind(open_until)
        .bind(LIMIT)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Until when an account is locked, if it is.
pub async fn locked_until(
    conn: &mut PgConnection,
    user: &UserId,
    now: Timestamp,
) -> sqlx::Result<Option<Timestamp>> {
    sqlx::query_scalar(
        "select locked_until from users.accounts where id = $1 and locked_until > $2",
    )
    .bind(user)
    .bind(now)
    .fetch_optional(conn)
    .await
}

/// Closes an attempt as wrong, locks the account with the last one allowed, and says how many there were in a row.
pub async fn count_wrong(
    conn: &mut PgConnection,
    user: &UserId,
    lock_until: Timestamp,
) -> sqlx::Result<Option<i32>> {
    sqlx::query_scalar(
        "-- attempt::count_wrong
        update users.accounts set
            failed_logins = failed_logins + 1,
            open_attempts = greatest(open_attempts - 1, 0),
            locked_until = case when failed_logins + 1 >= $3 then $2 else locked_until end
        where id = $1
        returning failed_logins",
    )
    .bind(user)
    .bind(lock_until)
    .bind(LIMIT)
    .fetch_optional(conn)
    .await
}

/// Closes an attempt as right, where the password that was compared is still the account's.
pub async fn signed_in(
    conn: &mut PgConnection,
    user: &UserId,
    hash: &PasswordHash,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "-- attempt::signed_in
        update users.accounts set
            failed_logins = 0, locked_until = null, open_attempts = greatest(open_attempts - 1, 0), last_login_at = $3
        where id = $1 and password_hash = $2 and status = 'active' and (locked_until is null or locked_until <= $3)",
    );
    let done = update.bind(user).bind(hash).bind(now).execute(conn).await?;
    Ok(done.rows_affected() == 1)
}

/// Closes an attempt as right and puts the second hash in the place of the first.
pub async fn replaced(
    conn: &mut PgConnection,
    user: &UserId,
    (old, new): (&PasswordHash, &PasswordHash),
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "-- attempt::replaced
        update users.accounts set
            failed_logins = 0, locked_until = null, open_attempts = greatest(open_attempts - 1, 0),
            password_hash = $3, updated_at = $4
        where id = $1 and password_hash = $2 and (locked_until is null or locked_until <= $4)",
    );
    let done = update
        .bind(user)
        .bind(old)
        .bind(new)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Puts another hash of the same password in the place of one, where that still stands.
pub async fn rehash(
    conn: &mut PgConnection,
    user: &UserId,
    (old, new): (&PasswordHash, &PasswordHash),
) -> sqlx::Result<()> {
    sqlx::query(
        "update users.accounts set password_hash = $3 where id = $1 and password_hash = $2",
    )
    .bind(user)
    .bind(old)
    .bind(new)
    .execute(conn)
    .await?;
    Ok(())
}

/// Closes an attempt that came to nothing.
pub async fn release(conn: &mut PgConnection, user: &UserId) -> sqlx::Result<()> {
    sqlx::query(
        "update users.accounts set open_attempts = greatest(open_attempts - 1, 0) where id = $1",
    )
    .bind(user)
    .execute(conn)
    .await?;
    Ok(())
}
