//! Devices that are a program within our own process, listening on real ports. One replica hosts each of them; when it
//! falls silent another one takes over.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use contracts::{DeviceId, SnapshotId};
use coordination::{PortKind, PortSet};
use device_stub::{Contents, Device, DeviceProfile, Ports};
use futures::future::BoxFuture;
use platform::Platform;
use platform::lifecycle::{Tasks, Tick};
use platform::problem::causes;
use sqlx::PgConnection;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::hosts::{self, Claim, Held};
use super::{Runtime, RuntimeError, Seen, Spec};
use crate::measure::Counted;
use crate::metrics;

/// How many devices one step takes over, so that other replicas get their share.
const BATCH: i64 = 64;
/// How long a stop waits for the host; it looks several times in its lease.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long after one look at what another host does the next one follows.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long connecting to a device that another host listens for may take.
const CONNECT: Duration = Duration::from_secs(1);

/// The simulated devices that this replica hosts, and the way to those that others host.
#[derive(Clone)]
pub struct Simulated(Arc<Inner>);

struct Inner {
    platform: Platform,
    /// Names this replica among the hosts; no other ever had the same.
    host: String,
    lease: Duration,
    /// Locked from the claim until the device listens, so that the periodic step does not get in between.
    listening: Mutex<HashMap<DeviceId, Listening>>,
    voice: std::sync::Mutex<Voice>,
    /// Whether the last step failed: an outage is told once.
    troubled: AtomicBool,
    listeners: TaskTracker,
    leaving: CancellationToken,
}

struct Listening {
    device: Device,
    /// The version of its contents that was last written.
    saved: u64,
    ports: PortSet,
    stop: CancellationToken,
    ended: JoinHandle<()>,
}

/// When this replica was last heard, as far as that says whom it may take for dead.
#[derive(Debug, Default)]
struct Voice {
    heard: Option<Instant>,
    shy_until: Option<Instant>,
}

impl Voice {
    /// Notes that our leases were renewed, and says whether devices of silent replicas may be taken over: whoever was
    /// silent itself, or had no database, first leaves the others the time to be heard again.
    fn renewed(&mut self, now: Instant, lease: Duration) -> bool {
        let before = self.heard.replace(now);
        if before.is_some_and(|before| now > before + lease) {
            self.shy_until = Some(now + lease);
        }
        self.shy_until.is_none_or(|until| now >= until)
    }
}

impl Listening {
    /// Stops listening; after that the ports are free.
    async fn end(self) {
        self.stop.cancel();
        // It ended one way or another, and its sockets with it.
        let _ = self.ended.await;
    }
}

impl Simulated {
    /// Hosts nothing yet.
    pub fn new(platform: &Platform, lease: Duration) -> Self {
        Self(Arc::new(Inner {
            platform: platform.clone(),
            host: contracts::SessionId::new().to_string(),
            lease,
            listening: Mutex::default(),
            voice: std::sync::Mutex::default(),
            troubled: AtomicBool::default(),
            listeners: TaskTracker::new(),
            leaving: CancellationToken::new(),
        }))
    }

    /// The name of this replica among the hosts.
    pub fn host(&self) -> &str {
        &self.0.host
    }

    /// Keeps hosting until the tasks stop, then gives everything back at once.
    pub fn spawn(&self, tasks: &Tasks) {
        let this = self.clone();
        let period = (self.0.lease / 4).min(Duration::from_millis(500));
        tasks.every("devices.hosting", period, move || {
            let this = this.clone();
            // Not left to the growing pause of tasks that fail: after it, others would have taken everything over.
            async move { Ok(this.try_hosting().await) }
        });
        let (this, stopping) = (self.clone(), tasks.stopping());
        tasks.spawn("devices.hosting_ends", async move {
            stopping.cancelled().await;
            this.leave().await
        });
    }

