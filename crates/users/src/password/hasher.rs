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

/// 19 MiB and two passes: the least that OWASP recommends.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
/// How long a caller waits for a turn; well below the 8 s within which a request is answered.
const PATIENCE: Duration = Duration::from_secs(3);

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
    decoy: PasswordHash,
}

impl Hasher {
    /// Hashes so many at once while so many more may wait.
    ///
    /// # Errors
    /// Where hashing is impossible here.
    pub async fn new(at_once: usize, waiting: usize) -> Result<Self, HashError> {
        let mut hasher = Self {
            turns: Arc::new(Semaphore::new(at_once)),
            queue: Arc::new(Semaphore::new(at_once + waiting)),
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
        self.run(move || {
            let hash: phc::PasswordHash = argon2()?.hash_password(password.expose().as_bytes())?;
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
            match argon2()?.verify_password(password.expose().as_bytes(), &hash) {
                Ok(()) => Ok(true),
                Err(password_hash::Error::PasswordInvalid) => Ok(false),
                Err(error) => Err(error.into()),
            }
        })
        .await
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

fn argon2() -> anyhow::Result<Argon2<'static>> {
    let params = Params::new(MEMORY_KIB, PASSES, 1, None)?;
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
        let hasher = Hasher::new(1, 4).await.unwrap();

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
    async fn more_callers_than_may_wait_are_turned_away() {
        let hasher = Hasher::new(1, 2).await.unwrap();

        let all = futures::future::join_all((0..10).map(|_| hasher.hash(secret("abcdefg1")))).await;

        let (done, busy): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
        assert_eq!((done.len(), busy.len()), (3, 7));
        assert!(
            busy.iter()
                .all(|result| matches!(result, Err(HashError::Busy)))
        );
    }
}
