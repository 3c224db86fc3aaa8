//! Leases: one holder at a time for as long as it is alive, told as soon as it may no longer believe so, and a
//! fencing token by which PostgreSQL refuses a holder that has not noticed.
//!
//! # What a holder may rely on
//!
//! * **One at a time.** Redis gives a name to one owner until its time to live is over. The holder counts that time from
//!   *before* it asked, on its own monotonic clock and with a margin, so that [`Lease::lost`] fires before another can
//!   have the name. No clock is compared with another machine's.
//! * **Except when it may not.** A process that is stopped is told nothing until it goes on, and one whose whole *machine*
//!   is suspended (a snapshot, a laptop) not even then: the monotonic clock stood still as well. Redis ends a time to live
//!   by its wall clock: set forward, that gives the name away early. A Redis that lost its data, or a failover to a replica
//!   that had not heard of it, gives the name to a second holder while the first still believes in it;
//!   [`Replication`] makes the latter rare.
//! * **Never in the database.** Every acquisition has a [`Fence`] that is higher than all before it of that name, also
//!   after Redis lost its data. It is recorded in PostgreSQL before the caller gets the lease, and holds in all the cases
//!   above. A row in a table that is put
//!   under `coordination.fence_table` is written through [`Guard::begin`] or not at all, and a late holder's transaction
//!   answers [`FenceError::Fenced`].
//!
//! # What it costs
//!
//! Taking a lease, or many with [`Leases::acquire_many`], is one round trip to each store; giving it back is one to
//! Redis. Renewals go out at a third of the time to live, all of a process that are due about then in one round trip to each
//! server; one that is not answered soon is sent again over another connection. One task serves all leases of a [`Leases`] and its clones: keep one for a process.
//!
//! # Under faults
//!
//! | what happens | the holder | the others |
//! | --- | --- | --- |
//! | it dies | – | have the name after the time to live at most |
//! | it is stopped, then goes on | is told at once, and its guarded writes are refused | have the name after the time to live |
//! | it is cut off from Redis | is told before its time is over | as above |
//! | Redis loses its data | is told at its next renewal; guarded writes are refused as soon as there is a successor | have the name at once, with a higher token |
//! | PostgreSQL is away | keeps what it has and can write nothing | acquire nothing: [`StoreError::Unreachable`](crate::StoreError) |
//! | a caller is dropped while it acquires or holds | – | have the name as soon as the background task reached Redis |
//!
//! # Example
//!
//! ```no_run
//! # async fn example(redis: fred::clients::Pool, db: sqlx::PgPool) -> anyhow::Result<()> {
//! use coordination::{Keys, Leases};
//!
//! let leases = Leases::new(redis, db.clone(), Keys::new("shop"));
//! let Some(lease) = leases.acquire("report:7", std::time::Duration::from_secs(30)).await? else {
//!     return Ok(()); // Another replica has it.
//! };
//! let lost = lease.lost();
//! tokio::select! {
//!     () = lost.cancelled() => {} // Another may have it any moment: stop.
//!     written = async {
//!         let mut tx = lease.guard().begin(&db).await?;
//!         sqlx::query("update shop.reports set state = 'ready' where id = 7").execute(&mut *tx).await?;
//!         tx.commit().await?;
//!         anyhow::Ok(())
//!     } => written?,
//! }
//! lease.release().await?;
//! # Ok(())
//! # }
//! ```

mod fence;
mod guard;
mod held;
mod keeper;

use std::fmt;
use std::future::Future;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use fred::clients::Pool;
use fred::types::scripts::Script;
use sqlx::PgPool;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::script::{self, Call, Replication};
use crate::{Keys, Store, StoreError, metrics};

pub use fence::Fence;
pub(crate) use fence::{known_fence, step_fence};
pub use guard::{FenceError, FencedTx, Guard, OTHER_FENCE, STALE_FENCE, UNFENCED};
use held::Holder;
pub use held::Lease;
use keeper::Keeper;

static ACQUIRE: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("acquire.lua")));
static RENEW: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("renew.lua")));
static RELEASE: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("release.lua")));

/// How often Redis is asked for one acquisition: again with the floor when its counter is gone, and once more when the
/// database knows better.
const MOST_ROUNDS: u32 = 4;

/// The longest a call waits for one answer of a store.
const PATIENCE: Duration = Duration::from_secs(5);

/// Hands out leases, and renews them. Clones share one task; keep one for a process.
#[derive(Clone, Debug)]
pub struct Leases {
    inner: Arc<Inner>,
}

struct Inner {
    redis: Pool,
    db: PgPool,
    keys: Keys,
    replication: Replication,
    keeper: Keeper,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("keys", &self.keys)
            .field("replication", &self.replication)
            .finish_non_exhaustive()
    }
}

impl Leases {
    /// Keeps leases in Redis and the tokens they reached in the database.
    pub fn new(redis: Pool, db: PgPool, keys: Keys) -> Self {
        Self::replicated(redis, db, keys, Replication::NONE)
    }