    async fn try_hosting(&self) -> Tick {
        match self.keep_hosting().await {
            Ok(tick) => {
                self.0.troubled.store(false, Ordering::Relaxed);
                tick
            }
            Err(error) => {
                if !self.0.troubled.swap(true, Ordering::Relaxed) {
                    warn!("the hosted devices cannot be renewed: {}", causes(&*error));
                }
                Tick::Idle
            }
        }
    }

    /// Renews what this replica hosts, ends what it shall not host any longer, and takes over what nobody hosts.
    pub async fn keep_hosting(&self) -> anyhow::Result<Tick> {
        let inner = &self.0;
        let mut listening = inner.listening.lock().await;
        if inner.leaving.is_cancelled() {
            return Ok(Tick::Idle);
        }
        let mut conn = inner.platform.db.acquire().await?;
        let held = hosts::renew(&mut conn, &inner.host, inner.lease).await?;
        let may_take_over = {
            let mut voice = inner.voice.lock().unwrap_or_else(PoisonError::into_inner);
            voice.renewed(Instant::now(), inner.lease)
        };
        let wanted = |id: &DeviceId| held.iter().any(|held| held.wanted && held.device_id == *id);
        let ending: Vec<_> = listening
            .extract_if(|id, device| !wanted(id) || device.ended.is_finished())
            .collect();
        for (id, _) in &ending {
            info!(device.id = %id, "no longer listening for device {id}");
        }
        let ended = end_all(ending).await;
        inner.write(&mut conn, ended).await?;
        for held in &held {
            if let Some(device) = listening.get_mut(&held.device_id) {
                inner.save(&mut conn, held, device).await?;
            }
        }
        let unwanted = held.iter().filter(|held| !held.wanted);
        let unwanted: Vec<_> = unwanted.map(|held| held.device_id.clone()).collect();
        if !unwanted.is_empty() {
            hosts::release(&mut conn, &inner.host, &unwanted).await?;
        }
        let taken = match may_take_over {
            true => hosts::take_over(&mut conn, &inner.host, inner.lease, BATCH).await?,
            false => Vec::new(),
        };
        let starting = |id: &DeviceId| {
            held.iter()
                .any(|held| !held.running && held.device_id == *id)
        };
        let wanted = held.iter().filter(|held| held.wanted);
        let mut silent: Vec<_> = wanted.map(|held| held.device_id.clone()).collect();
        silent.extend(taken.iter().cloned());
        silent.retain(|id| !listening.contains_key(id));
        for spec in hosts::specs(&mut conn, &silent).await? {
            // The old host may be frozen with the ports in its hands: it lets go when it wakes, and we try again.
            let contents = hosts::contents(&mut conn, &spec.id).await?;
            match self.listen(&spec, contents).await {
                Ok(device) => {
                    info!(device.id = %spec.id, "listening for device {} now", spec.id);
                    listening.insert(spec.id, device);
                }
                Err(error) if taken.contains(&spec.id) => {
                    warn!(device.id = %spec.id, "cannot listen for device {} yet: {error}", spec.id);
                }
                Err(error) if starting(&spec.id) => {
                    debug!(device.id = %spec.id, "leaving device {} to the worker that starts it: {error}", spec.id);
                    // The worker must not take it for one that somebody listens for.
                    hosts::release(&mut conn, &inner.host, &[spec.id]).await?;
                }
                Err(error) => {
                    debug!(device.id = %spec.id, "still cannot listen for device {}: {error}", spec.id);
                }
            }
        }
        metrics::hosted(listening.len());
        metrics::taken_over(taken.len());
        Ok(Tick::after_batch(taken.len(), BATCH))
    }

    /// Stops listening and gives everything back, so that others take over at once.
    pub async fn leave(&self) -> anyhow::Result<()> {
        let inner = &self.0;
        inner.leaving.cancel();
        let mut listening = inner.listening.lock().await;
        // Dropped, a device stops listening all the same.
        let ended = end_all(listening.drain().collect()).await;
        let mut conn = inner.platform.db.acquire().await?;
        inner.write(&mut conn, ended).await?;
        hosts::release_all(&mut conn, &inner.host).await?;
        Ok(())
    }

