//! Which instances of which services are alive, where, and how busy.
//!
//! An instance leases the lowest free slot of its service (`instance-0`, `instance-1`, …) and publishes an entry in one
//! hash, so that reading the registry is one round trip; one heartbeat renews all memberships of a process. Who joins,
//! leaves, starts to drain, or is found dead by another's heartbeat is told to all that watch, by pub/sub, and they read
//! at once; a poll is the fallback for news that were lost, four times a second while nothing is heard of pub/sub, and
//! the way by which loads are learnt. Without Redis the last snapshot stays; after Redis lost its data the members come
//! back to their old slots, and nobody is missed from the snapshot while they do.

mod beat;
mod entry;
mod membership;
mod news;
mod watch;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use fred::clients::Pool;
use fred::types::scripts::Script;
use tokio::sync::{Notify, watch as channel};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{Keys, StoreError, script};

pub use entry::{Announcement, Entry, Load, Snapshot, instance_name};
use membership::Member;
pub use membership::Membership;

static JOIN: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("join.lua")));
static HEARTBEAT: LazyLock<Script> =
    LazyLock::new(|| Script::from_lua(include_str!("heartbeat.lua")));
static LEAVE: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("leave.lua")));
static READ: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("read.lua")));

/// The times of a registry, on which all replicas of a cluster should agree.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How long an instance that fell silent is still listed; it beats three times as often. 3 s by default.
    pub ttl: Duration,
    /// How far a snapshot is behind at most while news are not pushed. 250 ms by default.
    pub poll: Duration,
    /// How often the registry is read although no news were pushed. 1 s by default.
    pub poll_when_pushed: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(3),
            poll: Duration::from_millis(250),
            poll_when_pushed: Duration::from_secs(1),
        }
    }
}

/// The registry of one cluster, and this process's part in it.
#[derive(Clone, Debug)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    redis: Pool,
    keys: Keys,
    pace: Pace,
    members: Mutex<Vec<(u64, Arc<Member>)>>,
    next_member: AtomicU64,
    beat_now: Notify,
    read_now: Notify,
    snapshot: channel::Sender<Arc<Snapshot>>,
    beating: OnceLock<()>,
    watching: OnceLock<()>,
    /// Whether news are heard.
    pushed: AtomicBool,
    /// Ends the watch, before the stores may go.
    left: CancellationToken,
}

impl Registry {
    /// Joins nothing yet; entries live for three seconds after their last heartbeat.
    pub fn new(redis: Pool, keys: Keys) -> Self {
        Self::with_pace(redis, keys, Pace::default())
    }

    /// Like `new` with other times.
    pub fn with_pace(redis: Pool, keys: Keys, pace: Pace) -> Self {
        let inner = Inner {
            redis,
            keys,
            pace,
            members: Mutex::default(),
            next_member: AtomicU64::default(),
            beat_now: Notify::new(),
            read_now: Notify::new(),
            snapshot: channel::Sender::default(),
            beating: OnceLock::new(),
            watching: OnceLock::new(),
            pushed: AtomicBool::new(false),
            left: CancellationToken::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Takes the lowest free slot of a service, publishes the entry and keeps both alive.
    pub async fn join(&self, announcement: Announcement) -> Result<Membership, StoreError> {
        let member = Arc::new(Member::new(announcement));
        let slot = self.inner.take_slot(&member, None).await?;
        member.set_slot(slot);
        let id = self.inner.next_member.fetch_add(1, Ordering::Relaxed);
        self.inner.members().push((id, member.clone()));
        self.inner.beating.get_or_init(|| {
            crate::task::spawn(beat::run(Arc::downgrade(&self.inner), self.inner.pace.ttl));
        });
        self.inner.read_now.notify_one();
        Ok(Membership::new(self.clone(), id, member))
    }

    /// Gives every slot of this process back and ends the watch, whose last snapshot stays: for the end of a process,
    /// before its stores go.
    pub async fn leave_all(&self) -> Result<(), StoreError> {
        self.inner.left.cancel();
        let members: Vec<_> = self
            .inner
            .members()
            .drain(..)
            .map(|(_, member)| member)
            .collect();
        self.inner.give_back(&members).await
    }

    /// Follows the registry: the receiver has the latest snapshot, empty before the first was read.
    pub fn watch(&self) -> channel::Receiver<Arc<Snapshot>> {
        self.inner.watching.get_or_init(|| {
            crate::task::spawn(watch::run(Arc::downgrade(&self.inner), self.inner.pace));
            crate::task::spawn(news::run(Arc::downgrade(&self.inner)));
        });
        self.inner.snapshot.subscribe()
    }

    /// Reads the registry once, as it is now.
    pub async fn read(&self) -> Result<Snapshot, StoreError> {
        Ok(self.inner.read().await?.live(self.inner.pace.ttl))
    }
}

impl Inner {
    fn members(&self) -> std::sync::MutexGuard<'_, Vec<(u64, Arc<Member>)>> {
        // A panic elsewhere leaves the list whole: each change of it is one step.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn script_keys(&self) -> Vec<String> {
        vec![self.keys.registry(), self.keys.registry_epoch()]
    }

    async fn take_slot(&self, member: &Member, preferred: Option<u32>) -> Result<u32, StoreError> {
        let arguments = vec![
            self.keys.slots(),
            member.service().to_owned(),
            member.owner().to_owned(),
            script::milliseconds(self.pace.ttl),
            member.stored(),
            preferred.map_or(-1, i64::from).to_string(),
            Uuid::new_v4().to_string(),
            self.keys.registry_news(),
        ];
        let tried = "join the registry";
        let slot: i64 =
            script::run(&self.redis, &JOIN, self.script_keys(), arguments, tried).await?;
        u32::try_from(slot).map_err(|_| {
            let full =
                fred::error::Error::new(fred::error::ErrorKind::Unknown, "every slot is taken");
            StoreError::redis(tried)(full)
        })
    }

    async fn give_back(&self, members: &[Arc<Member>]) -> Result<(), StoreError> {
        if members.is_empty() {
            return Ok(());
        }
        let mut arguments = vec![self.keys.slots(), self.keys.registry_news()];
        arguments.extend(
            members
                .iter()
                .flat_map(|member| [member.field(), member.owner().to_owned()]),
        );
        let left: Result<i64, _> = script::run(
            &self.redis,
            &LEAVE,
            self.keys.registry(),
            arguments,
            "leave the registry",
        )
        .await;
        self.read_now.notify_one();
        left.map(|_| ())
    }
}
