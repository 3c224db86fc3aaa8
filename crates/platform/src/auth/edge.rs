//! Callers at the edge of the cluster: a token is verified once, its session or a key looked up once a minute, and in between
//! nothing is asked: whose session ended ([`Endings`]), and which key changed, is known.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use contracts::{ApiKeyId, UserId};
use http::{HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};

use super::caller::{Borne, borne};
use super::endings::Endings;
use super::recent::Recent;
use super::vouch::{Occasion, spell};
use super::{Auth, AuthError, Identity, KnownKey, TokenError};
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
    tokens: Arc<Recent<[u8; 32], Arc<KnownToken>>>,
    endings: Endings,
    born: Instant,
}

/// A caller whose token or key is good.
#[derive(Clone, Debug)]
pub enum Known {
    /// The bearer of a token.
    Token(Arc<KnownToken>),
    /// The bearer of an API key.
    Key(Arc<KnownKey>),
}

/// Whose requests are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject<'a> {
    /// Those of a user, of all sessions and with all keys.
    pub user: &'a UserId,
    /// Those with one key of that user, where it bears one.
    pub key: Option<&'a ApiKeyId>,
}

/// What is known of a request's caller without any work.
#[derive(Clone, Debug)]
pub enum Recalled {
    /// It bears neither token nor key, or one that is known, or known not to be good.
    Caller(Result<Option<Known>, AuthError>),
    /// It bears a token that was not verified, or a key that was not looked up.
    Unknown,
}

/// The bearer of a token that was verified.
#[derive(Debug)]
pub struct KnownToken {
    identity: Identity,
    spelled: String,
    expires_at: i64,
    /// Milliseconds from the edge's birth until when the session is taken to live; 0 where it was not looked up yet.
    lives_until: AtomicU64,
    /// The era of the endings in which it was looked up.
    era: AtomicU64,
}

impl Known {
    /// Whose requests are counted together.
    pub fn subject(&self) -> Subject<'_> {
        match self {
            Self::Token(token) => Subject {
                user: &token.identity.user_id,
                key: None,
            },
            Self::Key(key) => Subject {
                user: &key.identity().user_id,
                key: Some(&key.identity().key_id),
            },
        }
    }
}

impl Edge {
    /// An edge that knows nobody yet, and vouches for nobody until it hears who is gone. Which keys change is heard of by
    /// [`super::ApiKeys::follow`].
    pub fn new(platform: &Platform, tasks: &Tasks) -> Self {
        let endings = Endings::new(platform.clock.clone());
        endings.follow(platform, tasks);
        Self {
            auth: platform.auth.clone(),
            tokens: Arc::new(Recent::new(REMEMBERED)),
            endings,
            born: Instant::now(),
        }
    }

    /// What is known of a request's caller by what was done before: no signature is verified and no store is asked.
    pub fn recall(&self, headers: &HeaderMap) -> Recalled {
        let known = match borne(headers) {
            Err(error) => Err(error),
            Ok(Borne::Nothing) => Ok(None),
            Ok(Borne::Token(token)) => match self.tokens.get(&digest(token)) {
                Some(known) => self.judge(known).map(Some),
                None => return Recalled::Unknown,
            },
            Ok(Borne::Key(text)) => match self.auth.api_keys().recall(text) {
                Some(known) => known.map(|key| Some(Known::Key(key))),
                // No word is given for it meanwhile, and the service judges.
                None => match self.auth.api_keys().recall_blindly(text) {
                    Some(key) => Ok(Some(Known::Key(key))),
                    None => return Recalled::Unknown,
                },
            },
        };
        Recalled::Caller(known)
    }

    /// Whose token or key a request bears; `None` where it bears none. An unknown token is verified, an unknown key is looked
    /// up.
    ///
    /// # Errors
    /// [`AuthError`], but never that a session could not be checked.
    pub async fn present(&self, headers: &HeaderMap) -> Result<Option<Known>, AuthError> {
        match self.recall(headers) {
            Recalled::Caller(known) => return known,
            Recalled::Unknown => {}
        }
        match borne(headers)? {
            Borne::Nothing => Ok(None),
            Borne::Key(text) => {
                let key = self.auth.api_keys().find(text).await?;
                Ok(Some(Known::Key(key)))
            }
            Borne::Token(token) => {
                let claims = self.auth.verify(token)?;
                let known = Arc::new(KnownToken {
                    spelled: spell(&claims.identity),
                    identity: claims.identity,
                    expires_at: claims.exp,
                    lives_until: AtomicU64::new(0),
                    era: AtomicU64::new(0),
                });
                self.tokens.insert(digest(token), known.clone());
                self.judge(known).map(Some)
            }
        }
    }

    /// The header by which a service believes this request to be the caller's; `None` where who is gone is not known well
    /// enough, and the service asks for itself.
    ///
    /// # Errors
    /// [`AuthError::Ended`], [`AuthError::Key`].
    pub async fn vouch(
        &self,
        known: &Known,
        occasion: Occasion<'_>,
    ) -> Result<Option<HeaderValue>, AuthError> {
        match known {
            Known::Token(token) => self.vouch_for_token(token, occasion).await,
            Known::Key(key) => self.vouch_for_key(key, occasion).await,
        }
    }

    fn judge(&self, known: Arc<KnownToken>) -> Result<Known, AuthError> {
        if known.expires_at <= self.auth.0.clock.now().utc().timestamp() {
            return Err(TokenError::Expired.into());
        }
        if self.endings.contains(&known.identity.session_id) {
            return Err(AuthError::Ended);
        }
        Ok(Known::Token(known))
    }

    async fn vouch_for_token(
        &self,
        known: &KnownToken,
        occasion: Occasion<'_>,
    ) -> Result<Option<HeaderValue>, AuthError> {
        let session = &known.identity.session_id;
        let freshness = self.endings.freshness();
        let (asked, era) = (self.born.elapsed(), freshness.era());
        let lives_until = Duration::from_millis(known.lives_until.load(Ordering::Acquire));
        if asked >= lives_until || known.era.load(Ordering::Acquire) != era {
            // In a box: few requests ask, and all would carry what it takes.
            match Box::pin(self.auth.check_living(session)).await {
                Ok(()) => {}
                Err(AuthError::Unchecked) => return Ok(None),
                Err(error) => return Err(error),
            }
            let until = u64::try_from((asked + LOOKED_UP).as_millis()).unwrap_or(u64::MAX);
            known.era.store(era, Ordering::Release);
            known.lives_until.store(until, Ordering::Release);
        }
        // In this order and last: the store may have spoken of a moment ago, ends that were not heard of for a while come
        // together with the news that they are heard of again, and ends that were too many to keep go in a new era.
        let is_fresh = freshness.is_fresh();
        if self.endings.contains(session) {
            return Err(AuthError::Ended);
        }
        if !is_fresh || freshness.era() != era {
            return Ok(None);
        }
        let now = self.auth.0.clock.now();
        Ok(Some(self.auth.vouch(&known.spelled, occasion, now)))
    }

    async fn vouch_for_key(
        &self,
        known: &Arc<KnownKey>,
        occasion: Occasion<'_>,
    ) -> Result<Option<HeaderValue>, AuthError> {
        let keys = self.auth.api_keys();
        let known = match Box::pin(keys.renew(known)).await {
            Ok(Some(known)) => known,
            Ok(None) | Err(AuthError::KeyUnchecked) => return Ok(None),
            Err(error) => return Err(error),
        };
        let now = self.auth.0.clock.now();
        known.used(now);
        Ok(Some(self.auth.vouch(known.spelled(), occasion, now)))
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}
