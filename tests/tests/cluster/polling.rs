//! A thousand Socket.IO clients by polling, each of whose requests goes through another gateway than the one before.

use std::time::Duration;

use anyhow::{Context, ensure};
use cluster_tests::{PATIENCE, all_instances};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use testkit::{Cluster, eventually};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

const CLIENTS: usize = 1_000;
/// Clients at once that connect or are sent something. Who is connected polls without a pause, or is taken for gone.
const AT_ONCE: usize = 16;
/// A poll is answered when news come, or by a ping after 25 s.
const POLL: Duration = Duration::from_secs(90);

/// What all clients share.
struct Shared {
    http: Client,
    gateways: Vec<String>,
    busy: Semaphore,
    connected: watch::Sender<usize>,
}

/// One client, which speaks the protocol frame by frame.
struct Polling<'a> {
    shared: &'a Shared,
    number: usize,
    asked: usize,
    sid: Option<String>,
    notifications: Vec<Value>,
}

impl Polling<'_> {
    /// Asks the next gateway; anything but 200 is a client thrown off.
    async fn ask(
        &mut self,
        method: Method,
        body: String,
        within: Duration,
    ) -> anyhow::Result<String> {
        let gateway =
            &self.shared.gateways[(self.number + self.asked) % self.shared.gateways.len()];
        self.asked += 1;
        let sid = self.sid.as_ref().map(|sid| format!("&sid={sid}"));
        let sid = sid.unwrap_or_default();
        let url = format!("http://{gateway}/socket.io/?EIO=4&transport=polling{sid}");
        let mut request = self.shared.http.request(method, &url).timeout(within);
        if self.number.is_multiple_of(2) {
            request = request.header("cookie", format!("theme=dark; io={}", self.number));
        }
        let reply = request.body(body).send().await?;
        let (status, text) = (reply.status(), reply.text().await?);
        ensure!(
            status == 200,
            "client {}: {url}: {status} {text}",
            self.number
        );
        Ok(text)
    }

    async fn say(&mut self, packet: String) -> anyhow::Result<()> {
        let said = self.ask(Method::POST, packet, PATIENCE).await?;
        ensure!(said == "ok", "{said}");
        Ok(())
    }

    async fn open(&mut self) -> anyhow::Result<()> {
        let opened = self.ask(Method::GET, String::new(), PATIENCE).await?;
        let hello: Value = serde_json::from_str(opened.trim_start_matches('0'))?;
        self.sid = Some(hello["sid"].as_str().context("no sid")?.to_owned());
        let auth = json!({ "userId": user(self.number) });
        self.say(format!("40/notifications,{auth}")).await
    }

    /// Polls until an event comes, answers pings and keeps what notifications come on the way.
    async fn until(&mut self, event: &str) -> anyhow::Result<()> {
        let mut came = false;
        while !came {
            let packets = self.ask(Method::GET, String::new(), POLL).await?;
            for packet in packets.split('\u{1e}') {
                if packet == "2" {
                    self.say("3".to_owned()).await?;
                }
                let Some(event_packet) = packet.strip_prefix("42/notifications,") else {
                    ensure!(
                        !packet.starts_with('1') && !packet.starts_with("41"),
                        "thrown off: {packet}"
                    );
                    continue;
                };
                let mut said: Value = serde_json::from_str(event_packet)?;
                ensure!(said[0] != "error", "client {}: {said}", self.number);
                came |= said[0] == event;
                if said[0] == "notification" {
                    self.notifications.push(said[1].take());
                }
            }
        }
        Ok(())
    }

    async fn live(mut self) -> anyhow::Result<usize> {
        {
            let shared = self.shared;
            let _busy = shared.busy.acquire().await?;
            self.open().await?;
            self.until("welcome").await?;
        }
        self.shared.connected.send_modify(|count| *count += 1);
        self.until("notification").await?;
        // Its session is still there, and nothing came twice.
        let ask = json!(["subscribe", { "userId": user(self.number) }]);
        self.say(format!("42/notifications,{ask}")).await?;
        self.until("subscribed").await?;
        let texts: Vec<_> = self
            .notifications
            .iter()
            .map(|one| &one["message"])
            .collect();
        let expected = Value::from(text(self.number));
        ensure!(texts == [&expected], "client {}: {texts:?}", self.number);
        Ok(self.asked)
    }
}

fn user(number: usize) -> String {
    format!("polls-{number}")
}

fn text(number: usize) -> String {
    format!("for {number}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_that_hop_between_gateways_are_each_told_once_and_none_is_thrown_off()
-> anyhow::Result<()> {
    // Two connections a client in each of the processes.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let cluster = Cluster::start(3).await?;
    let gateways = all_instances(&cluster, "gateway", 3).await;
    all_instances(&cluster, "notifications", 3).await;
    let shared = Box::leak(Box::new(Shared {
        http: testkit::client(),
        gateways: gateways.clone(),
        busy: Semaphore::new(AT_ONCE),
        connected: watch::Sender::new(0),
    }));
    let shared: &'static Shared = shared;
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(async move {
            let client = Polling {
                shared,
                number,
                asked: 0,
                sid: None,
                notifications: Vec::new(),
            };
            client.live().await
        });
    }
    let all = async {
        let mut lived = 0;
        while let Some(ended) = clients.join_next().await {
            ended??;
            lived += 1;
        }
        anyhow::Ok(lived)
    };
    let telling = async {
        let mut connected = shared.connected.subscribe();
        connected.wait_for(|count| *count == CLIENTS).await?;
        let sends = (0..CLIENTS).map(async |number| {
            let _busy = shared.busy.acquire().await?;
            let gateway = &gateways[number % gateways.len()];
            let ask = json!({ "userId": user(number), "message": text(number) });
            let url = format!("http://{gateway}/api/notifications/send");
            // A store on a busy machine may say that it is not ready; the key has it sent once all the same.
            eventually(PATIENCE, "it is sent", async || {
                let send = shared.http.post(&url).json(&ask);
                let send = send.header("idempotency-key", format!("send-{number}"));
                let reply = send.send().await?;
                let status = reply.status();
                ensure!(status == 201, "{status} {}", reply.text().await?);
                Ok(())
            })
            .await;
            anyhow::Ok(())
        });
        futures::future::try_join_all(sends).await?;
        Ok(())
    };

    let (lived, ()) = timeout(PATIENCE * 6, async { tokio::try_join!(all, telling) })
        .await
        .context("some client waits for ever")??;

    assert_eq!(lived, CLIENTS);
    Ok(())
}
