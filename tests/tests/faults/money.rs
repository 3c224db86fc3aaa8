//! Money while replicas are killed and PostgreSQL crashes: every movement that a client was told of stands once in the
//! ledger, and nothing else does.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cluster_tests::operator::administrator_token;
use cluster_tests::{GATEWAY, register};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;
use testkit::{Cluster, Replica};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::load::until;

const CLIENTS: u64 = 6;
/// How many things each client does.
const STEPS: usize = 40;
const KILLS: usize = 5;
const ANSWER: Duration = Duration::from_secs(5);
const STUBBORN: Duration = Duration::from_secs(120);

/// What a client was told, in fen.
#[derive(Debug, Default)]
struct Told {
    user: String,
    recharged: i64,
    consumed: i64,
    refunded: i64,
    frozen: i64,
    paid: Vec<String>,
}

struct Client {
    door: String,
    user: String,
    token: String,
    boss: String,
    random: StdRng,
    asked: usize,
}

#[tokio::test]
async fn money_is_conserved_while_replicas_and_postgres_die() -> anyhow::Result<()> {
    let seed: u64 = match std::env::var("FAULTS_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => rand::random(),
    };
    eprintln!("FAULTS_SEED={seed} repeats the moments of this run");
    let cluster = Cluster::start(3).await?;
    let boss = administrator_token(&cluster).await?;
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let user = format!("saver{number}");
        let client = Client {
            door: cluster.url(GATEWAY, "/api"),
            token: register(&cluster, &user).await?,
            user,
            boss: boss.clone(),
            random: StdRng::seed_from_u64(seed.wrapping_add(number)),
            asked: 0,
        };
        clients.spawn(client.live());
    }

    let killing = cluster
        .replicas()
        .iter()
        .enumerate()
        .map(|(number, replica)| {
            let seed = seed.wrapping_add(1_000 + number as u64);
            kill_often(replica, StdRng::seed_from_u64(seed))
        });
    let (killed, crashed) =
        tokio::join!(futures::future::join_all(killing), crash_postgres(&cluster));
    killed.into_iter().collect::<anyhow::Result<Vec<()>>>()?;
    crashed?;
    let told = clients.join_all().await;

    let db = cluster.database().await?;
    for told in &told {
        assert_told(&db, told).await?;
    }
    let owed = |told: &Told| told.recharged + told.refunded - told.consumed - told.frozen;
    let sums: BTreeMap<String, i64> = sqlx::query_as::<_, (String, i64)>(
        "select a.kind, sum(p.amount)::bigint from billing.postings p join billing.accounts a on a.id = p.account_id
        group by a.kind",
    )
    .fetch_all(&db)
    .await?
    .into_iter()
    .collect();
    let sum = |kind: &str| sums.get(kind).copied().unwrap_or_default();
    assert_eq!(sums.values().sum::<i64>(), 0, "{sums:?}");
    assert_eq!(
        sum("available"),
        told.iter().map(owed).sum::<i64>(),
        "{sums:?}"
    );
    assert_eq!(
        -sum("cash_in"),
        sum("available") + sum("frozen") + sum("revenue") + sum("refunds"),
        "paid in = balances + revenue + refunds: {sums:?}"
    );
    let verdict = ask(
        Method::GET,
        &cluster.url(GATEWAY, "/api/admin/ledger/verify"),
        &boss,
        None,
        "",
    )
    .await?;
    assert_eq!(verdict.1["ok"], true, "{verdict:?}");
    Ok(())
}

/// What a client was told is what the store has, to the fen.
async fn assert_told(db: &PgPool, told: &Told) -> anyhow::Result<()> {
    let user: String = sqlx::query_scalar("select id from users.accounts where username = $1")
        .bind(&told.user)
        .fetch_one(db)
        .await?;
    let kept: Vec<(String, i64)> = sqlx::query_as(
        "select type, sum(amount)::bigint from billing.transactions where user_id = $1 group by type",
    )
    .bind(&user)
    .fetch_all(db)
    .await?;
    let kept: BTreeMap<String, i64> = kept.into_iter().collect();
    let kept = |kind: &str| kept.get(kind).copied().unwrap_or_default();
    assert_eq!(
        kept("recharge"),
        told.recharged,
        "recharged by {}",
        told.user
    );
    assert_eq!(kept("consume"), told.consumed, "consumed by {}", told.user);
    assert_eq!(kept("refund"), told.refunded, "refunded to {}", told.user);
    assert_eq!(
        kept("freeze") - kept("unfreeze"),
        told.frozen,
        "frozen of {}",
        told.user
    );
    let paid: Vec<(String, i64)> = sqlx::query_as(
        "select o.id, count(p.id) from billing.orders o left join billing.payments p on p.order_id = o.id and p.applied
        where o.user_id = $1 and o.paid_at is not null group by o.id",
    )
    .bind(&user)
    .fetch_all(db)
    .await?;
    assert!(paid.iter().all(|(_, count)| *count == 1), "{paid:?}");
    let mut paid: Vec<String> = paid.into_iter().map(|(id, _)| id).collect();
    let mut expected = told.paid.clone();
    paid.sort();
    expected.sort();
    assert_eq!(paid, expected, "orders paid by {}", told.user);
    Ok(())
}