    /// Like [`Self::new`]; a lease counts, and a renewal too, when so many replicas have confirmed it. One that fewer
    /// confirm is given back, and the answer is [`StoreError::NotReplicated`].
    pub fn replicated(redis: Pool, db: PgPool, keys: Keys, replication: Replication) -> Self {
        Self {
            inner: Arc::new(Inner {
                redis,
                db,
                keys,
                replication,
                keeper: Keeper::default(),
            }),
        }
    }

    /// Takes the lease of a name, or answers `None` while another holds it. One round trip to each store; after Redis
    /// has lost its data, some more. The caller may be dropped at any point: what Redis granted is then given back.
    pub async fn acquire(&self, name: &str, ttl: Duration) -> Result<Option<Lease>, StoreError> {
        let mut leases = self.acquire_many(&[name], ttl).await?;
        Ok(leases.pop().flatten())
    }

    /// Takes the lease of each name, with `None` for those that another holds, in the order of the names. As many round
    /// trips as [`Self::acquire`] needs for one. An error gives all of them back.
    pub async fn acquire_many<N: AsRef<str>>(
        &self,
        names: &[N],
        ttl: Duration,
    ) -> Result<Vec<Option<Lease>>, StoreError> {
        let wanted = names.iter().map(|name| Wanted {
            holder: Arc::new(Holder {
                name: name.as_ref().to_owned(),
                owner: Uuid::new_v4().to_string(),
            }),
            floor: None,
            state: Progress::Asking,
        });
        let acquisition = Acquisition {
            leases: self.clone(),
            wanted: wanted.collect(),
        };
        let (send, receive) = oneshot::channel();
        // A task of its own: a release that is sent while the request still waits in the client could overtake it.
        crate::task::spawn(async move {
            let _ = send.send(acquisition.run(ttl).await);
        });
        receive
            .await
            .unwrap_or_else(|_| Err(StoreError::late(Store::Redis, "acquire leases")))
    }

    /// Parts what is to be asked of different servers.
    fn by_server<T>(&self, all: Vec<T>, holder: impl Fn(&T) -> &Holder) -> Vec<Vec<T>> {
        let key = |one: &T| self.inner.keys.lease(&holder(one).name);
        let Some(client) = self.inner.redis.clients().first() else {
            return vec![all];
        };
        script::by_server(client, all, key)
    }

    /// Renews leases over the connection of this number.
    async fn renew(
        &self,
        connection: usize,
        holders: Vec<(&Holder, Option<Duration>)>,
    ) -> Vec<Result<i64, StoreError>> {
        let client = &self.inner.redis.clients()[connection];
        let shortest = holders.iter().filter_map(|(_, ttl)| *ttl).min();
        let calls: Vec<Call> = holders
            .into_iter()
            .map(|(holder, ttl)| self.call(holder, ttl))
            .collect();
        let replication = self.replication(shortest.unwrap_or_default());
        script::run_each(client, &RENEW, &calls, replication, "renew a lease").await
    }

    /// Gives leases back. Where a request may still be on its way, with the time for which it could be, it will take
    /// nothing when it arrives.
    async fn give_back(
        &self,
        holders: Vec<(&Holder, Option<Duration>)>,
    ) -> Vec<Result<i64, StoreError>> {
        let calls: Vec<Call> = holders
            .into_iter()
            .map(|(holder, doubt)| {
                let mut call = self.call(holder, doubt);
                if doubt.is_some() {
                    let keys = &self.inner.keys;
                    let farewell = keys.lease_farewell(&holder.name, &holder.owner);
                    call.keys.push(farewell);
                }
                call
            })
            .collect();
        script::run_each(
            self.inner.redis.next(),
            &RELEASE,
            &calls,
            Replication::NONE,
            "release a lease",
        )
        .await
    }

    async fn release(&self, holder: &Holder) -> Result<bool, StoreError> {
        let tried = "release a lease";
        let answers = self.give_back(vec![(holder, None)]);
        let mut answers = answer_of(Store::Redis, tried, PATIENCE, answers).await?;
        let answer = answers.pop().expect("an answer for each call")?;
        Ok(answer == 1)
    }

    fn call(&self, holder: &Holder, ttl: Option<Duration>) -> Call {
        let ttl = ttl.map(script::milliseconds);
        Call {
            keys: vec![self.inner.keys.lease(&holder.name)],
            arguments: std::iter::once(holder.owner.clone()).chain(ttl).collect(),
        }
    }

    /// Replicas may not take so long that the lease is over before they have answered.
    fn replication(&self, ttl: Duration) -> Replication {
        let configured = self.inner.replication;
        Replication {
            timeout: configured.timeout.min(ttl / 3),
            ..configured
        }
    }
}

/// Leases on the way to one caller. Dropped, also half-way, it gives back whatever Redis may have granted.
struct Acquisition {
    leases: Leases,
    wanted: Vec<Wanted>,
}

