//! What keeps many replicas out of each other's way: leases, port pools, Redlock, cron, the instance registry,
//! idempotency keys and rate limits.
//!
//! # Who decides
//!
//! Redis coordinates, PostgreSQL has the last word. A lease or a lock in Redis makes the common case quick and quiet;
//! whatever must never happen twice is also refused by a constraint or a fencing token in the database. Losing all of
//! Redis costs time, never correctness.
//!
//! | module | holds as long as | cost | without Redis | after Redis lost its data |
//! | --- | --- | --- | --- | --- |
//! | [`lease`] | one holder at a time; a late one's write to a fenced table is refused | one round trip to each store; renewals of a process go together, every third of the time to live | not acquired; held ones are reported lost in time | tokens go on above the highest the database knows |
//! | [`port_pool`] | no port in two sets; three or none; at rest for a stated reason between two | one round trip, O(log n) at any occupancy | `Unreachable`; leased ones stay the database's | `IndexMissing`, then `rebuild` while requests go on; what is leased meanwhile and taken already, the database refuses |
//! | [`redlock`] | one holder, while a quorum of masters lives; a token from the database on demand | one round trip to all masters | `QuorumLost`, with each master's answer | may be held twice until the next renewal; the token tells the holders apart |
//! | [`cron`] | a slot is begun once; taken over only from a holder that fell silent, whose guarded writes are refused from then on | a query per replica and five seconds for all idle jobs, two transactions per run | jobs wait and are caught up | the database alone keeps slots single |
//! | [`registry`] | distinct slots, lowest first; joins, leaves and drains pushed, snapshots 250 ms old without pub/sub | one heartbeat and one read a second, four reads without pub/sub | the last snapshot stays | members return to their slots |
//! | [`invariants`] | a violation is written down once, for the whole cluster, and stays | a job a minute for each check, two queries per replica and five seconds | checks wait as all jobs do | the database has them |
//! | [`idempotency`] | effect and answer commit together, once | three to five statements in the effect's transaction | not used | not used |
//! | [`rate_limit`] | exact over all replicas, but for a command that Redis got twice | one round trip for all limits of a request | the caller decides; on demand one request a second waits and all others go on | all start afresh |
//!
//! [`news`] carries short messages between processes by pub/sub, and says when some may be missing.
//!
//! The words of the table: a *fenced table* takes writes only from the latest known holder of a lease, since
//! `select coordination.fence_table('shop.reports', 'report:', 'id')` put a trigger on it. Such a write is a *guarded*
//! one: its transaction began with [`lease::Guard::begin`]. A port *at rest* was given back or is not usable, for one of
//! [`RestReason`], and is not leased until its time is over. [`PortError::IndexMissing`] says that Redis has no index of
//! the ports of a node; [`PortPool::rebuild`] makes it anew from what the database knows. The schema `coordination` must
//! be in the database first: `gateway migrate`, or `sqlx::migrate!` on the folder `migrations`.
//!
//! # Examples
//!
//! With `shop.reports` fenced as above,
//! a holder that lost its lease without noticing cannot write any more:
//!
//! ```no_run
//! # use coordination::{FenceError, Keys, Leases};
//! # async fn example(redis: fred::clients::Pool, db: sqlx::PgPool) -> anyhow::Result<()> {
//! let leases = Leases::new(redis, db.clone(), Keys::new("shop"));
//! let Some(lease) = leases.acquire("report:may", std::time::Duration::from_secs(10)).await? else {
//!     return Ok(()); // Another holds it.
//! };
//! tokio::select! {
//!     () = lease.lost().cancelled_owned() => {} // Told before another can have it: leave off.
//!     written = async {
//!         let mut tx = lease.guard().begin(&db).await?; // Refuses where a later holder is known.
//!         sqlx::query("update shop.reports set text = 'done' where id = 'may'").execute(&mut *tx).await?;
//!         tx.commit().await?;
//!         anyhow::Ok(())
//!     } => written?,
//! }
//! lease.release().await?;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/tour.rs` takes leases, ports and a job through the same on real stores:
//!
//! ```sh
//! cargo build --workspace --bins --examples
//! target/debug/with-stores target/debug/examples/tour
//! ```
//!
//! `with-stores` starts a Redis and a PostgreSQL for the command and ends them with it.
//!
//! # Limits
//!
//! A process that is paused cannot be told anything: between the end of its lease and its next instruction it believes
//! what it believed. Writes that matter therefore go through [`lease::Guard::begin`], to tables that take no others; effects
//! outside the database must carry the token and refuse lower ones. A body of [`cron`] may be begun again after a crash.
//! All commands may be sent twice by the Redis client after a broken connection; every script here bears that, but a rate
//! limit then counts twice.

pub mod cron;
mod error;
pub mod idempotency;
pub mod invariants;
mod keys;
pub mod lease;
mod metrics;
pub mod news;
pub mod port_pool;
pub mod rate_limit;
pub mod redlock;
pub mod registry;
mod script;
mod task;
mod text;

pub use error::{Store, StoreError};
pub use keys::Keys;

pub use cron::{CatchUp, Cron, CronError, Job, JobOverview, Jobs, Overlap, PastRun, Run};
pub use idempotency::Claim;
pub use invariants::{Check, Finding, Invariants};
pub use lease::{Fence, FenceError, FencedTx, Guard, Lease, Leases};
pub use port_pool::{PortError, PortKind, PortPool, PortRanges, PortSet, Recorded, RestReason};
pub use rate_limit::{Decision, Limit, RateLimiter};
pub use redlock::{Held, LockError, Redlock};
pub use registry::{Announcement, Entry, Load, Membership, Pace, Registry, Snapshot};
pub use script::Replication;
