//! The notifications service: what users are told is stored first, then handed to their sockets on every instance,
//! in order and without a gap.

mod accounts;
mod broadcast;
mod channel;
mod config;
mod delivery;
mod error;
mod events;
mod hub;
mod leaver;
mod metrics;
mod notification;
mod preference;
mod presence;
mod routes;
mod socket;
mod template;
mod webhook;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coordination::cron::Job;
use platform::Platform;
use platform::lifecycle::{Tasks, Tick};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::debug;

pub use config::Config;
pub use error::{Error, Result};
pub use routes::{openapi, router};
pub use socket::wrap;

use channel::guard::{Rules, rules};
use hub::{Hub, bus};
use presence::board::Board;
use socket::Sockets;
use socket::socketio::Server;

/// After how many periods without a word an instance counts as dead, and its users as gone.
const PRESENCE_LAPSE: u32 = 4;
/// How often a replica looks for a broadcast to go on with.
const BROADCASTS_EVERY: Duration = Duration::from_millis(500);

/// The state of the service.
#[derive(Clone)]
pub struct Notifications {
    platform: Platform,
    config: Arc<Config>,
    hub: Arc<Hub>,
    socketio: Server,
    accounts: accounts::Accounts,
    board: Board,
    /// Where users may have us call them.
    webhook_rules: Rules,
    /// Wakes the worker of deliveries.
    deliveries_due: watch::Sender<()>,
    /// Taken by the task that publishes it.
    outgoing: Arc<Mutex<Option<mpsc::Receiver<bus::News>>>>,
}

impl Notifications {
    /// Opens the namespaces of Socket.IO.
    ///
    /// # Errors
    /// Where Redis does not answer, or webhooks may lead to this machine outside the sandbox.
    pub async fn new(platform: &Platform, config: Config) -> anyhow::Result<Self> {
        let (hub, outgoing) = Hub::new(platform.db.clone(), platform.settings.reconnect_spread);
        let hub = Arc::new(hub);
        let sockets = Sockets {
            platform: platform.clone(),
            hub: hub.clone(),
        };
        Ok(Self {
            webhook_rules: rules(platform, &config)?,
            platform: platform.clone(),
            config: Arc::new(config),
            hub,
            socketio: Server::open(platform, sockets).await?,
            accounts: accounts::Accounts::new(platform),
            board: Board::new(platform),
            deliveries_due: watch::Sender::new(()),
            outgoing: Arc::new(Mutex::new(Some(outgoing))),
        })
    }

    /// Starts feeding the sockets, hearing the other instances, and handling domain events.
    ///
    /// # Errors
    /// Where a store does not answer at start, or a way out of the platform cannot be set up.
    pub async fn spawn_jobs(&self, tasks: &Tasks) -> anyhow::Result<()> {
        let (sockets, stop) = (self.sockets(), tasks.stopping());
        let (hub, clock) = (self.hub.clone(), self.platform.clock.clone());
        let (sweep_every, pump_stop) = (self.config.sweep_every, stop.clone());
        tasks.spawn("notifications.pump", async move {
            hub.pump(sweep_every, &clock, pump_stop).await;
            Ok(())
        });
        if let Some(outgoing) = self
            .outgoing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            let publishing = bus::publish(
                self.hub.clone(),
                self.platform.clone(),
                outgoing,
                stop.clone(),
            );
            tasks.spawn("notifications.publish", async move {
                publishing.await;
                Ok(())
            });
        }
        let client = bus::subscriber(&self.platform).await?;
        tasks.spawn(
            "notifications.listen",
            bus::listen(sockets.clone(), client, stop.clone()),
        );
        tasks.spawn(
            "notifications.resubscribe",
            self.socketio.clone().resubscribe(stop),
        );
        tasks.every(
            "notifications.check_sessions",
            self.config.check_sessions_every,
            move || {
                let sockets = sockets.clone();
                async move {
                    sockets.check_sessions(None).await;
                    Ok(Tick::Idle)
                }
            },
        );
        self.spawn_presence(tasks);
        let state = self.clone();
        tasks.every("notifications.broadcasts", BROADCASTS_EVERY, move || {
            let state = state.clone();
            async move { broadcast::jobs::tell_next(&state).await }
        });
        let carriers = channel::Carriers::new(
            &self.platform,
            &self.config,
            &self.accounts,
            self.webhook_rules,
        )?;
        delivery::worker::spawn(self.clone(), carriers, tasks);
        events::spawn(self, tasks).await
    }

    /// Keeps on the board who is here. Redis may be away: then nobody asks it either.
    fn spawn_presence(&self, tasks: &Tasks) {
        let period = self.config.presence_every;
        let lapse = period * PRESENCE_LAPSE;
        let entry = self.board.entry(self.hub.origin().to_owned(), lapse);
        let entry = Arc::new(tokio::sync::Mutex::new(entry));
        let hub = self.hub.clone();
        tasks.every("notifications.presence", period, move || {
            let (hub, entry) = (hub.clone(), entry.clone());
            async move {
                let seen = hub.present();
                metrics::users_online(seen.len());
                if let Err(error) = entry.lock().await.write(seen).await {
                    debug!("who is online is not written now: {error}");
                }
                Ok(Tick::Idle)
            }
        });
    }

    /// The jobs that one replica at a time runs. They need not guard their runs: each of their transactions locks the
    /// rows that it deletes, and finds deleted what another one did.
    pub fn cron_jobs(&self) -> Vec<Job> {
        let state = self.clone();
        vec![Job::new(
            "notifications-retention",
            "43 * * * *",
            move |run| {
                let state = state.clone();
                async move { notification::retention::purge(&state, &run.cancelled).await }
            },
        )]
    }

    /// Runs each locked job once, for tests.
    ///
    /// # Errors
    /// Where a job fails.
    pub async fn run_cron_jobs(&self) -> anyhow::Result<()> {
        notification::retention::purge(self, &CancellationToken::new()).await
    }

    /// Sends a `message` to the Socket.IO clients in a room, on every instance. It is not stored.
    pub async fn send_to_room(&self, room: &str, data: &Value) {
        self.socketio.send_to_room(room, data).await;
    }

    /// Tells the clients of all sockets that this instance restarts and when each should come back; nothing is closed
    /// yet, so that those that poll hear it, too.
    pub fn announce_restart(&self) {
        self.hub.announce_restart();
    }

    /// Closes all sockets with a reason, so that clients reconnect elsewhere; those that still come are closed too.
    pub async fn close_sockets(&self) {
        self.hub.leave();
        self.socketio.close().await;
    }

    /// How many sockets are open on this instance.
    pub fn open_sockets(&self) -> usize {
        self.hub.open_sockets()
    }

    fn sockets(&self) -> Sockets {
        Sockets {
            platform: self.platform.clone(),
            hub: self.hub.clone(),
        }
    }
}

impl fmt::Debug for Notifications {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifications").finish_non_exhaustive()
    }
}
