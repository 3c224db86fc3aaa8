//! Redlock over independent Redis masters, by `rslock`: quorum or nothing, renewed while it is held, released when it
//! is dropped, and never in the way of a caller that gives up.
//!
//! # What it gives, and what not
//!
//! With three masters one may be down or frozen; with two away nobody gets a lock, and [`LockError::QuorumLost`] names
//! each master with its answer. A lock saves double work; it is no proof: a holder may be stopped past its time to live,
//! a master may come back empty, and independent masters give no number that grows. What must not happen twice is
//! guarded by the database as well, with the token of [`Redlock::lock_fenced`] or one of the caller's own.
//!
//! # What it costs
//!
//! One round trip to all masters at once, and one at each third of the time to live. A *frozen* master makes each call wait
//! for its reply (half a second), or for a new connection (a second, one caller after the other): therefore the time to
//! live is ten seconds at least. A dead one costs nothing.
//!
//! # Masters
//!
//! `redis://user:password@host:port/database`, or `rediss://` with the certificates that the machine trusts
//! (`SSL_CERT_FILE` names others, `?sslrootcert=/path/ca.pem` those for one URL). Sentinel and Cluster are no masters: a
//! failover forgets locks.

mod held;
mod master;
mod renewal;
mod url;

use std::time::{Duration, Instant};

use futures::future::join_all;
use rslock::LockManager;
use sqlx::PgPool;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

pub use held::Held;
use held::Owned;
use master::Master;
pub use master::{Answer, MasterAnswer};
use renewal::Said;

use crate::lease::{self, Guard};
use crate::{Store, StoreError};

/// The shortest time to live that survives the slow answers of a frozen master.
pub const SHORTEST_TTL: Duration = Duration::from_secs(10);

/// How long a caller waits for an answer at most.
const DEADLINE: Duration = Duration::from_secs(8);

/// How long the database may take for one step to a fencing token.
const TOKEN_PATIENCE: Duration = Duration::from_secs(3);

/// How often a token is tried that another took first.
const TOKEN_TRIES: u32 = 5;

/// How often a lock is tried that nobody holds on most of the masters.
const TRIES: u32 = 3;

/// The longest pause between two tries.
const BETWEEN_TRIES: Duration = Duration::from_millis(50);