    /// Stops listening without a word to anybody, as a process that dies does.
    #[doc(hidden)]
    pub async fn vanish(&self) {
        self.0.leaving.cancel();
        let mut listening = self.0.listening.lock().await;
        let ended = listening.drain().map(|(_, device)| device.end());
        futures::future::join_all(ended).await;
    }

    async fn listen(&self, spec: &Spec, contents: Contents) -> Result<Listening, RuntimeError> {
        let profile = DeviceProfile {
            name: spec.name.clone(),
            lease: spec.id.to_string(),
            android_version: spec.android_version.clone(),
            width: spec.width,
            height: spec.height,
            density: spec.dpi,
            ..DeviceProfile::default()
        };
        let device = Device::with(profile, contents);
        let ports = Ports {
            adb: spec.ports.adb,
            webrtc: spec.ports.webrtc,
            scrcpy: spec.ports.scrcpy,
        };
        let bound = device
            .clone()
            .bind(spec.address, ports)
            .await
            .map_err(|error| {
                if error.source.kind() == std::io::ErrorKind::AddrInUse {
                    RuntimeError::PortOccupied { port: error.port }
                } else {
                    RuntimeError::Engine {
                        tried: "listen on the ports of a device",
                        source: error.into(),
                    }
                }
            })?;
        let stop = CancellationToken::new();
        let ended = self.0.listeners.spawn(bound.run(stop.clone()));
        Ok(Listening {
            device,
            saved: 0,
            ports: spec.ports,
            stop,
            ended,
        })
    }

    /// Listens for a device, or sees that another replica does.
    async fn start_somewhere(&self, spec: &Spec) -> Result<(), RuntimeError> {
        let within = self.0.lease / 4;
        let until = Instant::now() + within;
        loop {
            let outcome = match self.start_here(spec).await {
                // Its host may hold the lease without being able to listen.
                Ok(Claim::Others) if !answers(spec).await => Err(RuntimeError::Silent {
                    tried: "have the host of the device listen",
                    within,
                }),
                outcome => outcome,
            };
            match outcome {
                // A replica that lost its lease unawares listens still. It looks after its leases at least this often.
                Err(RuntimeError::PortOccupied { .. } | RuntimeError::Silent { .. })
                    if Instant::now() < until =>
                {
                    sleep(LOOK_AGAIN).await;
                }
                outcome => return outcome.map(drop),
            }
        }
    }

    async fn start_here(&self, spec: &Spec) -> Result<Claim, RuntimeError> {
        let inner = &self.0;
        let mut listening = inner.listening.lock().await;
        if inner.leaving.is_cancelled() {
            return Err(RuntimeError::Leaving);
        }
        let mut conn = inner.platform.db.acquire().await?;
        match hosts::claim(&mut conn, &spec.id, &inner.host, spec.fence, inner.lease).await? {
            Claim::Fenced => return Err(RuntimeError::Fenced),
            Claim::Others => return Ok(Claim::Others),
            Claim::Ours => {}
        }
        if let Some(device) = listening.remove(&spec.id) {
            if device.ports == spec.ports {
                listening.insert(spec.id.clone(), device);
                return Ok(Claim::Ours);
            }
            // It listens on the ports that the device had before.
            inner.end(&mut conn, &spec.id, device).await?;
        }
        let contents = hosts::contents(&mut conn, &spec.id).await?;
        match self.listen(spec, contents).await {
            Ok(device) => {
                listening.insert(spec.id.clone(), device);
                Ok(Claim::Ours)
            }
            Err(error) => {
                hosts::release(&mut conn, &inner.host, std::slice::from_ref(&spec.id)).await?;
                Err(error)
            }
        }
    }

