//! API keys: secrets by which programs act for their users, within scopes.
//!
//! A key is looked up in PostgreSQL once a minute at most. In between, the keys that changed are read from there four times a
//! second (`Changes`); a process that could not read for three quarters of a second looks up each key at each call. Redis
//! is not asked. So a key that was revoked, rotated, switched off, deleted or narrowed, and one whose user was blocked or
//! lost a role, is judged anew everywhere within a second.

mod changes;
mod scope;
mod secret;
mod usage;

use std::sync::Arc;
use std::time::{Duration, Instant};

use contracts::{ApiKeyId, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::warn;

pub use scope::{Scope, Scopes, Wanted, besides, is_decided, is_scope, known, wanted};
pub use secret::{ApiKeySecret, KeyHash, hash};

use super::AuthError;
use super::recent::Recent;
use super::vouch::spell;
use crate::Clock;
use crate::lifecycle::Tasks;
use crate::problem::causes;
use changes::Changes;
use usage::{Usage, Uses};

/// How many keys are remembered, and how many texts that are none; those that were not seen lately go first.
const REMEMBERED: usize = 16_384;
/// How long a key that was looked up counts while no change of it is known: less than changes are kept.
const LOOKED_UP: Duration = Duration::from_secs(60);
/// So many keys are looked up at once, and for so long one waits for its turn: who asks with ever new keys must not take all
/// connections of the services.
const LOOKUPS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(1);
/// How long PostgreSQL may take to tell of a key.
const DEADLINE: Duration = Duration::from_secs(3);
const READ_EVERY: Duration = Duration::from_millis(250);
const WRITE_EVERY: Duration = Duration::from_secs(5);

/// Whom a key speaks for, and what it may be used for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyIdentity {
    /// The user.
    #[serde(rename = "sub")]
    pub user_id: UserId,
    /// The user's name.
    pub username: String,
    /// The names of the user's roles.
    pub roles: Vec<String>,
    /// The key.
    pub key_id: ApiKeyId,
    /// What it may be used for.
    pub scopes: Scopes,
}

/// Looks keys up. Clones share everything.
#[derive(Clone, Debug)]
pub struct ApiKeys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    db: PgPool,
    watch: PgPool,
    clock: Clock,
    born: Instant,
    /// By the hash: what is kept here opens nothing.
    known: Recent<KeyHash, Arc<KnownKey>>,
    /// Hashes of no key, and until when that is believed.
    unknown: Recent<KeyHash, Duration>,
    lookups: Semaphore,
    changes: Changes,
    usage: Usage,
}

/// A key that was looked up.
#[derive(Debug)]
pub struct KnownKey {
    hash: KeyHash,
    identity: KeyIdentity,
    spelled: String,
    is_active: bool,
    expires_at: Option<Timestamp>,
    version: i64,
    /// Until when it counts, since the birth of [`ApiKeys`].
    until: Duration,
    era: u64,
    uses: Arc<Uses>,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: ApiKeyId,
    user_id: UserId,
    username: String,
    roles: Vec<String>,
    scopes: Vec<String>,
    expires_at: Option<Timestamp>,
    version: i64,
    is_active: bool,
}

impl KnownKey {
    /// Whom it speaks for.
    pub fn identity(&self) -> &KeyIdentity {
        &self.identity
    }

    /// The identity as it stands in a gateway's word.
    pub fn spelled(&self) -> &str {
        &self.spelled
    }

    /// Counts one use.
    pub fn used(&self, now: Timestamp) {
        self.uses.add(now);
    }
}

