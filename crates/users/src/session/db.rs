//! Sessions and refresh tokens in the database. Whoever changes the tokens of a session locks the session first.

use std::net::IpAddr;

use contracts::{SessionId, Timestamp, UserId};
use sqlx::PgConnection;

use super::Which;
use super::agent::Agent;
use crate::token::TokenHash;

/// A session, as renewing its tokens needs it.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Session {
    pub id: SessionId,
    pub user_id: UserId,
    pub remember: bool,
    pub expires_at: Timestamp,
}

/// A session, as its user sees it.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Listed {
    pub id: SessionId,
    pub address: String,
    pub browser: String,
    pub os: String,
    pub last_active_at: Timestamp,
    pub created_at: Timestamp,
}

/// Writes down a new session.
pub async fn insert(
    conn: &mut PgConnection,
    session: &Session,
    address: IpAddr,
    agent: Agent,
    now: Timestamp,
) -> sqlx::Result<()> {
    let insert = sqlx::query(
        "insert into users.sessions
            (id, user_id, remember, expires_at, address, browser, os, created_at, last_active_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $8)",
    );
    insert
        .bind(&session.id)
        .bind(&session.user_id)
        .bind(session.remember)
        .bind(session.expires_at)
        .bind(address.to_string())
        .bind(agent.browser)
        .bind(agent.os)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}

/// Writes down a new refresh token of a session.
pub async fn insert_token(
    conn: &mut PgConnection,
    session: &SessionId,
    hash: &TokenHash,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "insert into users.refresh_tokens (token_hash, session_id, created_at) values ($1, $2, $3)",
    )
    .bind(hash.as_slice())
    .bind(session)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// The session that a refresh token, spent or not, was made for.
pub async fn session_of_token(
    conn: &mut PgConnection,
    hash: &TokenHash,
) -> sqlx::Result<Option<SessionId>> {
    sqlx::query_scalar("select session_id from users.refresh_tokens where token_hash = $1")
        .bind(hash.as_slice())
        .fetch_optional(conn)
        .await
}

/// Locks a session that lives.
pub async fn lock_living(
    conn: &mut PgConnection,
    id: &SessionId,
    now: Timestamp,
) -> sqlx::Result<Option<Session>> {
    sqlx::query_as(
        "select id, user_id, remember, expires_at from users.sessions
        where id = $1 and ended_at is null and expires_at > $2 for update",
    )
    .bind(id)
    .bind(now)
    .fetch_optional(conn)
    .await
}

/// Spends a refresh token; `false` where it was spent before.
pub async fn spend(
    conn: &mut PgConnection,
    hash: &TokenHash,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let update = sqlx::query(
        "update users.refresh_tokens set spent_at = $2 where token_hash = $1 and spent_at is null",
    );
    let done = update.bind(hash.as_slice()).bind(now).execute(conn).await?;
    Ok(done.rows_affected() == 1)
}

/// Forgets the refresh tokens of a session that were not spent: another one takes their place.
pub async fn forget_unspent(conn: &mut PgConnection, session: &SessionId) -> sqlx::Result<()> {
    sqlx::query("delete from users.refresh_tokens where session_id = $1 and spent_at is null")
        .bind(session)
        .execute(conn)
        .await?;
    Ok(())
}

/// Notes that a session is in use.
pub async fn touch(conn: &mut PgConnection, id: &SessionId, now: Timestamp) -> sqlx::Result<()> {
    sqlx::query("update users.sessions set last_active_at = $2 where id = $1")
        .bind(id)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}

/// Ends sessions of a user that live, and names them.
pub async fn end(
    conn: &mut PgConnection,
    user: &UserId,
    which: Which<'_>,
    now: Timestamp,
) -> sqlx::Result<Vec<SessionId>> {
    let (id, all_but) = match which {
        Which::One(id) => (Some(id), false),
        Which::AllBut(id) => (Some(id), true),
        Which::All => (None, false),
    };
    sqlx::query_scalar(
        "-- session::end
        update users.sessions set ended_at = $4
        where user_id = $1 and ($2::text is null or (id = $2) <> $3) and ended_at is null and expires_at > $4
        returning id",
    )
    .bind(user)
    .bind(id)
    .bind(all_but)
    .bind(now)
    .fetch_all(conn)
    .await
}

/// Notes that every instance knows of the end of sessions.
pub async fn mark_enforced(
    conn: &mut PgConnection,
    ids: &[SessionId],
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query(
        "update users.sessions set enforced_at = $2 where id = any($1) and enforced_at is null",
    )
    .bind(ids)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Sessions whose end was decided before a moment, and not told.
pub async fn unenforced(
    conn: &mut PgConnection,
    before: Timestamp,
    limit: i64,
) -> sqlx::Result<Vec<SessionId>> {
    sqlx::query_scalar(
        "select id from users.sessions where ended_at <= $1 and enforced_at is null order by ended_at limit $2",
    )
    .bind(before)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// The sessions of a user that live, newest first.
pub async fn list(
    conn: &mut PgConnection,
    user: &UserId,
    now: Timestamp,
) -> sqlx::Result<Vec<Listed>> {
    sqlx::query_as(
        "-- session::list
        select id, address, browser, os, last_active_at, created_at from users.sessions
        where user_id = $1 and ended_at is null and expires_at > $2
        order by created_at desc, seq desc limit 500",
    )
    .bind(user)
    .bind(now)
    .fetch_all(conn)
    .await
}

/// Deletes sessions that nobody can use since a moment, with their refresh tokens; how many.
pub async fn purge(conn: &mut PgConnection, before: Timestamp, limit: i64) -> sqlx::Result<u64> {
    let delete = sqlx::query(
        "-- session::purge
        delete from users.sessions where id in (
            select id from users.sessions where expires_at < $1 order by expires_at limit $2 for update skip locked)",
    );
    Ok(delete
        .bind(before)
        .bind(limit)
        .execute(conn)
        .await?
        .rows_affected())
}
