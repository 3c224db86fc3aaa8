//! Clients that rent devices, order and pay, and keep asking until they are told that it is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use chrono::{DateTime, Utc};
use cluster_tests::{BILLING, GATEWAY, PATIENCE, register, text};
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;
use testkit::{Cluster, RedisServers, eventually};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const RENTERS: usize = 3;
const PAYERS: usize = 3;
/// Most devices of one renter; the oldest goes for a new one, so that the load lasts however long the fault takes.
const MOST_DEVICES: usize = 6;
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
    counts: Arc<Counts>,
    clients: JoinSet<Told>,
    working: Vec<AbortHandle>,
}

#[derive(Default)]
struct Counts {
    /// Requests that were sent.
    asked: AtomicUsize,
    /// Things that clients were told are done.
    done: AtomicUsize,
}

/// Three replicas whose orders can be paid for six seconds, and whose cron looks for late ones every second.
pub fn replicas() -> testkit::Builder {
    Cluster::builder(3)
        .env("BILLING_ORDER_MINUTES", "0.1")
        .env("BILLING_EXPIRY_SCHEDULE", "* * * * * *")
}

/// Replicas on a Redis that is no single server, with lock masters of their own, and their clients.
pub async fn under_load(
    redis: impl Into<String>,
    locks: &RedisServers,
) -> anyhow::Result<(Cluster, Load)> {
    let cluster = replicas()
        .redis(redis)
        .env("REDLOCK_URLS", locks.urls())
        .start()
        .await?;
    let load = Load::start(&cluster).await?;
    Ok((cluster, load))
}

impl Load {
    /// Signs the renters in and lets all clients begin.
    pub async fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let (stop, counts) = (CancellationToken::new(), Arc::<Counts>::default());
        let (mut clients, mut working) = (JoinSet::new(), Vec::new());
        for number in 0..RENTERS {
            let token = register(cluster, &format!("renter{number}")).await?;
            let client = Client::new(cluster, number, &stop, &counts);
            working.push(clients.spawn(async move { client.rent(&token).await }));
        }
        for number in 0..PAYERS {
            let client = Client::new(cluster, number, &stop, &counts);
            working.push(clients.spawn(async move { client.pay().await }));
        }
        let load = Self {
            stop,
            counts,
            clients,
            working,
        };
        load.goes_on(20).await;
        Ok(load)
    }

    /// Waits until so many more things are done.
    pub async fn goes_on(&self, more: usize) {
        self.more("clients get more answers", &self.counts.done, more)
            .await;
    }

    /// Waits until so many more requests were sent, whatever came of them: so many meet the fault.
    pub async fn asks_on(&self, more: usize) {
        self.more("clients ask more", &self.counts.asked, more)
            .await;
    }

    /// Waits for a fault to be over, and fails where clients asked for nothing meanwhile.
    pub async fn meanwhile<T>(&self, fault: impl Future<Output = T>) -> T {
        let before = self.counts.asked.load(Ordering::Relaxed);
        let outcome = fault.await;
        let asked = self.counts.asked.load(Ordering::Relaxed) - before;
        assert!(asked > 0, "no request met the fault");
        outcome
    }

    async fn more(&self, what: &str, counter: &AtomicUsize, more: usize) {
        let wanted = counter.load(Ordering::Relaxed) + more;
        eventually(STUBBORN, what, async || {
            // They work until they are told to stop; what one of them met is in its panic.
            let ended = self.working.iter().any(AbortHandle::is_finished);
            assert!(!ended, "a client has given up");
            let count = counter.load(Ordering::Relaxed);
            ensure!(count >= wanted, "{count} of {wanted}");
            Ok(())
        })
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
    counts: Arc<Counts>,
}

impl Client {
    fn new(
        cluster: &Cluster,
        number: usize,
        stop: &CancellationToken,
        counts: &Arc<Counts>,
    ) -> Self {
        Self {
            number,
            door: cluster.url(GATEWAY, "/api"),
            billing: cluster.url(BILLING, ""),
            stop: stop.clone(),
            counts: counts.clone(),
        }
    }

