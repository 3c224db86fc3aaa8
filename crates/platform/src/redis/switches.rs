//! Which server Sentinel names as the master. By itself a client keeps to the server it is connected to, and for up to ten
//! seconds after a planned failover that one takes writes which are lost afterwards.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context as _;
use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::config::{Config, Server, ServerConfig};
use fred::types::{ClusterHash, CustomCommand};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, info};

/// How often each sentinel is asked.
const ASKED_EVERY: Duration = Duration::from_millis(250);
/// How often a client is looked at where no sentinel has news: it may have reached the former master by itself.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(1);
/// How long a client may take to reach the new master; it goes on by itself afterwards.
const RECONNECTION: Duration = Duration::from_secs(10);
/// How long a client that reached another server than the master waits until it tries again, at first and at most. The
/// sentinel that it asks may be the last to know.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));

/// The master as one sentinel knows it.
#[derive(Clone, Debug)]
struct Master {
    /// Grows by each failover; the sentinels themselves believe the one who names the greatest.
    epoch: u64,
    host: String,
    port: u16,
}

impl Master {
    fn is(&self, server: &Server) -> bool {
        *server.host == *self.host && server.port == self.port
    }
}

/// The master as the sentinels of the URL know it, and so its switches. Without Sentinel there are none.
#[derive(Clone, Debug)]
pub struct Switches(Option<watch::Receiver<Option<Master>>>);

impl Switches {
    /// Asks every sentinel of a URL for as long as the process lives.
    pub fn of(config: &Config) -> Self {
        let ServerConfig::Sentinel {
            hosts,
            service_name,
            username,
            password,
        } = &config.server
        else {
            return Self(None);
        };
        let (told, master) = watch::channel(None);
        for sentinel in hosts {
            let config = Config {
                server: ServerConfig::Centralized {
                    server: sentinel.clone(),
                },
                username: username.clone(),
                password: password.clone(),
                database: None,
                // A sentinel that is away now is tried again.
                fail_fast: false,
                ..config.clone()
            };
            let asking = ask(config, sentinel.clone(), service_name.clone(), told.clone());
            spawn(asking);
        }
        Self(Some(master))
    }

    /// Waits until a client is connected to another server than the master.
    pub async fn away<C: ClientLike>(&mut self, client: &C) {
        while !self.is_away(client) {
            let Self(Some(master)) = self else {
                return std::future::pending().await;
            };
            if let Ok(Err(_)) = timeout(LOOKED_AT_EVERY, master.changed()).await {
                return std::future::pending().await;
            }
        }
    }

    /// Takes a client that lives as long as the process to the master whenever it is connected to another server.
    pub fn follow<C: ClientLike + Send + Sync + 'static>(&self, client: C) {
        if self.0.is_none() {
            return;
        }
        let mut switches = self.clone();
        spawn(async move {
            loop {
                switches.away(&client).await;
                let mut pause = RETRY.0;
                while switches.is_away(&client) {
                    let connected = timeout(RECONNECTION, client.force_reconnection()).await;
                    debug!("a Redis client follows the master: {connected:?}");
                    if switches.is_away(&client) {
                        sleep(pause).await;
                        pause = RETRY.1.min(pause * 2);
                    }
                }
            }
        });
    }

    /// A client without a connection is on its way, and looked at again.
    fn is_away<C: ClientLike>(&self, client: &C) -> bool {
        let Some(master) = &self.0 else {
            return false;
        };
        let master = master.borrow();
        master.as_ref().is_some_and(|master| {
            let connections = client.active_connections();
            connections.iter().any(|server| !master.is(server))
        })
    }
}

/// Asks one sentinel for ever, and tells of a master with a greater epoch than any before. Questions in place of
/// subscriptions: what is asked again cannot be missed, and a sentinel that has vanished is noticed.
async fn ask(config: Config, sentinel: Server, name: String, told: watch::Sender<Option<Master>>) {
    let Ok(client) = super::with_deadlines(config).build() else {
        return;
    };
    drop(client.connect());
    loop {
        sleep(ASKED_EVERY).await;
        // Otherwise questions would pile up.
        if !client.is_connected() {
            continue;
        }
        match master(&client, &name).await {
            Ok(master) => {
                told.send_if_modified(|known| believe(known, master, &sentinel));
            }
            Err(error) => debug!("the sentinel at {sentinel} does not name the master: {error:#}"),
        }
    }
}

fn believe(known: &mut Option<Master>, master: Master, sentinel: &Server) -> bool {
    if let Some(known) = known {
        if known.epoch >= master.epoch {
            return false;
        }
        let (host, port) = (&master.host, master.port);
        info!("the sentinel at {sentinel} names another Redis master, {host}:{port}");
    }
    *known = Some(master);
    true
}

/// The epoch first: where a failover comes between the questions, the address is newer than the epoch says, and told
/// once more with the right one; the other way round a former master would be taken for the new one.
async fn master(client: &Client, name: &str) -> anyhow::Result<Master> {
    let sentinel = || CustomCommand::new_static("SENTINEL", ClusterHash::FirstKey, false);
    let fields: HashMap<String, String> = client.custom(sentinel(), vec!["MASTER", name]).await?;
    let epoch = fields.get("config-epoch").context("no config-epoch")?;
    let epoch = epoch
        .parse()
        .with_context(|| format!("config-epoch {epoch}"))?;
    let question = vec!["GET-MASTER-ADDR-BY-NAME", name];
    let (host, port): (String, u16) = client.custom(sentinel(), question).await?;
    Ok(Master { epoch, host, port })
}

#[expect(
    clippy::disallowed_methods,
    reason = "Redis is needed until the last task has ended, so these outlive them all; they end with the process"
)]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_epoch_is_believed_whoever_tells_of_it() {
        let sentinel = Server::new("sentinel", 26379);
        let master = |epoch, port| Master {
            epoch,
            host: "10.0.0.1".to_owned(),
            port,
        };
        let mut known = None;

        assert!(believe(&mut known, master(1, 6379), &sentinel), "the first");
        assert!(!believe(&mut known, master(1, 6379), &sentinel), "no news");
        assert!(believe(&mut known, master(2, 6380), &sentinel), "a switch");
        assert!(!believe(&mut known, master(1, 6379), &sentinel), "stale");
        let known = known.expect("a master");
        assert!(known.is(&Server::new("10.0.0.1", 6380)));
        assert!(!known.is(&Server::new("10.0.0.1", 6379)));
    }
}
