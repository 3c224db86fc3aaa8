//! Clients that rent devices, order and pay, and keep asking until they are told that it is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use cluster_tests::{BILLING, GATEWAY, PATIENCE, register, text};
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};
use testkit::{Cluster, eventually};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const RENTERS: usize = 3;
const PAYERS: usize = 3;
/// Most devices of one renter and orders of one payer: the load is bounded however long the fault takes.
const MOST: usize = 60;
/// A replica that is frozen holds its connections; the client goes to another one.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a client asks for one thing. Only failures reach it.
const STUBBORN: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(150);

/// What clients were told is done.
#[derive(Debug, Default)]
pub struct Told {
    /// Devices that were created and not deleted.
    pub kept: Vec<String>,
    /// Devices that were created and deleted.
    pub deleted: Vec<String>,
    /// Orders whose payment was acknowledged.
    pub paid: Vec<String>,
    /// Orders that nobody pays.
    pub unpaid: Vec<String>,
}

/// Clients at work.
pub struct Load {
    stop: CancellationToken,
    done: Arc<AtomicUsize>,
    clients: JoinSet<Told>,
}

/// Three replicas whose orders can be paid for six seconds, and whose cron looks for late ones every second.
pub fn replicas() -> testkit::Builder {
    Cluster::builder(3)
        .env("BILLING_ORDER_MINUTES", "0.1")
        .env("BILLING_EXPIRY_SCHEDULE", "* * * * * *")
}

impl Load {
    /// Signs the renters in and lets all clients begin.
    pub async fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let (stop, done) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let mut clients = JoinSet::new();
        for number in 0..RENTERS {
            let token = register(cluster, &format!("renter{number}")).await?;
            let client = Client::new(cluster, number, &stop, &done);
            clients.spawn(async move { client.rent(&token).await });
        }
        for number in 0..PAYERS {
            let client = Client::new(cluster, number, &stop, &done);
            clients.spawn(async move { client.pay().await });
        }
        let load = Self {
            stop,
            done,
            clients,
        };
        load.goes_on(20).await;
        Ok(load)
    }

    /// Waits until so many more things are done.
    pub async fn goes_on(&self, more: usize) {
        let wanted = self.done.load(Ordering::Relaxed) + more;
        eventually(
            STUBBORN,
            &format!("clients get {more} more answers"),
            async || {
                let done = self.done.load(Ordering::Relaxed);
                ensure!(done >= wanted, "{done} of {wanted}");
                Ok(())
            },
        )
        .await;
    }

    /// Lets every client finish what it has begun.
    pub async fn end(self) -> Told {
        self.stop.cancel();
        let mut all = Told::default();
        for told in self.clients.join_all().await {
            all.kept.extend(told.kept);
            all.deleted.extend(told.deleted);
            all.paid.extend(told.paid);
            all.unpaid.extend(told.unpaid);
        }
        all
    }
}

struct Client {
    number: usize,
    door: String,
    billing: String,
    stop: CancellationToken,
    done: Arc<AtomicUsize>,
}

impl Client {
    fn new(
        cluster: &Cluster,
        number: usize,
        stop: &CancellationToken,
        done: &Arc<AtomicUsize>,
    ) -> Self {
        Self {
            number,
            door: cluster.url(GATEWAY, "/api"),
            billing: cluster.url(BILLING, ""),
            stop: stop.clone(),
            done: done.clone(),
        }
    }

    /// Creates devices, and deletes every second one.
    async fn rent(self, token: &str) -> Told {
        let mut told = Told::default();
        for turn in self.turns() {
            let key = format!("rent-{}-{turn}", self.number);
            let ask = json!({ "name": format!("phone {turn}") });
            let device = self
                .until(StatusCode::CREATED, "a device is created", || {
                    let url = format!("{}/devices", self.door);
                    let request = testkit::fresh().post(url).bearer_auth(token);
                    request.header("idempotency-key", &key).json(&ask)
                })
                .await;
            let id = text(&device, "id");
            if turn % 2 == 1 {
                let url = format!("{}/devices/{id}", self.door);
                // Not found: an answer that got lost had deleted it.
                let gone = [StatusCode::OK, StatusCode::NOT_FOUND];
                self.until_any(&gone, "a device is deleted", || {
                    testkit::fresh().delete(&url).bearer_auth(token)
                })
                .await;
                told.deleted.push(id);
            } else {
                told.kept.push(id);
            }
            sleep(PAUSE).await;
        }
        told
    }

    /// Orders, and pays all but every fourth; the provider tells of each payment twice.
    async fn pay(self) -> Told {
        let mut told = Told::default();
        for turn in self.turns() {
            let key = format!("order-{}-{turn}", self.number);
            let ask = json!({ "userId": format!("payer{}", self.number), "planId": "basic" });
            let order = self
                .until(StatusCode::CREATED, "an order is placed", || {
                    let url = format!("{}/billing/orders", self.door);
                    let request = testkit::fresh().post(url);
                    request.header("idempotency-key", &key).json(&ask)
                })
                .await;
            let id = text(&order, "id");
            if turn % 4 == 3 {
                told.unpaid.push(id);
            } else {
                let notice = || {
                    let body = format!("orderId={id}&status=paid&eventId={}", event_of(&id));
                    let request =
                        testkit::fresh().post(format!("{}/webhooks/payment", self.billing));
                    let form = "application/x-www-form-urlencoded";
                    request.header("content-type", form).body(body)
                };
                for _ in 0..2 {
                    self.until(StatusCode::OK, "a payment is taken", notice)
                        .await;
                }
                told.paid.push(id);
            }
            sleep(PAUSE).await;
        }
        told
    }

    fn turns(&self) -> impl Iterator<Item = usize> {
        let stop = self.stop.clone();
        (0..MOST).take_while(move |_| !stop.is_cancelled())
    }

    async fn until(
        &self,
        wanted: StatusCode,
        what: &str,
        request: impl Fn() -> RequestBuilder,
    ) -> Value {
        self.until_any(&[wanted], what, request).await
    }

    /// Asks until it is answered so; any other answer, or none, is asked again.
    async fn until_any(
        &self,
        wanted: &[StatusCode],
        what: &str,
        request: impl Fn() -> RequestBuilder,
    ) -> Value {
        let ends = Instant::now() + STUBBORN;
        let answer = loop {
            let seen = match ask(request()).await {
                Ok((status, body)) if wanted.contains(&status) => break body,
                Ok((status, body)) => format!("{status} {body}"),
                Err(error) => format!("{error:?}"),
            };
            assert!(
                Instant::now() < ends,
                "in {STUBBORN:?} it did not come about: {what}; seen last: {seen}"
            );
            sleep(PAUSE).await;
        };
        self.done.fetch_add(1, Ordering::Relaxed);
        answer
    }
}

async fn ask(request: RequestBuilder) -> reqwest::Result<(StatusCode, Value)> {
    let answer = request.timeout(ANSWER).send().await?;
    let (status, body) = (answer.status(), answer.text().await?);
    Ok((
        status,
        serde_json::from_str(&body).unwrap_or(Value::String(body)),
    ))
}

/// The event in which a provider tells of an order's payment.
pub fn event_of(order: &str) -> String {
    format!("paid-{order}")
}

/// Waits for a condition as long as a test may wait.
pub async fn until<T>(what: &str, ask: impl AsyncFnMut() -> anyhow::Result<T>) -> T {
    eventually(PATIENCE, what, ask).await
}
