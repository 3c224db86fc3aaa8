//! Tells clients behind Sentinel that another server has become the master. By itself a client keeps to the server it is
//! connected to, and for up to ten seconds after a planned failover that one takes writes which are lost afterwards.

use std::time::Duration;

use fred::clients::SubscriberClient;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::config::{Config, Server, ServerConfig};
use fred::types::{ClusterHash, CustomCommand};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, info};

/// What a sentinel publishes when it knows of a new master.
const CHANNEL: &str = "+switch-master";
const RETRY: Duration = Duration::from_millis(500);
/// How long a client may take to reach the new master; it goes on by itself afterwards.
const RECONNECTION: Duration = Duration::from_secs(10);

/// The switches of the master from now on. Where there is no Sentinel there are none.
#[derive(Clone, Debug)]
pub struct Switches(Option<watch::Receiver<u64>>);

impl Switches {
    /// Listens to every sentinel of a URL for as long as anybody wants to know. Each of them may be the last to learn of
    /// a new master, and the one that our clients ask: so each of them counts.
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
        let (switches, told) = watch::channel(0);
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
            let listening = listen(
                config,
                sentinel.clone(),
                service_name.clone(),
                switches.clone(),
            );
            spawn(listening);
        }
        Self(Some(told))
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        let Self(Some(told)) = self else {
            return std::future::pending().await;
        };
        if told.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Lets a client that lives as long as the process connect to the new master after each switch.
    pub fn follow<C: ClientLike + Send + Sync + 'static>(&self, client: C) {
        if self.0.is_none() {
            return;
        }
        let mut switches = self.clone();
        spawn(async move {
            loop {
                switches.next().await;
                let connected = timeout(RECONNECTION, client.force_reconnection()).await;
                debug!("a Redis client follows the master: {connected:?}");
            }
        });
    }
}

/// Listens to one sentinel until nobody wants to know any more.
async fn listen(config: Config, sentinel: Server, name: String, switches: watch::Sender<u64>) {
    let Ok(client) = super::with_deadlines(config).build_subscriber_client() else {
        return;
    };
    let (mut messages, mut connected) = (client.message_rx(), client.reconnect_rx());
    drop(client.connect());
    let mut master = None;
    loop {
        let another = tokio::select! {
            () = switches.closed() => break,
            back = connected.recv() => match back {
                // What was published meanwhile was missed.
                Ok(_) | Err(RecvError::Lagged(_)) => subscribe(&client, &name).await,
                Err(RecvError::Closed) => break,
            },
            message = messages.recv() => match message {
                Ok(message) => {
                    let text = message.value.into_string().unwrap_or_default();
                    new_master(&text, &name)
                }
                Err(RecvError::Lagged(_)) => subscribe(&client, &name).await,
                Err(RecvError::Closed) => break,
            },
        };
        if another.is_some() && another != master {
            if master.is_some() {
                let address = another.as_deref().unwrap_or_default();
                info!("the sentinel at {sentinel} names another Redis master, {address}");
                switches.send_modify(|count| *count += 1);
            }
            master = another;
        }
    }
    let _ = timeout(RETRY, client.quit()).await;
}

/// Subscribes on a new connection, and asks for the master there is.
async fn subscribe(client: &SubscriberClient, name: &str) -> Option<String> {
    // A connection that ends meanwhile is followed by another one, and by another call of this.
    for _ in 0..10 {
        let sentinel = CustomCommand::new_static("SENTINEL", ClusterHash::FirstKey, false);
        let question = vec!["GET-MASTER-ADDR-BY-NAME", name];
        if client.subscribe(CHANNEL).await.is_ok()
            && let Ok((host, port)) = client
                .custom::<(String, String), _>(sentinel, question)
                .await
        {
            return Some(format!("{host}:{port}"));
        }
        sleep(RETRY).await;
    }
    None
}

/// The new address in `name old-host old-port new-host new-port`.
fn new_master(text: &str, name: &str) -> Option<String> {
    let words: Vec<&str> = text.split(' ').collect();
    match words[..] {
        [of, _, _, host, port] if of == name => Some(format!("{host}:{port}")),
        _ => None,
    }
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
    fn the_new_address_is_read_for_the_own_name_alone() {
        let text = "main 10.0.0.1 6379 10.0.0.2 6380";

        assert_eq!(new_master(text, "main").as_deref(), Some("10.0.0.2:6380"));
        assert_eq!(new_master(text, "other"), None);
        assert_eq!(new_master("main", "main"), None);
    }
}
