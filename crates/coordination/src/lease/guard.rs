//! The guard of a lease: the one way to write what belongs to its holder.
//!
//! A table is put under fencing by a migration, with the prefix of its keys and the column that completes them:
//!
//! ```sql
//! select coordination.fence_table('shop.reports', 'report:', 'id');
//! ```
//!
//! From then on every insert, update, delete and truncate of that table, whoever sends it and from where, fails unless its
//! transaction has proven the highest token of the row's key: a plain `update` in psql fails with `ZF001` ([`UNFENCED`]),
//! the guard of another lease with `ZF002` ([`OTHER_FENCE`]), a claim with an old token with `ZF003` ([`STALE_FENCE`]).
//! [`Guard::begin`] opens a transaction that has proven it. Reading needs no guard.
//!
//! It guards against holders that are late, not against malice: whoever may alter the table, disable triggers or set
//! `session_replication_role` can lift it. Tables with partitions or heirs cannot be put under fencing, and what is made to
//! inherit from a fenced one later is not. The trigger reads each written row whole: keep large columns elsewhere. Effects outside of the database carry the token and refuse lower ones themselves, as a container's label does.

use std::ops::{Deref, DerefMut};

use sqlx::{PgConnection, PgPool, Postgres, Transaction};

use super::Fence;
use crate::{StoreError, metrics};

/// SQLSTATE of a write to a fenced row in a transaction that has proven nothing.
pub const UNFENCED: &str = "ZF001";
/// SQLSTATE of a write to a fenced row of another lease than the proven one, and of the proof of a second one.
pub const OTHER_FENCE: &str = "ZF002";
/// SQLSTATE of a write to a fenced row with a token that is not the highest.
pub const STALE_FENCE: &str = "ZF003";

/// Why a guarded transaction did not begin, or not end well.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// Another has taken the lease since: nothing was written, and nothing may be done any more in its name.
    #[error("token {token} of {key} is late: {highest} is known, so nothing was written")]
    Fenced {
        /// The key of the lease, job or lock.
        key: String,
        /// The late holder's token.
        token: Fence,
        /// The highest token known.
        highest: Fence,
    },
    /// The database did not answer, or refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl FenceError {
    /// Says whether the holder is late, so that trying again is of no use.
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Fenced { .. })
    }
}

/// What the holder of a lease, the runner of a job or the owner of a lock writes with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The key the token belongs to.
    pub name: String,
    /// The holder's token.
    pub fence: Fence,
}

impl Guard {
    /// Begins a transaction that has proven the token, for which a successor waits: it must be short. The server ends it
    /// when its client falls silent for five seconds, so that a holder that was stopped within does not keep the next
    /// one out. [`FenceError::Fenced`] is counted in `fenced_writes_total`.
    pub async fn begin(&self, db: &PgPool) -> Result<FencedTx, FenceError> {
        let tried = "begin a guarded transaction";
        let mut tx = db.begin().await.map_err(StoreError::postgres(tried))?;
        self.prove(&mut tx).await?;
        Ok(FencedTx { tx })
    }

    /// Proves the token for the rest of a transaction that was begun elsewhere, with the same bound on silence as
    /// [`Self::begin`]; it must be rolled back where this fails. A savepoint that is rolled back takes a proof within it
    /// along. A transaction proves one key: the proof of another one after it is refused ([`OTHER_FENCE`]).
    pub async fn prove(&self, tx: &mut Transaction<'_, Postgres>) -> Result<(), FenceError> {
        let query = sqlx::query_scalar("select coordination.prove_fence($1, $2)");
        let proven = query
            .bind(&self.name)
            .bind(self.fence.0)
            .fetch_one(&mut **tx)
            .await;
        let highest: i64 = proven.map_err(StoreError::postgres("prove a fencing token"))?;
        if highest == self.fence.0 {
            return Ok(());
        }
        metrics::fenced_write(&self.name);
        Err(FenceError::Fenced {
            key: self.name.clone(),
            token: self.fence,
            highest: Fence(highest),
        })
    }
}

/// A transaction that has proven its token: until it ends nobody else can have the lease. Dropped, it is rolled back.
#[derive(Debug)]
pub struct FencedTx {
    tx: Transaction<'static, Postgres>,
}

impl FencedTx {
    /// Makes the writes true, together or not at all.
    pub async fn commit(self) -> Result<(), StoreError> {
        let committed = self.tx.commit().await;
        committed.map_err(StoreError::postgres("commit a guarded transaction"))
    }

    /// Undoes the writes.
    pub async fn rollback(self) -> Result<(), StoreError> {
        let undone = self.tx.rollback().await;
        undone.map_err(StoreError::postgres("roll a guarded transaction back"))
    }
}

impl Deref for FencedTx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.tx
    }
}

impl DerefMut for FencedTx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.tx
    }
}