async fn kill_often(replica: &Replica, mut random: StdRng) -> anyhow::Result<()> {
    for _ in 0..KILLS {
        // The moment of a fault, not a wait for anything.
        sleep(Duration::from_millis(random.random_range(300..2_500))).await;
        replica.kill9();
        // One that finds no PostgreSQL ends, and whoever watches over it starts it again.
        until("the replica is back", async || replica.restart().await).await;
    }
    Ok(())
}

/// At once, with recovery from its log; its supervisor starts it again.
async fn crash_postgres(cluster: &Cluster) -> anyhow::Result<()> {
    let before = until("PostgreSQL answers", async || {
        Ok(postmaster(&cluster.database().await?).await?)
    })
    .await;
    kill(Pid::from_raw(before), Signal::SIGKILL)?;
    until("PostgreSQL is back", async || {
        let db = cluster.database().await?;
        ensure!(postmaster(&db).await? != before, "not ended yet");
        Ok(())
    })
    .await;
    Ok(())
}

async fn postmaster(db: &PgPool) -> sqlx::Result<i32> {
    sqlx::query_scalar("select split_part(pg_read_file('postmaster.pid'), e'\\n', 1)::integer")
        .fetch_one(db)
        .await
}

impl Client {
    async fn live(mut self) -> Told {
        let mut told = Told {
            user: self.user.clone(),
            ..Told::default()
        };
        let mut orders = Vec::new();
        for _ in 0..STEPS {
            let fen: i64 = self.random.random_range(1..20_000);
            #[expect(clippy::cast_precision_loss, reason = "small amounts")]
            let money = json!({ "amount": fen as f64 / 100.0 });
            match self.random.random_range(0..10_u32) {
                0..=2 => {
                    self.done("/balance/recharge", money, &[200]).await;
                    told.recharged += fen;
                }
                3 => {
                    if self
                        .done("/balance/consume", money, &[200, 402])
                        .await
                        .is_some()
                    {
                        told.consumed += fen;
                    }
                }
                4 => {
                    if self
                        .done("/balance/freeze", money, &[200, 402])
                        .await
                        .is_some()
                    {
                        told.frozen += fen;
                    }
                }
                5 => {
                    if self
                        .done("/balance/unfreeze", money, &[200, 400])
                        .await
                        .is_some()
                    {
                        told.frozen -= fen;
                    }
                }
                6 | 7 => {
                    let order = self
                        .done("/orders", json!({ "planId": "basic" }), &[201])
                        .await;
                    let id = order.map(|order| order["id"].as_str().unwrap_or_default().to_owned());
                    orders.extend(id);
                }
                8 => {
                    let Some(order) = orders.pop() else { continue };
                    let body = json!({ "orderId": order, "method": "balance" });
                    if self.done("/payments", body, &[201, 402]).await.is_some() {
                        told.consumed += 9_900;
                        told.paid.push(order);
                    } else {
                        orders.push(order);
                    }
                }
                _ => {
                    let Some(order) = told.paid.first().cloned() else {
                        continue;
                    };
                    let path = format!("/orders/{order}/refund");
                    let part = self.random.random_range(1..3_000_i64);
                    #[expect(clippy::cast_precision_loss, reason = "small amounts")]
                    let body = json!({ "amount": part as f64 / 100.0 });
                    let boss = self.boss.clone();
                    if self
                        .done_by(&boss, &path, body, &[200, 409])
                        .await
                        .is_some()
                    {
                        told.refunded += part;
                    }
                }
            }
        }
        told
    }

    async fn done(&mut self, path: &str, body: Value, expected: &[u16]) -> Option<Value> {
        let token = self.token.clone();
        self.done_by(&token, path, body, expected).await
    }

    /// Asks under one key until it is answered as expected; gives the body of the first of the expected statuses.
    async fn done_by(
        &mut self,
        token: &str,
        path: &str,
        body: Value,
        expected: &[u16],
    ) -> Option<Value> {
        self.asked += 1;
        let key = format!("{}-{}", self.user, self.asked);
        let url = format!("{}{path}", self.door);
        let ends = Instant::now() + STUBBORN;
        loop {
            let seen = match ask(Method::POST, &url, token, Some(&body), &key).await {
                // The same key is still at work: not yet an answer.
                Ok((_, reply)) if reply["error"] == "CONFLICT" => reply.to_string(),
                Ok((status, reply)) if expected.contains(&status.as_u16()) => {
                    return (status.as_u16() == expected[0]).then_some(reply);
                }
                Ok((status, reply)) => {
                    assert!(status.is_server_error(), "{path}: {status} {reply}");
                    format!("{status} {reply}")
                }
                Err(error) => format!("{error:?}"),
            };
            assert!(
                Instant::now() < ends,
                "{path} was not done in {STUBBORN:?}; seen last: {seen}"
            );
            sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn ask(
    method: Method,
    url: &str,
    token: &str,
    body: Option<&Value>,
    key: &str,
) -> anyhow::Result<(StatusCode, Value)> {
    let mut request = testkit::fresh()
        .request(method, url)
        .bearer_auth(token)
        .timeout(ANSWER);
    if let Some(body) = body {
        request = request.header("idempotency-key", key).json(body);
    }
    let answer = request.send().await.context("no answer")?;
    let status = answer.status();
    Ok((status, answer.json().await.unwrap_or_default()))
}
