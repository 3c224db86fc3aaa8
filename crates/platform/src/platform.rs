//! What a service is handed at start.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use contracts::Service;
use coordination::Keys;
use fred::clients::Pool;
use sqlx::PgPool;
use tokio::runtime::Handle;

use crate::auth::Auth;
use crate::lifecycle::Readiness;
use crate::redis::{Redis, Switches, driven_by};
use crate::{Clock, Settings};

type InstanceName = Arc<dyn Fn() -> String + Send + Sync>;

/// The stores, the clock and the identity of this replica. Clones share everything.
#[derive(Clone)]
pub struct Platform {
    /// The shared settings.
    pub settings: Arc<Settings>,
    /// PostgreSQL, the last word.
    pub db: PgPool,
    /// Redis, which coordinates.
    pub redis: Pool,
    /// The URL of Redis, for clients that block or subscribe.
    pub redis_url: Arc<str>,
    /// Which server is the master of Redis.
    pub redis_switches: Switches,
    /// The names of Redis keys.
    pub keys: Keys,
    /// The time.
    pub clock: Clock,
    /// Tokens and sessions.
    pub auth: Auth,
    /// Whether this replica takes requests.
    pub readiness: Readiness,
    instances: Arc<RwLock<HashMap<Service, InstanceName>>>,
    started: Instant,
}

impl Platform {
    /// Puts the parts together.
    pub fn new(
        settings: Arc<Settings>,
        db: PgPool,
        redis: Redis,
        keys: Keys,
        clock: Clock,
        auth: Auth,
        readiness: Readiness,
    ) -> Self {
        let instances = Arc::default();
        Self {
            settings,
            db,
            redis: redis.pool,
            redis_url: redis.url,
            redis_switches: redis.switches,
            keys,
            clock,
            auth,
            readiness,
            instances,
            started: Instant::now(),
        }
    }

    /// Tells by what name a service of this replica is known; the name may change when its slot was lost.
    pub fn name_instance(
        &self,
        service: Service,
        name: impl Fn() -> String + Send + Sync + 'static,
    ) {
        self.instances
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(service, Arc::new(name));
    }

    /// The name of this replica's instance of a service, as in `instance-0`.
    pub fn instance(&self, service: Service) -> String {
        let instances = self
            .instances
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        instances
            .get(&service)
            .map_or_else(|| "starting".to_owned(), |name| name())
    }

    /// A Redis client for one runtime alone: see [`crate::redis::driven_by`].
    ///
    /// # Errors
    /// Never where there is a runtime; it is the builder's to say.
    pub fn redis_on(&self, runtime: &Handle) -> anyhow::Result<Pool> {
        driven_by(runtime, &self.redis, &self.redis_switches)
    }

    /// How long this replica has run.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}

impl fmt::Debug for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Platform").finish_non_exhaustive()
    }
}