struct Wanted {
    holder: Arc<Holder>,
    /// The highest token the database knows, where it was asked.
    floor: Option<i64>,
    state: Progress,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Asking,
    Elsewhere,
    Granted(Fence, Instant),
}

impl Acquisition {
    async fn run(mut self, ttl: Duration) -> Result<Vec<Option<Lease>>, StoreError> {
        let mut rounds = 0;
        while self.round(ttl).await? {
            rounds += 1;
            if rounds == MOST_ROUNDS {
                let tried = "record a fencing token above one that grows meanwhile";
                return Err(StoreError::late(Store::PostgreSql, tried));
            }
        }
        let leases = std::mem::take(&mut self.wanted).into_iter().map(|wanted| {
            let holder = wanted.holder;
            let Progress::Granted(token, since) = wanted.state else {
                metrics::lease("held");
                return None;
            };
            metrics::lease("acquired");
            Some(Lease::start(&self.leases, holder, token, since, ttl))
        });
        let leases: Vec<Option<Lease>> = leases.collect();
        let late = |lease: &Lease| lease.remaining().is_zero();
        if leases.iter().flatten().any(late) {
            return Err(StoreError::late(
                Store::PostgreSql,
                "record a fencing token",
            ));
        }
        Ok(leases)
    }

    /// Asks for all that are neither granted nor elsewhere, and says whether some still are neither.
    async fn round(&mut self, ttl: Duration) -> Result<bool, StoreError> {
        let inner = &self.leases.inner;
        let since = Instant::now();
        let patience = PATIENCE.min(ttl);
        let open = || {
            let states = self.wanted.iter().enumerate();
            states.filter(|(_, wanted)| wanted.state == Progress::Asking)
        };
        let asked: Vec<usize> = open().map(|(index, _)| index).collect();
        let calls: Vec<Call> = open()
            .map(|(_, wanted)| {
                let floor = wanted.floor.map(|floor| floor.to_string());
                let mut call = self.leases.call(&wanted.holder, Some(ttl));
                let holder = &wanted.holder;
                call.keys.push(inner.keys.lease_token(&holder.name));
                let farewell = inner.keys.lease_farewell(&holder.name, &holder.owner);
                call.keys.push(farewell);
                call.arguments.push(floor.unwrap_or_default());
                call
            })
            .collect();
        let tried = "acquire a lease";
        let replication = self.leases.replication(ttl);
        let client = inner.redis.next();
        let answers = script::run_each::<(i64, i64)>(client, &ACQUIRE, &calls, replication, tried);
        let answers = answer_of(Store::Redis, tried, patience, answers).await?;

        let (mut granted, mut unknown) = (Vec::new(), Vec::new());
        for (index, answer) in asked.into_iter().zip(answers) {
            match answer? {
                (0, _) => self.wanted[index].state = Progress::Elsewhere,
                (1, token) => granted.push((index, token)),
                _ => unknown.push(index),
            }
        }
        if !granted.is_empty() {
            let keys = self.names(granted.iter().map(|(index, _)| *index));
            let tokens = granted.iter().map(|(_, token)| *token).collect();
            let record = fence::record(&inner.db, keys, tokens);
            let tried = "record a fencing token";
            let recorded = answer_of(Store::PostgreSql, tried, patience, record).await??;
            for (index, token) in granted {
                if recorded.contains(&self.wanted[index].holder.name) {
                    self.wanted[index].state = Progress::Granted(Fence(token), since);
                } else {
                    unknown.push(index);
                }
            }
        }
        if !unknown.is_empty() {
            let keys = self.names(unknown.iter().copied());
            let highest = fence::highest(&inner.db, keys);
            let tried = "read a fencing token";
            let highest = answer_of(Store::PostgreSql, tried, patience, highest).await??;
            for index in &unknown {
                let wanted = &mut self.wanted[*index];
                wanted.floor = Some(
                    highest
                        .get(&wanted.holder.name)
                        .copied()
                        .unwrap_or_default(),
                );
            }
        }
        Ok(!unknown.is_empty())
    }

    fn names(&self, indexes: impl Iterator<Item = usize>) -> Vec<String> {
        let name = |index: usize| self.wanted[index].holder.name.clone();
        indexes.map(name).collect()
    }
}

impl Drop for Acquisition {
    fn drop(&mut self) {
        for wanted in self.wanted.drain(..) {
            match wanted.state {
                Progress::Elsewhere => {}
                Progress::Granted(..) => Keeper::part(&self.leases, wanted.holder),
                // Its request may wait in the client, or on its way, and arrive after what takes it back.
                Progress::Asking => Keeper::part_in_doubt(&self.leases, wanted.holder),
            }
        }
    }
}

/// Waits for a store for a bounded time.
async fn answer_of<T>(
    store: Store,
    tried: &'static str,
    patience: Duration,
    answer: impl Future<Output = T>,
) -> Result<T, StoreError> {
    timeout_at(Instant::now() + patience, answer)
        .await
        .map_err(|_| StoreError::late(store, tried))
}