    /// Creates devices, and deletes every second one at once, and the oldest where there are too many.
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
            told.kept.push(id);
            let surplus = match told.kept.len() {
                _ if turn % 2 == 1 => told.kept.pop(),
                count if count > MOST_DEVICES => Some(told.kept.remove(0)),
                _ => None,
            };
            if let Some(id) = surplus {
                let url = format!("{}/devices/{id}", self.door);
                // Not found: an answer that got lost had deleted it.
                let gone = [StatusCode::OK, StatusCode::NOT_FOUND];
                self.until_any(&gone, "a device is deleted", || {
                    testkit::fresh().delete(&url).bearer_auth(token)
                })
                .await;
                told.deleted.push(id);
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
        (0..).take_while(move |_| !stop.is_cancelled())
    }

    async fn until(
        &self,
        wanted: StatusCode,
        what: &str,
        request: impl Fn() -> RequestBuilder,
    ) -> Value {
        self.until_any(&[wanted], what, request).await
    }

    /// Asks until it is answered so. No answer, and one that says to ask again, is asked again; any other is a failure.
    async fn until_any(
        &self,
        wanted: &[StatusCode],
        what: &str,
        request: impl Fn() -> RequestBuilder,
    ) -> Value {
        let ends = Instant::now() + STUBBORN;
        let answer = loop {
            self.counts.asked.fetch_add(1, Ordering::Relaxed);
            let seen = match ask(request()).await {
                Ok(answer) if wanted.contains(&answer.status) => break answer.body,
                Ok(answer) => {
                    assert!(
                        answer.asks_again(),
                        "{what}: no answer that a client can do something with: {answer:?}"
                    );
                    format!("{answer:?}")
                }
                Err(error) => format!("{error:?}"),
            };
            assert!(
                Instant::now() < ends,
                "in {STUBBORN:?} it did not come about: {what}; seen last: {seen}"
            );
            sleep(PAUSE).await;
        };
        self.counts.done.fetch_add(1, Ordering::Relaxed);
        answer
    }
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    says_when: bool,
    body: Value,
}

impl Answer {
    /// Whether it is early and clear: not now, ask again.
    fn asks_again(&self) -> bool {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => true,
            StatusCode::CONFLICT => self.says_when,
            _ => false,
        }
    }
}

async fn ask(request: RequestBuilder) -> reqwest::Result<Answer> {
    let answer = request.timeout(ANSWER).send().await?;
    let status = answer.status();
    let says_when = answer.headers().contains_key("retry-after");
    let text = answer.text().await?;
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Ok(Answer {
        status,
        says_when,
        body,
    })
}

/// The event in which a provider tells of an order's payment.
pub fn event_of(order: &str) -> String {
    format!("paid-{order}")
}

/// Waits for a condition as long as a test may wait.
pub async fn until<T>(what: &str, ask: impl AsyncFnMut() -> anyhow::Result<T>) -> T {
    eventually(PATIENCE, what, ask).await
}

/// Waits until all that a silent replica held from now on, or before, has run out: the lock of a cron lives longest, ten
/// seconds, and another replica runs the slots since.
///
/// # Errors
/// Where the database does not answer.
pub async fn every_lease_ends(db: &PgPool, pid: u32) -> anyhow::Result<()> {
    let silent: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()")
        .fetch_one(db)
        .await?;
    until("every lease of the silent replica has ended", async || {
        let (over, slots): (bool, i64) = sqlx::query_as(
            "select clock_timestamp() > $1 + interval '11 seconds', count(distinct slot) from coordination.cron_runs
                where job = 'cancel-expired-orders' and state = 'succeeded' and started_at > $1
                and instance not like '%:' || $2",
        )
        .bind(silent)
        .bind(pid.to_string())
        .fetch_one(db)
        .await?;
        ensure!(over && slots > 0, "{slots} slots ran since");
        Ok(())
    })
    .await;
    Ok(())
}
