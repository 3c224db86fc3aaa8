//! Leases: one holder at a time for as long as it is alive, told as soon as it may no longer believe so, and a
//! fencing token that lets PostgreSQL refuse a holder that has not noticed.

mod batch;
mod fence;
mod watchdog;

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fred::clients::Pool;
use fred::types::scripts::Script;
use sqlx::{PgConnection, PgPool};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{Keys, StoreError, metrics, script};

pub use fence::{Fence, Guard, next_fence};

static ACQUIRE: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("acquire.lua")));
static CLAIM: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("claim.lua")));
static RENEW: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("renew.lua")));
static RELEASE: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("release.lua")));

/// Hands out leases.
#[derive(Clone, Debug)]
pub struct Leases {
    redis: Pool,
    db: PgPool,
    keys: Keys,
}

impl Leases {
    /// Keeps leases in Redis and the tokens they reached in the database.
    pub fn new(redis: Pool, db: PgPool, keys: Keys) -> Self {
        Self { redis, db, keys }
    }

    /// Takes the lease of a name, or answers `None` while another holds it. Two round trips, one to each store; after
    /// Redis has lost its data, some more.
    pub async fn acquire(&self, name: &str, ttl: Duration) -> Result<Option<Lease>, StoreError> {
        let owner = Uuid::new_v4().to_string();
        // From here on a future that is dropped, or an error, gives back what Redis may have granted.
        let mut attempt = Attempt {
            leases: self,
            name,
            owner: &owner,
            disarmed: false,
        };
        let mut floor = None;
        // The floor is asked for when the counter is gone, and once more when the database knows better than Redis.
        for _ in 0..4 {
            let since = Instant::now();
            let (granted, token) = self.ask(name, &owner, ttl, floor).await?;
            match granted {
                0 => {
                    attempt.disarmed = true;
                    metrics::lease("held");
                    return Ok(None);
                }
                1 if fence::record(&self.db, name, Fence(token)).await? => {
                    attempt.disarmed = true;
                    metrics::lease("acquired");
                    return Ok(Some(Lease::start(
                        self.clone(),
                        name,
                        &owner,
                        Fence(token),
                        since,
                        ttl,
                    )));
                }
                _ => floor = Some(fence::highest(&self.db, name).await?),
            }
        }
        metrics::lease("held");
        Ok(None)
    }

    async fn ask(
        &self,
        name: &str,
        owner: &str,
        ttl: Duration,
        floor: Option<i64>,
    ) -> Result<(i64, i64), StoreError> {
        let keys = vec![self.keys.lease(name), self.keys.lease_token(name)];
        let floor = floor.map(|floor| floor.to_string()).unwrap_or_default();
        let arguments = vec![owner.to_owned(), script::milliseconds(ttl), floor];
        script::run(&self.redis, &ACQUIRE, keys, arguments, "acquire a lease").await
    }

    async fn renew(&self, name: &str, owner: &str, ttl: Duration) -> Result<bool, StoreError> {
        let arguments = vec![owner.to_owned(), script::milliseconds(ttl)];
        let renewed: i64 = script::run(
            &self.redis,
            &RENEW,
            self.keys.lease(name),
            arguments,
            "renew a lease",
        )
        .await?;
        Ok(renewed == 1)
    }

    async fn release(&self, name: &str, owner: &str) -> Result<bool, StoreError> {
        let arguments = vec![owner.to_owned()];
        let released: i64 = script::run(
            &self.redis,
            &RELEASE,
            self.keys.lease(name),
            arguments,
            "release a lease",
        )
        .await?;
        Ok(released == 1)
    }
}

/// An acquisition under way; dropped before its end it gives the lease back.
struct Attempt<'a> {
    leases: &'a Leases,
    name: &'a str,
    owner: &'a str,
    disarmed: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.disarmed
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (leases, name, owner) = (
                self.leases.clone(),
                self.name.to_owned(),
                self.owner.to_owned(),
            );
            runtime.spawn(async move { watchdog::give_back(&leases, &name, &owner).await });
        }
    }
}

/// A lease that is held. It is renewed at a third of its time to live until it is released, dropped or lost.
#[derive(Debug)]
pub struct Lease {
    leases: Leases,
    name: String,
    owner: String,
    token: Fence,
    lost: CancellationToken,
    stop: CancellationToken,
    released: Arc<AtomicBool>,
}

impl Lease {
    fn start(
        leases: Leases,
        name: &str,
        owner: &str,
        token: Fence,
        since: Instant,
        ttl: Duration,
    ) -> Self {
        let lease = Self {
            leases,
            name: name.to_owned(),
            owner: owner.to_owned(),
            token,
            lost: CancellationToken::new(),
            stop: CancellationToken::new(),
            released: Arc::default(),
        };
        crate::task::spawn(watchdog::run(watchdog::Watched {
            leases: lease.leases.clone(),
            name: lease.name.clone(),
            owner: lease.owner.clone(),
            lost: lease.lost.clone(),
            stop: lease.stop.clone(),
            released: lease.released.clone(),
            since,
            ttl,
        }));
        lease
    }

    /// The name that is leased.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value that Redis keeps for this holder; no other holder ever has the same.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The fencing token: higher than that of every earlier holder.
    pub fn token(&self) -> Fence {
        self.token
    }

    /// Fires before another can have taken the lease, as far as this process gets to run at all.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// What a transaction needs to prove that it still acts for the holder; can be sent elsewhere.
    pub fn guard(&self) -> Guard {
        Guard {
            name: self.name.clone(),
            fence: self.token,
        }
    }

    /// Like [`Guard::verify`].
    pub async fn verify(&self, conn: &mut PgConnection) -> Result<bool, StoreError> {
        self.guard().verify(conn).await
    }

    /// Gives the lease back and says whether it was still held. Without Redis it expires by itself.
    pub async fn release(self) -> Result<bool, StoreError> {
        let released = self.leases.release(&self.name, &self.owner).await?;
        self.released.store(true, Ordering::Relaxed);
        Ok(released)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
