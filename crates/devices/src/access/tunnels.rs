//! The tunnels that this replica carries: how many, whether access still holds for each, and their end.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use contracts::{DeviceId, UserId};
use coordination::PortKind;
use platform::lifecycle::Tick;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::{Ending, Fault, db};
use crate::Devices;

/// How often it is looked whether access still holds.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long one look may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// For how long tunnels stay open while the database does not say whether they may: two looks that fail, and no more.
const UNVERIFIED: Duration = Duration::from_secs(5);
/// How long a tunnel of a replica that died counts as open, and how often a living one says that it is.
pub const OPEN: Duration = Duration::from_secs(30);
const PROLONG_EVERY: Duration = Duration::from_secs(10);

/// The tunnels of this replica. Clones share everything.
#[derive(Clone)]
pub struct Tunnels(Arc<Inner>);

struct Inner {
    open: Mutex<HashMap<i64, Arc<Tunnel>>>,
    room: Arc<Semaphore>,
    tasks: TaskTracker,
    leaving: CancellationToken,
    watch: Mutex<Watch>,
}

/// When the database last said what holds, and was told what is open.
struct Watch {
    verified: Instant,
    prolonged: Instant,
}

/// One tunnel.
pub struct Tunnel {
    /// The ticket it was opened by.
    pub ticket: i64,
    /// To which device.
    pub device: DeviceId,
    /// For whom.
    pub user: UserId,
    /// To which port.
    pub kind: PortKind,
    ended: CancellationToken,
    why: OnceLock<Ending>,
}

impl Tunnel {
    /// Ends it; the first reason stays.
    fn end(&self, why: Ending) {
        let _ = self.why.set(why);
        self.ended.cancel();
    }

    /// Waits until it is to end.
    pub async fn ended(&self) -> Ending {
        self.ended.cancelled().await;
        self.why.get().copied().unwrap_or(Ending::Unverified)
    }
}

/// The room for a tunnel, held for as long as it lives.
#[derive(Debug)]
pub struct Place(
    #[expect(dead_code, reason = "it is given back when it is dropped")] OwnedSemaphorePermit,
);

impl Tunnels {
    /// Room for so many.
    pub fn new(most: usize) -> Self {
        let now = Instant::now();
        Self(Arc::new(Inner {
            open: Mutex::default(),
            room: Arc::new(Semaphore::new(most)),
            tasks: TaskTracker::new(),
            leaving: CancellationToken::new(),
            watch: Mutex::new(Watch {
                verified: now,
                prolonged: now,
            }),
        }))
    }

    /// Takes the room for one.
    ///
    /// # Errors
    /// [`Fault::NoRoom`] where there is none, or this replica leaves.
    pub fn place(&self) -> Result<Place, Fault> {
        let room = self.0.room.clone().try_acquire_owned();
        match room {
            Ok(permit) if !self.0.leaving.is_cancelled() => Ok(Place(permit)),
            _ => Err(Fault::NoRoom { what: "tunnel" }),
        }
    }

    /// Looks after a tunnel from now on. One that comes when this replica leaves ends at once.
    pub fn add(&self, ticket: i64, user: UserId, device: DeviceId, kind: PortKind) -> Arc<Tunnel> {
        let tunnel = Arc::new(Tunnel {
            ticket,
            device,
            user,
            kind,
            ended: CancellationToken::new(),
            why: OnceLock::new(),
        });
        self.open().insert(ticket, tunnel.clone());
        if self.0.leaving.is_cancelled() {
            tunnel.end(Ending::Leaving);
        }
        tunnel
    }

    /// Forgets a tunnel.
    pub fn remove(&self, tunnel: &Tunnel) {
        self.open().remove(&tunnel.ticket);
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.open().len()
    }

    /// What those tasks run in that carry tunnels.
    pub fn tasks(&self) -> &TaskTracker {
        &self.0.tasks
    }

    /// Ends all with a reason, and waits until their clients were told.
    pub async fn leave(&self) {
        self.0.leaving.cancel();
        self.end_all(Ending::Leaving);
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Ends those tunnels whose access has ended, and says that the others are open. Where the database does not answer,
    /// they stay for a while.
    ///
    /// # Errors
    /// Never: a step that fails is made again in the same rhythm.
    pub async fn look(&self, state: &Devices) -> anyhow::Result<Tick> {
        let ids: Vec<i64> = self.open().keys().copied().collect();
        if ids.is_empty() {
            self.watch().verified = Instant::now();
            return Ok(Tick::Idle);
        }
        let prolongs = self.watch().prolonged.elapsed() >= PROLONG_EVERY;
        let looking = async {
            let mut conn = state.platform.db.acquire().await?;
            let ended = db::ended(&mut conn, &ids).await?;
            if prolongs {
                db::prolong(&mut conn, &ids, OPEN).await?;
            }
            Ok::<_, sqlx::Error>(ended)
        };
        match timeout(PATIENCE, looking).await {
            Ok(Ok(ended)) => {
                let now = Instant::now();
                {
                    let mut watch = self.watch();
                    watch.verified = now;
                    if prolongs {
                        watch.prolonged = now;
                    }
                }
                for (id, why) in ended {
                    if let Some(tunnel) = self.open().get(&id) {
                        tunnel.end(Ending::told(&why));
                    }
                }
            }
            failed => {
                if self.watch().verified.elapsed() >= UNVERIFIED {
                    let why = match failed {
                        Ok(Err(error)) => error.to_string(),
                        _ => "the database did not answer in time".to_owned(),
                    };
                    warn!(
                        "{} tunnels are closed, since nobody can tell whether access holds: {why}",
                        ids.len()
                    );
                    self.end_all(Ending::Unverified);
                }
            }
        }
        Ok(Tick::Idle)
    }

    fn end_all(&self, why: Ending) {
        self.open().values().for_each(|tunnel| tunnel.end(why));
    }

    // No code that holds these locks can panic half way.
    fn open(&self) -> MutexGuard<'_, HashMap<i64, Arc<Tunnel>>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.0.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnels")
            .field("open", &self.count())
            .finish()
    }
}
