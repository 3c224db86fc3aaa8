//! Sessions: PostgreSQL has the last word on whether one lives, Redis makes the answer quick.
//!
//! A session that ended is marked in Redis *before* PostgreSQL is told, so that every instance refuses it from then
//! on; where Redis cannot be told, nothing ends and the caller hears so. An entry that Redis lost is read again from
//! PostgreSQL; where neither answers, nobody gets in.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use contracts::{SessionId, Timestamp, UserId};
use coordination::Keys;
use fred::clients::Pool;
use fred::interfaces::{KeysInterface, PubsubInterface};
use fred::types::{Expiration, SetOptions};
use sqlx::{PgConnection, PgPool};
use tokio::time::timeout;

/// How long PostgreSQL's word that a session lives is remembered; so long may a Redis that lost the mark of an end, in
/// a failover, be believed.
const LIVING_REMEMBERED: TimeDelta = TimeDelta::seconds(10);
/// How long the mark of an end stands: until no "living" of before can be remembered, and a margin.
const ENDED_SECONDS: i64 = 300;
/// How long Redis is waited for where PostgreSQL can tell as well.
const PATIENCE: Duration = Duration::from_millis(500);
const MARKED_AT_ONCE: usize = 64;
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
        let remembered = timeout(PATIENCE, self.redis.get::<Option<String>, _>(&key)).await;
        let redis_answers = matches!(remembered, Ok(Ok(_)));
        match remembered.ok().and_then(Result::ok).flatten().as_deref() {
            Some(LIVING) => return Ok(true),
            Some(ENDED) => return Ok(false),
            _ => {}
        }
        let asked = Instant::now();
        let expires_at: Option<Timestamp> = sqlx::query_scalar(
            "select expires_at from platform.sessions where id = $1 and ended_at is null and expires_at > $2",
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
        let Some(expires_at) = expires_at else {
            return Ok(false);
        };
        // What PostgreSQL said a while ago, before this process was paused, is not remembered: the mark of an end that
        // came meanwhile may have lapsed.
        if redis_answers && asked.elapsed() < PATIENCE {
            self.remember_living(&key, expires_at - now).await;
        }
        Ok(true)
    }

    async fn remember_living(&self, key: &str, rest: TimeDelta) {
        let span = Expiration::PX(rest.min(LIVING_REMEMBERED).num_milliseconds().max(1));
        // `NX`, so that the mark of an end that came meanwhile stays.
        let set = self
            .redis
            .set::<(), _, _>(key, LIVING, Some(span), Some(SetOptions::NX), false);
        if !matches!(timeout(PATIENCE, set).await, Ok(Ok(()))) {
            tracing::debug!("could not remember that a session lives");
        }
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
        self.mark_ended(std::slice::from_ref(id))
            .await
            .map_err(failed)?;
        sqlx::query(
            "update platform.sessions set ended_at = $2 where id = $1 and ended_at is null",
        )
        .bind(id)
        .bind(now)
        .execute(&self.db)
        .await
        .map_err(|error| failed(error.into()))?;
        // Once more: Redis may have lost the first mark, and somebody remembered since what PostgreSQL said before.
        self.mark_ended(std::slice::from_ref(id))
            .await
            .map_err(failed)
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
        self.mark_ended(&others).await.map_err(failed)?;
        sqlx::query(
            "update platform.sessions set ended_at = $2 where id = any($1) and ended_at is null",
        )
        .bind(&others)
        .bind(now)
        .execute(&self.db)
        .await
        .map_err(|error| failed(error.into()))?;
        self.mark_ended(&others).await.map_err(failed)?;
        Ok(others)
    }

    /// Forgets sessions that expired a week ago; how many.
    ///
    /// # Errors
    /// Where the database does not answer.
    pub async fn purge(conn: &mut PgConnection, now: Timestamp, batch: i64) -> sqlx::Result<u64> {
        let delete = sqlx::query(
            "-- sessions::purge
            delete from platform.sessions where id in (
                select id from platform.sessions where expires_at < $1 - interval '7 days'
                order by expires_at limit $2 for update skip locked)",
        );
        let done = delete.bind(now).bind(batch).execute(conn).await?;
        Ok(done.rows_affected())
    }

    async fn mark_ended(&self, ids: &[SessionId]) -> anyhow::Result<()> {
        for some in ids.chunks(MARKED_AT_ONCE) {
            let marks = some.iter().map(|id| {
                let while_remembered = Expiration::EX(ENDED_SECONDS);
                self.redis
                    .set::<(), _, _>(self.key(id), ENDED, Some(while_remembered), None, false)
            });
            futures::future::try_join_all(marks).await?;
            self.tell_ended(some).await;
        }
        Ok(())
    }

    /// Tells those who keep in mind who is gone. They read it a moment later where this is lost.
    async fn tell_ended(&self, ids: &[SessionId]) {
        let ids: Vec<&str> = ids.iter().map(SessionId::as_str).collect();
        let channel = self.keys.session_news();
        let told = self
            .redis
            .next()
            .publish::<(), _, _>(channel, ids.join(","));
        if !matches!(timeout(PATIENCE, told).await, Ok(Ok(()))) {
            tracing::debug!("could not tell at once that {} sessions ended", ids.len());
        }
    }

    fn key(&self, id: &SessionId) -> String {
        self.keys.key(&format!("session:{id}"))
    }
}
