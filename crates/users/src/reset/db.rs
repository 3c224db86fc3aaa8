//! Requests and tokens in the database.

use std::time::Duration;

use chrono::TimeDelta;
use contracts::{EventId, Timestamp, UserId};
use sqlx::PgConnection;

use crate::token::TokenHash;

/// A request that is this worker's for a while.
#[derive(Debug, sqlx::FromRow)]
pub struct Request {
    pub id: String,
    pub email: String,
    pub attempts: i32,
}

/// The account that a request is about.
#[derive(Debug, sqlx::FromRow)]
pub struct Addressee {
    pub id: UserId,
    pub username: String,
    pub email: String,
}

/// Writes a request down, whether there is such an account or not.
pub async fn ask(
    conn: &mut PgConnection,
    email: &str,
    address: &str,
    now: Timestamp,
) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "insert into users.password_resets (id, email, address, due_at, created_at) values ($1, $2, $3, $4, $4)",
    );
    insert
        .bind(EventId::new())
        .bind(email)
        .bind(address)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}

/// Takes the next requests for so long: whoever dies meanwhile leaves them to others after that.
pub async fn claim(
    conn: &mut PgConnection,
    now: Timestamp,
    lease: TimeDelta,
    limit: i64,
) -> sqlx::Result<Vec<Request>> {
    sqlx::query_as(
        "-- reset::claim
        update users.password_resets set due_at = $1 + $2, attempts = attempts + 1
        where id in (
            select id from users.password_resets where settled_at is null and due_at <= $1
            order by due_at limit $3 for update skip locked)
        returning id, email, attempts",
    )
    .bind(now)
    .bind(lease)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Leaves a request for later.
pub async fn postpone(
    conn: &mut PgConnection,
    id: &str,
    now: Timestamp,
    pause: Duration,
) -> sqlx::Result<()> {
    let update =
        "update users.password_resets set due_at = $2 + $3 where id = $1 and settled_at is null";
    let update = sqlx::query(update).bind(id).bind(now).bind(pause);
    update.execute(conn).await?;
    Ok(())
}

/// Notes that nothing more is to be done about a request.
pub async fn settle(conn: &mut PgConnection, id: &str, now: Timestamp) -> sqlx::Result<()> {
    let update =
        "update users.password_resets set settled_at = $2 where id = $1 and settled_at is null";
    sqlx::query(update).bind(id).bind(now).execute(conn).await?;
    Ok(())
}

/// The active account with an address. Whoever changes it waits until its token is stored, and voids that then.
pub async fn addressee(conn: &mut PgConnection, email: &str) -> sqlx::Result<Option<Addressee>> {
    let select = "select id, username, email from users.accounts where email = $1 and status = 'active' for share";
    let select = sqlx::query_as(select).bind(email);
    select.fetch_optional(conn).await
}

/// Writes down a token.
pub async fn insert_token(
    conn: &mut PgConnection,
    hash: &TokenHash,
    user: &UserId,
    expires_at: Timestamp,
) -> sqlx::Result<()> {
    let insert =
        "insert into users.reset_tokens (token_hash, user_id, expires_at) values ($1, $2, $3)";
    let insert = sqlx::query(insert).bind(hash.as_slice());
    insert.bind(user).bind(expires_at).execute(conn).await?;
    Ok(())
}

/// Whose password a token sets, where it may still be used.
pub async fn owner(
    conn: &mut PgConnection,
    hash: &TokenHash,
    now: Timestamp,
) -> sqlx::Result<Option<UserId>> {
    let select = "select user_id from users.reset_tokens where token_hash = $1 and used_at is null and expires_at > $2";
    let select = sqlx::query_scalar(select).bind(hash.as_slice()).bind(now);
    select.fetch_optional(conn).await
}

/// Spends a token, and with it all others of its user; `false` where it was spent before.
pub async fn spend(
    conn: &mut PgConnection,
    hash: &TokenHash,
    user: &UserId,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query_scalar(
        "-- reset::spend
        with spent as (
            update users.reset_tokens set used_at = $3 where user_id = $2 and used_at is null and expires_at > $3
            returning token_hash)
        select exists (select from spent where token_hash = $1)",
    );
    update
        .bind(hash.as_slice())
        .bind(user)
        .bind(now)
        .fetch_one(conn)
        .await
}

/// Forgets requests and tokens of before a moment; how many.
pub async fn purge(conn: &mut PgConnection, before: Timestamp, limit: i64) -> sqlx::Result<u64> {
    let requests = sqlx::query(
        "-- reset::purge
        delete from users.password_resets where id in (
            select id from users.password_resets where created_at < $1 order by created_at limit $2 for update skip locked)",
    );
    let requests = requests
        .bind(before)
        .bind(limit)
        .execute(&mut *conn)
        .await?;
    let tokens = sqlx::query(
        "-- reset::purge_tokens
        delete from users.reset_tokens where token_hash in (
            select token_hash from users.reset_tokens where expires_at < $1 order by expires_at limit $2 for update skip locked)",
    );
    let tokens = tokens.bind(before).bind(limit).execute(conn).await?;
    Ok(requests.rows_affected().max(tokens.rows_affected()))
}
