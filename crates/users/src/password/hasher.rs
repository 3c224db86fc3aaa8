//! Hashing and comparing: Argon2id on threads of its own, so many at once and no more.

use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::{self, PasswordHasher, PasswordVerifier, phc};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::PasswordHash;
use crate::secret::SecretText;

/// How long a caller waits for a turn; well below the 8 s within which a request is answered.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a hash costs whoever makes it, and whoever guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// KiB of memory.
    pub memory: u32,
    /// How often the memory is gone through.
    pub passes: u32,
}

impl Default for Cost {
    /// 19 MiB and two passes: the least that OWASP recommends.
    fn default() -> Self {
        Self {
            memory: 19 * 1024,
            passes: 2,
        }
    }
}

/// Why a password was not hashed.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// More callers than can be served soon.
    #[error("too many passwords wait to be hashed")]
    Busy,
    /// A stored hash is none, or the machine is out of memory.
    #[error("hashing failed")]
    Failed(#[source] anyhow::Error),
}

/// Hashes and compares passwords.
#[derive(Clone, Debug)]
pub struct Hasher {
    turns: Arc<Semaphore>,
    queue: Arc<Semaphore>,
    cost: Cost,
    decoy: PasswordHash,
}

impl Hasher {
    /// Hashes so many at once while so many more may wait.
    ///
    /// # Errors
    /// Where hashing is impossible here.
    pub async fn new(cost: Cost, at_once: usize, waiting: usize) -> Result<Self, HashError> {
        let mut hasher = Self {
            turns: Arc::new(Semaphore::new(at_once)),
            queue: Arc::new(Semaphore::new(at_once + waiting)),
            cost,
            decoy: PasswordHash(String::new()),
        };
        let nobodys: [u8; 16] = rand::random();
        hasher.decoy = hasher
            .hash(SecretText::from(secrecy::SecretString::from(hex::encode(
                nobodys,
            ))))
            .await?;
        Ok(hasher)
    }

    /// Hashes a password with a salt of its own.
    ///
    /// # Errors
    /// [`HashError::Busy`] under overload.
    pub async fn hash(&self, password: SecretText) -> Result<PasswordHash, HashError> {
        let cost = self.cost;
        self.run(move || {
            let hash: phc::PasswordHash =
                argon2(cost)?.hash_password(password.expose().as_bytes())?;
            Ok(PasswordHash(hash.to_string()))
        })
        .await
    }

    /// Whether a password is the hashed one.
    ///
    /// # Errors
    /// [`HashError::Busy`] under overload.
    pub async fn verify(
        &self,
        password: SecretText,
        hash: PasswordHash,
    ) -> Result<bool, HashError> {
        self.run(move || {
            let hash = phc::PasswordHash::new(&hash.0)?;
            // At the cost that stands in the hash.
            match Argon2::default().verify_password(password.expose().as_bytes(), &hash) {
                Ok(()) => Ok(true),
                Err(password_hash::Error::PasswordInvalid) => Ok(false),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// Whether a hash was made at another cost than hashes are made at now.
    pub fn is_outdated(&self, hash: &PasswordHash) -> bool {
        let made = phc::PasswordHash::new(&hash.0).ok();
        let made = made.and_then(|hash| Params::try_from(&hash).ok());
        made.is_some_and(|made| {
            (made.m_cost(), made.t_cost()) != (self.cost.memory, self.cost.passes)
        })
    }

    /// Does the work of a comparison for a user who is not there, so that the time tells nothing.
    ///
    /// # Errors
    /// [`HashError::Busy`] under overload.
    pub async fn verify_nobody(&self, password: SecretText) -> Result<(), HashError> {
        self.verify(password, self.decoy.clone()).await.map(|_| ())
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> Result<T, HashError> {
        let place = Arc::clone(&self.queue)
            .try_acquire_owned()
            .map_err(|_| HashError::Busy)?;
        let turn = timeout(PATIENCE, Arc::clone(&self.turns).acquire_owned())
            .await
            .map_err(|_| HashError::Busy)?
            .map_err(|error| HashError::Failed(error.into()))?;
        let done = spawn_blocking(move || {
            // Held until the work is done, also where the caller has gone away.
            let _held = (place, turn);
            work()
        });
        done.await
            .map_err(anyhow::Error::from)
            .flatten()
            .map_err(HashError::Failed)
    }
}

fn argon2(cost: Cost) -> anyhow::Result<Argon2<'static>> {
    let params = Params::new(cost.memory, cost.passes, 1, None)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> SecretText {
        SecretText::from(secrecy::SecretString::from(text))
    }

    #[tokio::test]
    async fn a_hash_knows_its_password_and_no_other() {
        let hasher = Hasher::new(Cost::default(), 1, 4).await.unwrap();

        let hash = hasher.hash(secret("abcdefg1")).await.unwrap();

        assert!(
            hash.0.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{}",
            hash.0
        );
        assert!(
            hasher
                .verify(secret("abcdefg1"), hash.clone())
                .await
                .unwrap()
        );
        assert!(!hasher.verify(secret("abcdefg2"), hash).await.unwrap());
        hasher.verify_nobody(secret("abcdefg1")).await.unwrap();
    }

    #[tokio::test]
    async fn a_hash_of_another_cost_is_compared_at_that_and_known_to_be_outdated() {
        let hash = |cost| async move {
            let hasher = Hasher::new(cost, 1, 4).await.unwrap();
            let hash = hasher.hash(secret("abcdefg1")).await.unwrap();
            (hasher, hash)
        };
        let (before, old) = hash(Cost::default()).await;
        let dearer = Cost {
            memory: 8 * 1024,
            passes: 3,
        };
        let (after, new) = hash(dearer).await;

        for hash in [&old, &new] {
            let right = after.verify(secret("abcdefg1"), hash.clone()).await;
            assert!(right.unwrap());
        }
        assert!(after.is_outdated(&old) && !after.is_outdated(&new));
        assert!(before.is_outdated(&new) && !before.is_outdated(&old));
    }

    #[tokio::test]
    async fn more_callers_than_may_wait_are_turned_away() {
        let hasher = Hasher::new(Cost::default(), 1, 2).await.unwrap();

        let all = futures::future::join_all((0..10).map(|_| hasher.hash(secret("abcdefg1")))).await;

        let (done, busy): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
        assert_eq!((done.len(), busy.len()), (3, 7));
        assert!(
            busy.iter()
                .all(|result| matches!(result, Err(HashError::Busy)))
        );
    }
}
