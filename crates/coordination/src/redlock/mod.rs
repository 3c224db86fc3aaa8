//! Redlock over independent Redis masters, by `rslock`: quorum or nothing, renewed while it is held, released when it
//! is dropped, and never in the way of a caller that gives up.
//!
//! A Redlock saves double work; it is no proof. Independent masters give no growing number, so what must not happen
//! twice is guarded by the database as well. One frozen master makes a call wait for half a second to a second and a
//! half, therefore the time to live is ten seconds at least.

mod held;

use std::time::{Duration, Instant};

use rslock::LockManager;
use tokio::sync::oneshot;
use tokio::time::timeout;

pub use held::Held;

/// The shortest time to live that survives the slow answers of a frozen master.
pub const SHORTEST_TTL: Duration = Duration::from_secs(10);

/// How long a caller waits for an answer at most.
const DEADLINE: Duration = Duration::from_secs(8);

/// Why a lock could neither be taken nor be seen in other hands.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A URL is none that a lock master can have; sentinel and cluster URLs are not.
    #[error("lock master {position} has no usable redis:// URL")]
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
    /// Fewer than a quorum of the masters answer.
    #[error("{reachable} of {masters} lock masters answer: no quorum")]
    QuorumLost {
        /// How many answered.
        reachable: usize,
        /// How many there are.
        masters: usize,
    },
    /// No answer in time.
    #[error("the lock masters did not answer in time")]
    Deadline,
    /// The lock client failed.
    #[error("could not take the lock")]
    Client(#[source] rslock::LockError),
}

/// Takes Redlocks.
#[derive(Clone, Debug)]
pub struct Redlock {
    manager: LockManager,
    masters: Vec<Master>,
    ttl: Duration,
}

#[derive(Clone, Debug)]
struct Master {
    client: redis::Client,
    manager: LockManager,
}

impl Redlock {
    /// Locks on these masters, `redis://` URLs of independent nodes (one will do where one Redis is all there is).
    /// Connects when first used.
    pub fn new(urls: Vec<String>, ttl: Duration) -> Result<Self, LockError> {
        if ttl < SHORTEST_TTL {
            return Err(LockError::TooShort);
        }
        let mut masters = Vec::with_capacity(urls.len());
        for (index, url) in urls.into_iter().enumerate() {
            let client = redis::Client::open(url).map_err(|source| LockError::Url {
                position: index + 1,
                source,
            })?;
            let manager = LockManager::from_clients(vec![client.clone()]);
            masters.push(Master { client, manager });
        }
        if masters.is_empty() {
            return Err(LockError::NoMaster);
        }
        let mut manager =
            LockManager::from_clients(masters.iter().map(|master| master.client.clone()).collect());
        // Contenders can split several masters between them so that nobody wins; on one master a retry is idle.
        let tries = if masters.len() == 1 { 1 } else { 3 };
        manager.set_retry(tries, Duration::from_millis(50));
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
    /// nobody received is released.
    pub async fn lock(&self, key: &str) -> Result<Option<Held>, LockError> {
        let (send, receive) = oneshot::channel();
        let (redlock, key) = (self.clone(), key.to_owned());
        // A task of its own: dropped half-way, the client would leave the key behind on some of the masters.
        crate::task::spawn(async move {
            let answer = redlock.attempt(&key).await;
            let _ = send.send(answer);
        });
        match timeout(DEADLINE, receive).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(LockError::Deadline),
        }
    }

    async fn attempt(&self, key: &str) -> Result<Option<Held>, LockError> {
        let since = Instant::now();
        match self.manager.lock(key.as_bytes(), self.ttl).await {
            Ok(lock) => Ok(Some(Held::start(
                self.manager.clone(),
                lock,
                since,
                self.ttl,
            ))),
            Err(rslock::LockError::Unavailable | rslock::LockError::TtlExceeded) => {
                let reachable = self.reachable(key).await;
                if reachable > self.masters.len() / 2 {
                    Ok(None)
                } else {
                    Err(LockError::QuorumLost {
                        reachable,
                        masters: self.masters.len(),
                    })
                }
            }
            Err(error) => Err(LockError::Client(error)),
        }
    }

    /// Counts the masters that answer; the client itself does not tell silence from a lock in other hands.
    async fn reachable(&self, key: &str) -> usize {
        let answers = self.masters.iter().map(|master| master.answers(key));
        futures::future::join_all(answers)
            .await
            .into_iter()
            .filter(|answers| *answers)
            .count()
    }
}

impl Master {
    async fn answers(&self, key: &str) -> bool {
        // Where the key is seen the connection that exists was good enough.
        if let Ok(Some(_)) = self.manager.query_redis_for_key_value(key.as_bytes()).await {
            return true;
        }
        let ping = async {
            let mut connection = self.client.get_multiplexed_async_connection().await?;
            redis::cmd("PING")
                .query_async::<String>(&mut connection)
                .await
        };
        matches!(timeout(Duration::from_secs(2), ping).await, Ok(Ok(_)))
    }
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

        assert!(
            matches!(
                answer,
                Err(LockError::QuorumLost {
                    reachable: 0,
                    masters: 3
                })
            ),
            "{answer:?}"
        );
    }
}
