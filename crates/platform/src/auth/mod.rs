//! Who is calling: tokens signed with `EdDSA`, sessions that can end at any moment, credentials between services, and the
//! word of a gateway for a caller.

mod caller;
mod credential;
mod edge;
mod endings;
mod error;
mod recent;
mod sessions;
mod tokens;
mod vouch;

use std::sync::Arc;

use coordination::Keys;
use fred::clients::Pool;
use secrecy::SecretString;
use sqlx::PgPool;

pub use caller::{Admin, Caller, CurrentUser};
pub use credential::{SERVICE_HEADER, credential};
pub use edge::{Edge, Known};
pub use endings::Endings;
pub use error::AuthError;
pub use sessions::Sessions;
pub use tokens::{Claims, Identity, TokenError, Tokens};
pub use vouch::{IDENTITY_HEADER, Occasion};

use crate::Clock;
use credential::ServiceMac;

/// Verifies callers; one for the process.
#[derive(Clone, Debug)]
pub struct Auth(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tokens: Tokens,
    sessions: Sessions,
    service_key: ServiceMac,
    sandbox: bool,
    clock: Clock,
}

impl Auth {
    /// Puts the parts together.
    ///
    /// # Errors
    /// Where the signing key is not a base64 seed of 32 bytes.
    pub fn new(
        signing_key: &SecretString,
        service_secret: &SecretString,
        sandbox: bool,
        (db, redis, keys): (PgPool, Pool, Keys),
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let tokens = Tokens::new(signing_key)?;
        let sessions = Sessions::new(db, redis, keys);
        Ok(Self(Arc::new(Inner {
            tokens,
            sessions,
            service_key: credential::keyed(service_secret),
            sandbox,
            clock,
        })))
    }

    /// Signs tokens and publishes the public key.
    pub fn tokens(&self) -> &Tokens {
        &self.0.tokens
    }

    /// Begins and ends sessions.
    pub fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    /// Whether the unsafe conveniences are open, to callers on loopback.
    pub fn sandbox(&self) -> bool {
        self.0.sandbox
    }
}
