//! Attempts at an account's password. Five wrong ones in a row lock the account.
//!
//! An attempt is opened in PostgreSQL *before* the password is compared, and there are never more open and wrong ones
//! together than the limit. So callers on any number of instances together have no more than five passwords compared,
//! while any number of callers with the right one get in, five at a time. An attempt whose process died counts no more
//! after a while.

mod db;

pub use db::release;

use std::time::Duration;

use chrono::TimeDelta;
use contracts::{Event, EventBody, Timestamp, UserId};
use platform::events::emit;
use rand::RngExt;
use sqlx::PgConnection;
use tracing::info;

use crate::Users;
use crate::error::{Error, Result};
use crate::password::PasswordHash;
use crate::secret::SecretText;

/// How many wrong passwords in a row lock an account.
pub const LIMIT: i32 = 5;
/// For how long.
pub const LOCK: TimeDelta = TimeDelta::minutes(30);
/// Longer than a request may take.
const OPEN_AT_MOST: TimeDelta = TimeDelta::seconds(10);
/// How often a caller asks again while others' attempts are open: for three seconds or a little more.
const ROUNDS: u32 = 60;

/// A password that was found right, by an attempt that is still open: close it with what it was for.
#[derive(Debug)]
#[must_use]
pub struct Right {
    user: UserId,
    hash: PasswordHash,
}

/// Compares a password with an account's. `None` where it is wrong, which counts.
///
/// # Errors
/// [`Error::Locked`]; [`Error::Crowded`] and [`Error::Hash`] under overload.
pub async fn compare(
    state: &Users,
    user: &UserId,
    hash: PasswordHash,
    password: SecretText,
) -> Result<Option<Right>> {
    open(state, user).await?;
    match state.hasher.verify(password, hash.clone()).await {
        Ok(true) => Ok(Some(Right {
            user: user.clone(),
            hash,
        })),
        Ok(false) => {
            count_wrong(state, user).await?;
            Ok(None)
        }
        Err(error) => {
            let mut conn = state.platform.db.acquire().await?;
            db::release(&mut conn, user).await?;
            Err(error.into())
        }
    }
}

impl Right {
    /// Closes the attempt of a sign-in and forgets the wrong ones before it; `false` where the password was changed
    /// or the account switched off meanwhile. Locks the row, so that a change of password waits for the new session.
    pub async fn signed_in(&self, conn: &mut PgConnection, now: Timestamp) -> sqlx::Result<bool> {
        db::signed_in(conn, &self.user, &self.hash, now).await
    }

    /// Closes the attempt and puts another password in the place of this one; `false` where another change came first.
    pub async fn replaced(
        &self,
        conn: &mut PgConnection,
        new: &PasswordHash,
        now: Timestamp,
    ) -> sqlx::Result<bool> {
        db::replaced(conn, &self.user, (&self.hash, new), now).await
    }

    /// Closes the attempt without any other effect.
    pub async fn release(&self, conn: &mut PgConnection) -> sqlx::Result<()> {
        db::release(conn, &self.user).await
    }
}

/// Puts a new hash of the same password in the place of one of another cost.
///
/// # Errors
/// [`Error::Hash`] under overload; the old one stays.
pub async fn rehash(
    state: &Users,
    user: &UserId,
    old: &PasswordHash,
    password: SecretText,
) -> Result<()> {
    let new = state.hasher.hash(password).await?;
    let mut conn = state.platform.db.acquire().await?;
    Ok(db::rehash(&mut conn, user, (old, &new)).await?)
}

/// Opens an attempt at something else than the password: close it with [`count_wrong`] or [`release`].
///
/// # Errors
/// [`Error::Locked`], [`Error::Crowded`].
pub async fn open(state: &Users, user: &UserId) -> Result<()> {
    for _ in 0..ROUNDS {
        let now = state.platform.clock.now();
        // A connection is held for the statement alone, not while waiting for others.
        let mut conn = state.platform.db.acquire().await?;
        if db::open(&mut conn, user, now, now + OPEN_AT_MOST).await? {
            return Ok(());
        }
        if let Some(until) = db::locked_until(&mut conn, user, now).await? {
            let wait = (until - now).to_std().unwrap_or_default();
            return Err(Error::Locked { until, wait });
        }
        drop(conn);
        let pause = Duration::from_millis(rand::rng().random_range(25..75));
        tokio::time::sleep(pause).await;
    }
    Err(Error::Crowded)
}

/// Closes an attempt as wrong, and locks the account with the last one allowed.
pub async fn count_wrong(state: &Users, user: &UserId) -> Result<()> {
    let now = state.platform.clock.now();
    let mut tx = state.platform.db.begin().await?;
    let failed = db::count_wrong(&mut tx, user, now + LOCK).await?;
    // Once for each lock, whoever came last.
    if failed == Some(LIMIT) {
        let body = EventBody::UserLocked { until: now + LOCK };
        emit(&mut tx, &Event::new(user.clone(), now, body)).await?;
    }
    tx.commit().await?;
    if failed == Some(LIMIT) {
        info!(user.id = %user, "locked account {user} after {LIMIT} wrong passwords");
    }
    Ok(())
}