/// Why a lock could neither be taken nor be seen in other hands.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A URL is none that a lock master can have, as those of Sentinel and Cluster, or names a file of authorities that
    /// cannot be trusted.
    #[error("lock master {position} has no usable redis:// or rediss:// URL")]
    Url {
        /// Its place in the list, from 1; the URL itself may hold a password.
        position: usize,
        /// What is wrong with it.
        source: redis::RedisError,
    },
    /// The list of masters is empty.
    #[error("there is no lock master")]
    NoMaster,
    /// The time to live is below [`SHORTEST_TTL`].
    #[error("a Redlock must live for at least {SHORTEST_TTL:?}")]
    TooShort,
    /// Fewer than a quorum of the masters serve us.
    #[error("no quorum of the lock masters: {}", list(answers))]
    QuorumLost {
        /// Each master with its answer.
        answers: Vec<MasterAnswer>,
    },
    /// No answer in time.
    #[error("the lock masters did not answer in time")]
    Deadline,
    /// The lock client failed.
    #[error("could not take the lock")]
    Client(#[source] rslock::LockError),
    /// The lock was taken, but not its fencing token; it is given back.
    #[error("could not take the fencing token of the lock")]
    Fence(#[source] StoreError),
}

fn list(answers: &[MasterAnswer]) -> String {
    let answers: Vec<String> = answers.iter().map(ToString::to_string).collect();
    answers.join(", ")
}

/// Takes Redlocks.
#[derive(Clone, Debug)]
pub struct Redlock {
    manager: LockManager,
    masters: Vec<Master>,
    ttl: Duration,
}

impl Redlock {
    /// Locks on these masters, URLs of independent nodes (one will do where one Redis is all there is). Connects when
    /// first used.
    pub fn new(urls: Vec<String>, ttl: Duration) -> Result<Self, LockError> {
        if ttl < SHORTEST_TTL {
            return Err(LockError::TooShort);
        }
        let mut clients = Vec::with_capacity(urls.len());
        for (index, url) in urls.into_iter().enumerate() {
            clients.push(url::open(&url).map_err(|source| LockError::Url {
                position: index + 1,
                source,
            })?);
        }
        if clients.is_empty() {
            return Err(LockError::NoMaster);
        }
        let masters = clients.iter().cloned().map(Master::new).collect();
        let mut manager = LockManager::from_clients(clients);
        // The lock client cannot tell why a try failed; tries are repeated here, where it is worth it.
        manager.set_retry(1, BETWEEN_TRIES);
        Ok(Self {
            manager,
            masters,
            ttl,
        })
    }

    /// How long a lock outlives a holder that vanished.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Takes the lock, or answers `None` while another holds it. The caller may be dropped at any point: a lock that
    /// nobody received is released. Answers within eight seconds.
    pub async fn lock(&self, key: &str) -> Result<Option<Held>, LockError> {
        let (send, receive) = oneshot::channel();
        let (redlock, key) = (self.clone(), key.to_owned());
        // A task of its own: dropped half-way, the client would leave the key behind on some of the masters.
        crate::task::spawn(async move {
            let answer = redlock.attempts(&key).await;
            let _ = send.send(answer);
        });
        match timeout(DEADLINE, receive).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(LockError::Deadline),
        }
    }

    /// Takes the lock and a fencing token of the key `redlock:{key}`, higher than that of every earlier holder, with which
    /// the holder writes ([`Guard::begin`]). A row of a fenced table belongs to it when its key begins with `redlock:`.
    /// Whoever is stopped on the way, for however long, takes no token above that of a later holder.
    pub async fn lock_fenced(
        &self,
        key: &str,
        db: &PgPool,
    ) -> Result<Option<(Held, Guard)>, LockError> {
        let name = format!("redlock:{key}");
        // Read while no later holder can exist, so that the step from it fails once there was one.
        let mut known = token(lease::known_fence(db, &name)).await?;
        let Some(held) = self.lock(key).await? else {
            return Ok(None);
        };
        for _ in 0..TOKEN_TRIES {
            if let Some(fence) = token(lease::step_fence(db, &name, known)).await? {
                let lost = held.remaining().is_zero();
                return Ok((!lost).then_some((held, Guard { name, fence })));
            }
            // An earlier holder took its token late, or a later one has the lock: the masters know.
            known = token(lease::known_fence(db, &name)).await?;
            match held.confirm().await {
                Said::Held => {}
                Said::Gone => return Ok(None),
                Said::Unknown => return Err(LockError::Deadline),
            }
        }
        let tried = "take a fencing token that others take as well";
        Err(LockError::Fence(StoreError::late(Store::PostgreSql, tried)))
    }

    async fn attempts(&self, key: &str) -> Result<Option<Held>, LockError> {
        for attempt in 1.. {
            let since = Instant::now();
            match self.manager.lock(key.as_bytes(), self.ttl).await {
                Ok(lock) => {
                    let owned = Owned {
                        manager: self.manager.clone(),
                        masters: self.masters.clone(),
                        lock,
                        ttl: self.ttl,
                    };
                    return Ok(Some(Held::start(owned, since)));
                }
                Err(rslock::LockError::Unavailable | rslock::LockError::TtlExceeded) => {}
                Err(error) => return Err(LockError::Client(error)),
            }
            let asked = self.masters.iter().map(|master| master.ask(key));
            let answers = join_all(asked).await;
            let count = |counts: fn(&Answer) -> bool| {
                let counted = answers.iter().filter(|answer| counts(&answer.answer));
                counted.count() > self.masters.len() / 2
            };
            if !count(Answer::serves) {
                return Err(LockError::QuorumLost { answers });
            }
            // Contenders can split several masters between them so that nobody wins.
            if count(|answer| *answer == Answer::Held) || attempt == TRIES {
                return Ok(None);
            }
            sleep(BETWEEN_TRIES.mul_f64(rand::random())).await;
        }
        unreachable!("the last attempt returns")
    }
}

/// Waits for one step to a token.
async fn token<T>(step: impl Future<Output = Result<T, StoreError>>) -> Result<T, LockError> {
    let late = || StoreError::late(Store::PostgreSql, "take a fencing token");
    let answer = timeout(TOKEN_PATIENCE, step).await;
    answer
        .unwrap_or_else(|_| Err(late()))
        .map_err(LockError::Fence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_at_once() {
        let url = || vec!["redis://127.0.0.1:1".to_owned()];

        assert!(matches!(
            Redlock::new(url(), Duration::from_secs(3)),
            Err(LockError::TooShort)
        ));
        assert!(matches!(
            Redlock::new(Vec::new(), SHORTEST_TTL),
            Err(LockError::NoMaster)
        ));
        let wrong = Redlock::new(vec!["redis-sentinel://a:1".to_owned()], SHORTEST_TTL);
        assert!(matches!(wrong, Err(LockError::Url { position: 1, .. })));
    }

    #[tokio::test]
    async fn masters_that_do_not_answer_are_not_a_lock_in_other_hands() {
        let urls = (1..=3)
            .map(|port| format!("redis://127.0.0.1:{port}"))
            .collect();
        let redlock = Redlock::new(urls, SHORTEST_TTL).expect("good settings");

        let answer = redlock.lock("job").await;

        let told = answer.expect_err("no quorum").to_string();
        assert_eq!(
            told,
            "no quorum of the lock masters: 127.0.0.1:1 refused, 127.0.0.1:2 refused, 127.0.0.1:3 refused"
        );
    }
}
