//! Who is calling: tokens signed with `EdDSA`, sessions that can end at any moment, credentials between services, and the
//! word of a gateway for a caller.
//!
//! A gateway ([`Edge`]) verifies a token once, looks its session up once a minute, and in between knows who is gone: every
//! end is published when it happens, and read from PostgreSQL four times a second for the case that the message is lost.
//! With each request it passes its word on ([`IDENTITY_HEADER`]), signed with `SERVICE_SECRET` for that method, target,
//! request id and half a minute, and the service asks nobody. A service that is called without a word, or does not believe
//! it, verifies the token and asks the stores itself.
//!
//! | away | what holds |
//! | --- | --- |
//! | a message | the end is read from PostgreSQL: refused within a second of the answer to whoever ended the session |
//! | Redis | the same; who is not known yet is looked up in PostgreSQL; no session ends, and who tries is told so (503) |
//! | PostgreSQL | after three quarters of a second a gateway vouches for nobody: services ask Redis, which remembers for ten seconds who lives, and then answer 503; known ends, bad and expired tokens are refused |
//! | both | services answer 503 to whoever needs a session |

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