    /// Has what is on a device written, wherever it is hosted.
    async fn save_anywhere(&self, id: &DeviceId) -> Result<(), RuntimeError> {
        let inner = &self.0;
        let mut conn = inner.platform.db.acquire().await?;
        let Some(asked) = hosts::ask_to_save(&mut conn, id).await? else {
            // What the last host left is written.
            return Ok(());
        };
        drop(conn);
        let until = Instant::now() + PATIENCE;
        loop {
            {
                let mut listening = inner.listening.lock().await;
                let mut conn = inner.platform.db.acquire().await?;
                if let Some(device) = listening.get_mut(id) {
                    let (contents, version) = device.device.contents();
                    let key = (id, inner.host.as_str());
                    hosts::save(&mut conn, key, &contents, Some(asked)).await?;
                    device.saved = version;
                }
                if hosts::is_saved(&mut conn, id, asked).await? {
                    return Ok(());
                }
            }
            if Instant::now() >= until {
                return Err(RuntimeError::Silent {
                    tried: "have the host of the device write what is on it",
                    within: PATIENCE,
                });
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn stop_anywhere(&self, id: &DeviceId, fence: Option<i64>) -> Result<(), RuntimeError> {
        let inner = &self.0;
        let until = Instant::now() + PATIENCE;
        loop {
            {
                let mut listening = inner.listening.lock().await;
                let mut conn = inner.platform.db.acquire().await?;
                if let Some(fence) = fence
                    && !hosts::is_worker(&mut conn, id, fence).await?
                {
                    return Err(RuntimeError::Fenced);
                }
                if let Some(device) = listening.remove(id) {
                    inner.end(&mut conn, id, device).await?;
                }
                hosts::release(&mut conn, &inner.host, std::slice::from_ref(id)).await?;
                if !hosts::ask_to_stop(&mut conn, id, fence).await? {
                    return Ok(());
                }
            }
            if Instant::now() >= until {
                return Err(RuntimeError::Silent {
                    tried: "have the host of the device stop",
                    within: PATIENCE,
                });
            }
            sleep(LOOK_AGAIN).await;
        }
    }
}

impl Inner {
    /// Writes what is on a device, where it changed or somebody asked for it.
    async fn save(
        &self,
        conn: &mut PgConnection,
        held: &Held,
        device: &mut Listening,
    ) -> sqlx::Result<()> {
        if held.save_asked.is_none() && device.device.version() == device.saved {
            return Ok(());
        }
        let (contents, version) = device.device.contents();
        let key = (&held.device_id, self.host.as_str());
        hosts::save(conn, key, &contents, held.save_asked).await?;
        device.saved = version;
        Ok(())
    }

    /// Stops listening and writes what is on the device; after that its ports are free.
    async fn end(
        &self,
        conn: &mut PgConnection,
        id: &DeviceId,
        listening: Listening,
    ) -> sqlx::Result<()> {
        let ended = end_all(vec![(id.clone(), listening)]).await;
        self.write(conn, ended).await
    }

    /// Writes what is on devices that have ended.
    async fn write(&self, conn: &mut PgConnection, ended: Vec<Ended>) -> sqlx::Result<()> {
        for (id, device, saved) in ended {
            let (contents, version) = device.contents();
            if version != saved {
                hosts::save(conn, (&id, &self.host), &contents, None).await?;
            }
        }
        Ok(())
    }
}

/// A device that is not listened for any more, and the version of its contents that is written.
type Ended = (DeviceId, Device, u64);

/// Stops listening for all of them at once.
async fn end_all(ending: Vec<(DeviceId, Listening)>) -> Vec<Ended> {
    let ended = ending.into_iter().map(|(id, listening)| async move {
        let (device, saved) = (listening.device.clone(), listening.saved);
        listening.end().await;
        (id, device, saved)
    });
    futures::future::join_all(ended).await
}

/// Whether somebody listens on every port of a device.
async fn answers(spec: &Spec) -> bool {
    let connects =
        PortKind::ALL.map(|kind| TcpStream::connect((spec.address, spec.ports.of(kind))));
    let connected = timeout(CONNECT, futures::future::try_join_all(connects)).await;
    matches!(connected, Ok(Ok(_)))
}

impl Runtime for Simulated {
    fn create<'a>(&'a self, _: &'a Spec) -> BoxFuture<'a, Result<(), RuntimeError>> {
        // Its row is all there is of it.
        Box::pin(async { Ok(()) })
    }

    fn start<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.start_somewhere(spec))
    }

    fn stop<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.stop_anywhere(&spec.id, Some(spec.fence)))
    }

    fn remove<'a>(&'a self, id: &'a DeviceId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move {
            self.stop_anywhere(id, None).await?;
            let mut conn = self.0.platform.db.acquire().await?;
            Ok(hosts::empty(&mut conn, id).await?)
        })
    }

    fn snapshot<'a>(
        &'a self,
        spec: &'a Spec,
        snapshot: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<i64, RuntimeError>> {
        Box::pin(async move {
            self.save_anywhere(&spec.id).await?;
            let mut conn = self.0.platform.db.acquire().await?;
            let kept = hosts::keep(&mut conn, &spec.id, snapshot, spec.fence).await?;
            kept.ok_or(RuntimeError::Fenced)
        })
    }

    fn restore<'a>(
        &'a self,
        spec: &'a Spec,
        snapshot: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move {
            let mut conn = self.0.platform.db.acquire().await?;
            match hosts::put_back(&mut conn, &spec.id, snapshot, spec.fence).await? {
                true => Ok(()),
                false => Err(RuntimeError::Fenced),
            }
        })
    }

    fn forget<'a>(&'a self, snapshot: &'a SnapshotId) -> BoxFuture<'a, Result<bool, RuntimeError>> {
        Box::pin(async move {
            let mut conn = self.0.platform.db.acquire().await?;
            Ok(hosts::forget(&mut conn, snapshot).await?)
        })
    }

    fn measure<'a>(
        &'a self,
        id: &'a DeviceId,
    ) -> BoxFuture<'a, Result<Option<Counted>, RuntimeError>> {
        Box::pin(async move {
            let listening = self.0.listening.lock().await;
            let vitals = listening.get(id).map(|device| device.device.vitals());
            Ok(vitals.map(|vitals| Counted {
                cpu: i64::try_from(vitals.cpu.as_nanos()).unwrap_or(i64::MAX),
                cores: None,
                memory_mb: vitals.memory as f64 / 1_048_576.0,
                storage_mb: Some(vitals.storage as f64 / 1_048_576.0),
                rx: i64::try_from(vitals.received).unwrap_or(i64::MAX),
                tx: i64::try_from(vitals.sent).unwrap_or(i64::MAX),
            }))
        })
    }

    fn snapshots(&self) -> BoxFuture<'_, Result<Vec<SnapshotId>, RuntimeError>> {
        // What it keeps goes with the row of the snapshot.
        Box::pin(async { Ok(Vec::new()) })
    }

    fn inspect<'a>(&'a self, id: &'a DeviceId) -> BoxFuture<'a, Result<Seen, RuntimeError>> {
        Box::pin(async move {
            let mut conn = self.0.platform.db.acquire().await?;
            Ok(match hosts::is_hosted(&mut conn, id).await? {
                true => Seen::Running,
                false => Seen::Stopped,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_silent_itself_leaves_the_others_a_lease_of_time() {
        let (start, lease) = (Instant::now(), Duration::from_secs(4));
        let mut voice = Voice::default();
        // A replica that starts takes over at once, and so does one that was always heard.
        for (seconds, may_take_over) in [(0, true), (4, true), (9, false), (12, false), (13, true)]
        {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(voice.renewed(now, lease), may_take_over, "at {seconds} s");
        }
    }
}