impl ApiKeys {
    /// Looks keys up in `db`; what changes is read over `watch`.
    pub(super) fn new(db: PgPool, watch: PgPool, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            db,
            watch,
            changes: Changes::new(clock.clone()),
            clock,
            born: Instant::now(),
            known: Recent::new(REMEMBERED),
            unknown: Recent::new(REMEMBERED),
            lookups: Semaphore::new(LOOKUPS),
            usage: Usage::default(),
        }))
    }

    /// Begins to read what changes, and to write down how often keys are used, until the process leaves.
    pub fn follow(&self, tasks: &Tasks) {
        let reading = self.clone();
        tasks.every("auth.api_keys.read", READ_EVERY, move || {
            let this = reading.clone();
            // The growing pauses after failures are not for this step.
            async move { Ok(this.0.changes.read(&this.0.watch).await) }
        });
        let (this, stop) = (self.clone(), tasks.stopping());
        tasks.spawn("auth.api_keys.usage", async move {
            while stop.run_until_cancelled(sleep(WRITE_EVERY)).await.is_some() {
                this.0.usage.write(&this.0.db).await;
            }
            this.0.usage.write_last(&this.0.db).await;
            Ok(())
        });
    }

    /// A key that is known well enough without asking, or that is known to be none; `None` where it must be looked up.
    pub fn recall(&self, text: &str) -> Option<Result<Arc<KnownKey>, AuthError>> {
        match hash(text) {
            Some(hash) => self.remembered(&hash),
            None => Some(Err(AuthError::Key)),
        }
    }

    fn remembered(&self, hash: &KeyHash) -> Option<Result<Arc<KnownKey>, AuthError>> {
        let this = &*self.0;
        if let Some(known) = this.known.get(hash) {
            return self.is_current(&known).then(|| self.judge(known));
        }
        let until = this.unknown.get(hash)?;
        (this.born.elapsed() < until).then_some(Err(AuthError::Key))
    }

    /// What somebody else was told who began to look it up later than this moment.
    fn looked_up_since(&self, hash: &KeyHash, began: Duration) -> Option<Arc<KnownKey>> {
        let known = self.0.known.get(hash);
        known.filter(|known| known.until >= began + LOOKED_UP)
    }

    /// A key that was known before it could not be heard what changes. It may be good no more.
    pub fn recall_blindly(&self, text: &str) -> Option<Arc<KnownKey>> {
        let is_blind = !self.0.changes.freshness().is_fresh();
        hash(text)
            .filter(|_| is_blind)
            .and_then(|hash| self.0.known.get(&hash))
    }

    /// The key of a text.
    ///
    /// # Errors
    /// [`AuthError::Key`] where it is none, or may not be used; [`AuthError::KeyUnchecked`] where PostgreSQL cannot tell.
    pub async fn find(&self, text: &str) -> Result<Arc<KnownKey>, AuthError> {
        match self.recall(text) {
            Some(recalled) => recalled,
            None => self.look_up(hash(text).ok_or(AuthError::Key)?).await,
        }
    }

    /// The same key, as it is now; `None` where it cannot be heard what changes.
    ///
    /// # Errors
    /// As [`ApiKeys::find`].
    pub async fn renew(&self, known: &Arc<KnownKey>) -> Result<Option<Arc<KnownKey>>, AuthError> {
        if !self.0.changes.freshness().is_fresh() {
            return Ok(None);
        }
        if self.counts(known) {
            return self.judge(known.clone()).map(Some);
        }
        let known = self.look_up(known.hash).await?;
        // That may have taken a while.
        Ok(self.is_current(&known).then_some(known))
    }

    /// Whether no change of a key is known that was looked up, and every change of a second ago would be.
    fn is_current(&self, known: &KnownKey) -> bool {
        self.0.changes.freshness().is_fresh() && self.counts(known)
    }

    /// Forgets how often keys were used that are no more.
    ///
    /// # Errors
    /// Where the database does not answer.
    pub async fn forget_uses(conn: &mut PgConnection, ids: &[ApiKeyId]) -> sqlx::Result<()> {
        sqlx::query("delete from platform.api_key_usage where key_id = any($1)")
            .bind(ids)
            .execute(conn)
            .await
            .map(|_| ())
    }

    /// Whether what was looked up is what PostgreSQL would say now. Ask first whether changes are known.
    fn counts(&self, known: &KnownKey) -> bool {
        let changes = &self.0.changes;
        // In this order: what is forgotten because it was too much begins an era first.
        self.0.born.elapsed() < known.until
            && changes.is_latest(&known.identity.key_id, known.version)
            && known.era == changes.freshness().era()
    }

    fn judge(&self, known: Arc<KnownKey>) -> Result<Arc<KnownKey>, AuthError> {
        let now = self.0.clock.now();
        let is_over = known.expires_at.is_some_and(|expires_at| expires_at <= now);
        match known.is_active && !is_over {
            true => Ok(known),
            false => Err(AuthError::Key),
        }
    }

    async fn look_up(&self, hash: KeyHash) -> Result<Arc<KnownKey>, AuthError> {
        let this = &*self.0;
        let asked = this.born.elapsed();
        let _turn = match timeout(PATIENCE, this.lookups.acquire()).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(_)) | Err(_) => return Err(AuthError::KeyUnchecked),
        };
        // Of all who wait for the same key, few need to ask.
        if let Some(remembered) = self.remembered(&hash) {
            return remembered;
        }
        if let Some(known) = self.looked_up_since(&hash, asked) {
            return self.judge(known);
        }
        let (until, era) = (
            this.born.elapsed() + LOOKED_UP,
            this.changes.freshness().era(),
        );
        let row = sqlx::query_as(
            "-- api_keys::find
            select id, user_id, username, roles, scopes, expires_at, version, is_active
            from platform.api_keys where key_hash = $1",
        )
        .bind(hash.as_slice())
        .fetch_optional(&this.db);
        let row: Option<Row> = match timeout(DEADLINE, row).await {
            Ok(Ok(row)) => row,
            Ok(Err(error)) => {
                warn!("could not look up an API key: {}", causes(&error));
                return Err(AuthError::KeyUnchecked);
            }
            Err(_) => {
                warn!(
                    "could not look up an API key: PostgreSQL did not answer within {DEADLINE:?}"
                );
                return Err(AuthError::KeyUnchecked);
            }
        };
        let Some(row) = row else {
            // In this order: a secret that was rotated away must not hide that it is none.
            this.unknown.insert(hash, until);
            this.known.remove(&hash);
            return Err(AuthError::Key);
        };
        let identity = KeyIdentity {
            user_id: row.user_id,
            username: row.username,
            roles: row.roles,
            key_id: row.id,
            scopes: Scopes(row.scopes),
        };
        let known = Arc::new(KnownKey {
            hash,
            spelled: spell(&identity),
            is_active: row.is_active,
            expires_at: row.expires_at,
            version: row.version,
            until,
            era,
            uses: this.usage.of(&identity.key_id),
            identity,
        });
        this.known.insert(hash, known.clone());
        self.judge(known)
    }
}
