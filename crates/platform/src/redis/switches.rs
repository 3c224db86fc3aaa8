//! Which server Sentinel names as the master. By itself a client keeps to the server it is connected to, and for up to ten
//! seconds after a planned failover that one takes writes which are lost afterwards.

use std::collections::HashMap;
use std::time::{Duration, Instant};

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

/// How long the answer of a sentinel counts, which is asked all the time.
const FRESH: Duration = Duration::from_secs(5);

/// The master as one sentinel knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// What the sentinels of a URL have said.
#[derive(Debug)]
struct Told {
    /// How many there are.
    sentinels: usize,
    /// The last answer of each, and when it came.
    answers: HashMap<Server, (Master, Instant)>,
    /// The one that is believed.
    master: Option<Master>,
}

impl Told {
    fn by(sentinels: usize) -> Self {
        Self {
            sentinels,
            answers: HashMap::new(),
            master: None,
        }
    }

    /// Takes an answer and says whether another master is believed now: the one with the greatest epoch, as among the
    /// sentinels themselves. Epochs begin anew where the sentinels have lost their configuration, which is believed when most
    /// of them say so: one alone may have missed a failover.
    fn hear(&mut self, sentinel: &Server, master: Master, now: Instant) -> bool {
        self.answers.insert(sentinel.clone(), (master, now));
        self.answers
            .retain(|_, (_, heard)| now.duration_since(*heard) < FRESH);
        let answers = self.answers.values().map(|(master, _)| master);
        let Some(greatest) = answers.max_by_key(|master| master.epoch) else {
            return false;
        };
        if let Some(known) = &self.master {
            let most = self.answers.len() * 2 > self.sentinels;
            if known.epoch == greatest.epoch || (known.epoch > greatest.epoch && !most) {
                return false;
            }
            let (host, port) = (&greatest.host, greatest.port);
            info!("the sentinel at {sentinel} makes {host}:{port} the Redis master to follow");
        }
        self.master = Some(greatest.clone());
        true
    }
}

/// The master as the sentinels of the URL know it, and so its switches. Without Sentinel there are none.
#[derive(Clone, Debug)]
pub struct Switches(Option<watch::Receiver<Told>>);

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
        let (told, heard) = watch::channel(Told::by(hosts.len()));
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
        Self(Some(heard))
    }

    /// Waits until a client is connected to another server than the master.
    pub async fn away<C: ClientLike>(&mut self, client: &C) {
        while !self.is_away(client) {
            let Self(Some(told)) = self else {
                return std::future::pending().await;
            };
            if let Ok(Err(_)) = timeout(LOOKED_AT_EVERY, told.changed()).await {
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
        let Some(told) = &self.0 else {
            return false;
        };
        told.borrow().master.as_ref().is_some_and(|master| {
            let connections = client.active_connections();
            connections.iter().any(|server| !master.is(server))
        })
    }
}

/// Asks one sentinel for ever. Questions in place of subscriptions: what is asked again cannot be missed, and a sentinel
/// that has vanished is noticed.
async fn ask(config: Config, sentinel: Server, name: String, told: watch::Sender<Told>) {
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
                told.send_if_modified(|told| told.hear(&sentinel, master, Instant::now()));
            }
            Err(error) => debug!("the sentinel at {sentinel} does not name the master: {error:#}"),
        }
    }
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

    fn master(epoch: u64, port: u16) -> Master {
        Master {
            epoch,
            host: "10.0.0.1".to_owned(),
            port,
        }
    }

    fn sentinel(n: u16) -> Server {
        Server::new("sentinel", n)
    }

    #[test]
    fn the_greatest_epoch_is_believed_whoever_tells_of_it() {
        let (mut told, now) = (Told::by(3), Instant::now());

        assert!(told.hear(&sentinel(1), master(1, 6379), now), "the first");
        assert!(!told.hear(&sentinel(2), master(1, 6379), now), "no news");
        assert!(told.hear(&sentinel(1), master(2, 6380), now), "a switch");
        assert!(!told.hear(&sentinel(2), master(1, 6379), now), "stale");
        assert!(!told.hear(&sentinel(2), master(2, 6380), now), "it learns");
        let known = told.master.expect("a master");
        assert!(known.is(&Server::new("10.0.0.1", 6380)));
        assert!(!known.is(&Server::new("10.0.0.1", 6379)));
    }

    #[test]
    fn sentinels_that_count_from_the_beginning_again_are_believed_when_they_are_most() {
        let (mut told, now) = (Told::by(3), Instant::now());
        for n in 1..=3 {
            told.hear(&sentinel(n), master(5, 6379), now);
        }

        for n in 1..=2 {
            let fewer = told.hear(&sentinel(n), master(0, 6380), now);
            assert!(!fewer, "the third has seen more");
        }
        assert!(told.hear(&sentinel(3), master(0, 6380), now));
        assert_eq!(told.master, Some(master(0, 6380)));
    }

    #[test]
    fn one_that_missed_a_failover_is_not_believed_however_long_it_alone_answers() {
        let (mut told, now) = (Told::by(3), Instant::now());
        told.hear(&sentinel(1), master(5, 6379), now);

        let later = now + FRESH * 100;
        assert!(!told.hear(&sentinel(2), master(4, 6380), later));
        assert!(
            told.hear(&sentinel(3), master(4, 6380), later),
            "two of three"
        );
    }
}
