//! Callers at the edge of the cluster: a token is verified once, its session looked up once a minute, and in between
//! nothing is asked: whose session ended is known ([`Endings`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use contracts::UserId;
use http::{HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};

use super::caller::bearer;
use super::endings::Endings;
use super::recent::Recent;
use super::vouch::Occasion;
use super::{Auth, AuthError, Identity, TokenError};
use crate::Platform;
use crate::lifecycle::Tasks;

/// How many tokens are remembered; those that were not seen lately go first.
const REMEMBERED: usize = 32_768;
/// How long a session that was looked up is taken to live unless its end is told: less than an end is kept.
const LOOKED_UP: Duration = Duration::from_secs(60);

/// Knows the callers of a gateway. Clones share everything.
#[derive(Clone, Debug)]
pub struct Edge {
    auth: Auth,
    /// By the digest of the token: what is kept here opens nothing.
    tokens: Arc<Recent<[u8; 32], Arc<Known>>>,
    endings: Endings,
    born: Instant,
}

/// A caller whose token is good.
#[derive(Debug)]
pub struct Known {
    identity: Identity,
    spelled: String,
    expires_at: i64,
    /// Milliseconds from the edge's birth until when the session is taken to live; 0 where it was not looked up yet.
    lives_until: AtomicU64,
}

impl Known {
    /// The user, whose requests are counted together.
    pub fn user(&self) -> &UserId {
        &self.identity.user_id
    }
}

impl Edge {
    /// An edge that knows nobody yet, and vouches for nobody until it hears who is gone.
    pub fn new(platform: &Platform, tasks: &Tasks) -> Self {
        let endings = Endings::default();
        endings.follow(platform, tasks);
        Self {
            auth: platform.auth.clone(),
            tokens: Arc::new(Recent::new(REMEMBERED)),
            endings,
            born: Instant::now(),
        }
    }

    /// Whose token a request bears, by what is known here alone; `None` where it bears none. API keys are told apart
    /// here as well, once there are any.
    ///
    /// # Errors
    /// [`AuthError`], but never that the session could not be checked.
    pub fn present(&self, headers: &HeaderMap) -> Result<Option<Arc<Known>>, AuthError> {
        let Some(token) = bearer(headers)? else {
            return Ok(None);
        };
        let digest = Sha256::digest(token).into();
        let known = match self.tokens.get(&digest) {
            Some(known) => known,
            None => {
                let claims = self.auth.verify(token)?;
                let known = Arc::new(Known {
                    spelled: claims.identity.spelled(),
                    identity: claims.identity,
                    expires_at: claims.exp,
                    lives_until: AtomicU64::new(0),
                });
                self.tokens.insert(digest, known.clone());
                known
            }
        };
        if known.expires_at <= self.auth.0.clock.now().utc().timestamp() {
            return Err(TokenError::Expired.into());
        }
        if self.endings.contains(&known.identity.session_id) {
            return Err(AuthError::Ended);
        }
        Ok(Some(known))
    }

    /// The header by which a service believes this request to be the caller's; `None` where who ended is not known well
    /// enough, and the service asks for itself.
    ///
    /// # Errors
    /// [`AuthError::Ended`].
    pub async fn vouch(
        &self,
        known: &Known,
        occasion: Occasion<'_>,
    ) -> Result<Option<HeaderValue>, AuthError> {
        let session = &known.identity.session_id;
        let asked = self.born.elapsed();
        let lives_until = Duration::from_millis(known.lives_until.load(Ordering::Acquire));
        if asked >= lives_until {
            match self.auth.check_living(session).await {
                Ok(()) => {}
                Err(AuthError::Unchecked) => return Ok(None),
                Err(error) => return Err(error),
            }
            let until = u64::try_from((asked + LOOKED_UP).as_millis()).unwrap_or(u64::MAX);
            known.lives_until.store(until, Ordering::Release);
        }
        // In this order and last: the store may have spoken of a moment ago, and ends that were not heard of for a while come
        // together with the news that they are heard of again.
        let is_fresh = self.endings.is_fresh();
        if self.endings.contains(session) {
            return Err(AuthError::Ended);
        }
        if !is_fresh {
            return Ok(None);
        }
        let now = self.auth.0.clock.now();
        Ok(Some(self.auth.vouch(&known.spelled, occasion, now)))
    }
}
