//! Who is calling: tokens signed with `EdDSA`, sessions that can end at any moment, credentials between services, and the
//! word of a gateway for a caller.
//!
//! A gateway ([`Edge`]) verifies a token once, looks its session up once a minute, and in between knows who is gone: every
//! end is published when it happens, and read from PostgreSQL four times a second for the case that the message is lost.
//! With each request it passes its word on ([`IDENTITY_HEADER`]), signed with `SERVICE_SECRET` for that method, target,
//! request id and half a minute, and the service asks nobody. A service that is called without a word, or does not believe
//! it, verifies the token and asks the stores itself.
//!
//! Programs call with an API key ([`ApiKeys`]) in place of a token, and may do what its scopes grant on routes that want one
//! (`wanted`), as far as their user may. Who sends both is refused (400): whom they speak for may differ.
//!
//! Admins may do everything with what belongs to others. Other roles carry permissions, which are the same scopes: on a route
//! that wants one of those, who has it is as good as an admin (`Roles`).
//!
//! | away | what holds |
//! | --- | --- |
//! | a message | the end is read from PostgreSQL: refused within a second of the answer to whoever ended the session |
//! | Redis | the same; who is not known yet is looked up in PostgreSQL; no session ends, and who tries is told so (503) |
//! | PostgreSQL | after three quarters of a second a gateway vouches for nobody: services ask Redis, which remembers for ten seconds who lives, and then answer 503; known ends, bad and expired tokens are refused |
//! | both | services answer 503 to whoever needs a session |

pub mod api_key;
mod caller;
mod credential;
mod edge;
mod endings;
mod error;
mod freshness;
mod latest;
mod link;
mod recent;
mod roles;
mod sessions;
#[cfg(test)]
pub mod tests;
mod tokens;
mod vouch;

use std::sync::Arc;
use std::time::Duration;

use coordination::Keys;
use fred::clients::Pool;
use secrecy::SecretString;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

pub use api_key::{ApiKeySecret, ApiKeys, KeyIdentity, KnownKey};
pub use caller::{API_KEY_HEADER, Admin, Caller, CurrentUser, Proof};
pub use credential::{SERVICE_HEADER, credential};
pub use edge::{Edge, Known, KnownToken, Recalled, Subject};
pub use endings::Endings;
pub use error::AuthError;
pub use sessions::Sessions;
pub use tokens::{Claims, Identity, TokenError, Tokens};
pub use vouch::{IDENTITY_HEADER, Occasion};

use crate::Clock;
use credential::ServiceMac;
use roles::Roles;

/// How long a connection may take that reads who is gone.
const WATCH_PATIENCE: Duration = Duration::from_secs(3);

/// Verifies callers; one for the process.
#[derive(Clone, Debug)]
pub struct Auth(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tokens: Tokens,
    sessions: Sessions,
    api_keys: ApiKeys,
    roles: Roles,
    watch: PgPool,
    service_key: ServiceMac,
    sandbox: bool,
    clock: Clock,
}

impl Auth {
    /// Puts the parts together.
    ///
    /// # Errors
    /// Where a signing key is not a base64 seed of 32 bytes.
    pub fn new(
        signing_key: &SecretString,
        service_secret: &SecretString,
        sandbox: bool,
        (db, redis, keys): (PgPool, Pool, Keys),
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let tokens = Tokens::new(signing_key)?;
        // The services may exhaust their pool; who is gone must be known all the same, or every caller would be looked up, from
        // the pool that is exhausted.
        // One connection for each of the two readers: a slow read of the one must not make the other late.
        let watch = PgPoolOptions::new()
            .max_connections(2)
            .acquire_timeout(WATCH_PATIENCE)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(db.connect_options().as_ref().clone());
        let api_keys = ApiKeys::new(db.clone(), watch.clone(), clock.clone());
        let roles = Roles::new(watch.clone());
        let sessions = Sessions::new(db, redis, keys);
        Ok(Self(Arc::new(Inner {
            tokens,
            sessions,
            api_keys,
            roles,
            watch,
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

    /// Looks API keys up.
    pub fn api_keys(&self) -> &ApiKeys {
        &self.0.api_keys
    }

    /// Connections on which nobody waits behind the services.
    pub(super) fn watch(&self) -> &PgPool {
        &self.0.watch
    }

    /// Whether the unsafe conveniences are open, to callers on loopback.
    pub fn sandbox(&self) -> bool {
        self.0.sandbox
    }
}
