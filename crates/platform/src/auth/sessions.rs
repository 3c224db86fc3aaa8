//! Sessions: PostgreSQL has the last word on whether one lives, Redis makes the answer quick.
//!
//! A session that ended is marked in Redis *before* PostgreSQL is told, so that every instance refuses it from then
//! on; where Redis cannot be told, nothing ends and the caller hears so. An entry that Redis lost is read again from
//! PostgreSQL; where neither answers, nobody gets in.

use std::time::Duration;

use contracts::{SessionId, Timestamp, UserId};
use coordination::Keys;
use fred::clients::Pool;
use fred::interfaces::KeysInterface;
use fred::types::{Expiration, SetOptions};
use sqlx::{PgConnection, PgPool};

/// How long PostgreSQL's word that a session lives is remembered.
const LIVING_SECONDS: i64 = 30;
const ENDED: &str = "ended";
const LIVING: &str = "living";

/// Begins, checks and ends sessions.
#[derive(Clone, Debug)]
pub struct Sessions {
    db: PgPool,
    redis: Pool,
    keys: Keys,
}

/// Neither store could tell.
#[derive(Debug, thiserror::Error)]
#[error("could not {tried} session {session}")]
pub struct SessionError {
    tried: &'static str,
    session: SessionId,
    #[source]
    source: anyhow::Error,
}

impl Sessions {
    pub(super) fn new(db: PgPool, redis: Pool, keys: Keys) -> Self {
        Self { db, redis, keys }
    }

    /// Writes down a new session, in the transaction of the sign-in.
    ///
    /// # Errors
    /// Where the database does not take it.
    pub async fn begin(
        conn: &mut PgConnection,
        id: &SessionId,
        user: &UserId,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> sqlx::Result<()> {
        let insert = sqlx::query(
            "insert into platform.sessions (id, user_id, created_at, expires_at) values ($1, $2, $3, $4)",
        );
        insert
            .bind(id)
            .bind(user)
            .bind(now)
            .bind(expires_at)
            .execute(conn)
            .await?;
        Ok(())
    }

    /// Whether a session lives.
    ///
    /// # Errors
    /// Where neither store can tell: the caller must not get in.
    pub async fn is_living(&self, id: &SessionId, now: Timestamp) -> Result<bool, SessionError> {
        let key = self.key(id);
        // Redis out of reach is no answer; PostgreSQL is asked then.
        match self
            .redis
            .get::<Option<String>, _>(&key)
            .await
            .ok()
            .flatten()
            .as_deref()
        {
            Some(LIVING) => return Ok(true),
            Some(ENDED) => return Ok(false),
            _ => {}
        }
        let living: Option<bool> = sqlx::query_scalar(
            "select ended_at is null and expires_at > $2 from platform.sessions where id = $1",
        )
        .bind(id)
        .bind(now)
        .fetch_optional(&self.db)
        .await
        .map_err(|error| SessionError {
            tried: "check",
            session: id.clone(),
            source: error.into(),
        })?;
        if living != Some(true) {
            return Ok(false);
        }
        // `NX`, so that the mark of an end that came meanwhile stays.
        let remembered: Result<(), _> = self
            .redis
            .set(
                &key,
                LIVING,
                Some(Expiration::EX(LIVING_SECONDS)),
                Some(SetOptions::NX),
                false,
            )
            .await;
        if let Err(error) = remembered {
            tracing::debug!("could not remember that session {id} lives: {error}");
        }
        Ok(true)
    }

    /// Ends one session everywhere, within the time of a round trip.
    ///
    /// # Errors
    /// Where a store could not be told; the session may then live on, or be refused for the time its tokens have left.
    pub async fn end(&self, id: &SessionId, now: Timestamp) -> Result<(), SessionError> {
        let failed = |source: anyhow::Error| SessionError {
            tried: "end",
            session: id.clone(),
            source,
        };
        self.mark_ended(id)
            .await
            .map_err(|error| failed(error.into()))?;
        sqlx::query(
            "update platform.sessions set ended_at = $2 where id = $1 and ended_at is null",
        )
        .bind(id)
        .bind(now)
        .execute(&self.db)
        .await
        .map_err(|error| failed(error.into()))?;
        Ok(())
    }

    /// Ends every session of a user but one, if one is named. The marks stand before the transaction commits, so that
    /// no instance believes a session that its end is promised for.
    ///
    /// # Errors
    /// Where a store could not be told.
    pub async fn end_others(
        &self,
        user: &UserId,
        except: Option<&SessionId>,
        now: Timestamp,
    ) -> Result<Vec<SessionId>, SessionError> {
        let failed = |source: anyhow::Error| SessionError {
            tried: "end the other sessions beside",
            session: except.cloned().unwrap_or_else(SessionId::new),
            source,
        };
        let others: Vec<SessionId> = sqlx::query_scalar(
            "select id from platform.sessions where user_id = $1 and ended_at is null and expires_at > $3 \
             and ($2::text is null or id <> $2)",
        )
        .bind(user)
        .bind(except)
        .bind(now)
        .fetch_all(&self.db)
        .await
        .map_err(|error| failed(error.into()))?;
        for id in &others {
            self.mark_ended(id)
                .await
                .map_err(|error| failed(error.into()))?;
        }
        sqlx::query(
            "update platform.sessions set ended_at = $2 where id = any($1) and ended_at is null",
        )
        .bind(&others)
        .bind(now)
        .execute(&self.db)
        .await
        .map_err(|error| failed(error.into()))?;
        Ok(others)
    }

    async fn mark_ended(&self, id: &SessionId) -> Result<(), fred::error::Error> {
        // As long as a remembered "living" could outlive the change in PostgreSQL, and a margin.
        let while_remembered = Expiration::EX(Duration::from_secs(300).as_secs().cast_signed());
        self.redis
            .set(self.key(id), ENDED, Some(while_remembered), None, false)
            .await
    }

    fn key(&self, id: &SessionId) -> String {
        self.keys.key(&format!("session:{id}"))
    }
}
