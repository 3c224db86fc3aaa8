//! Orders to be paid: one is made as clients make it, the others are its copies.

use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::replicas::Replicas;
use crate::stores::Private;

/// Orders of which each client pays its own.
pub struct Batch {
    /// What tells them from those of other turns.
    pub number: u32,
    /// How many clients there are.
    pub clients: usize,
    /// How many orders each of them pays.
    pub each: usize,
}

impl Batch {
    /// The id of an order; clients count from 0, orders from 1, as in `peers/payment.sql`.
    pub fn order_id(&self, client: usize, order: usize) -> String {
        format!("bench-{}-{client}-{order}", self.number)
    }

    /// How many orders there are.
    pub fn count(&self) -> usize {
        self.clients * self.each
    }
}

/// Makes orders.
pub struct Orders {
    db: PgPool,
    template: String,
    batches: u32,
}

impl Orders {
    /// Makes the one that is copied.
    pub async fn prepare(stores: &Private, folder: &Path) -> anyhow::Result<Self> {
        let db = stores.database().await?;
        let servers = Replicas::start(stores, folder, 1).await?;
        let made = order(&servers).await;
        servers.end().await?;
        Ok(Self {
            db,
            template: made?,
            batches: 0,
        })
    }

    /// Makes some for a turn. What earlier turns left for others to do is put aside.
    pub async fn make(&mut self, clients: usize, each: usize) -> anyhow::Result<Batch> {
        self.batches += 1;
        let batch = Batch {
            number: self.batches,
            clients,
            each,
        };
        sqlx::query(
            "insert into billing.orders
                (id, order_no, user_id, plan_id, plan_name, terms, amount, final_amount, state, expires_at, created_at, updated_at)
            select format('bench-%s-%s-%s', $2, client, number), format('BENCH-%s-%s-%s', $2, client, number),
                user_id, plan_id, plan_name, terms, amount, final_amount, state, now() + interval '1 day', created_at, updated_at
            from billing.orders, generate_series(0, $3 - 1) client, generate_series(1, $4) number
            where id = $1",
        )
        .bind(&self.template)
        .bind(batch.number.to_string())
        .bind(i32::try_from(clients)?)
        .bind(i32::try_from(each)?)
        .execute(&self.db)
        .await?;
        let tidy = [
            "update platform.outbox set settled_at = now() where settled_at is null",
            "vacuum (analyze) billing.orders",
            "checkpoint",
        ];
        for statement in tidy {
            let tidied = sqlx::raw_sql(statement).execute(&self.db).await;
            tidied.context("tidying up between two turns")?;
        }
        Ok(batch)
    }

    /// An error unless each order of a turn was paid once, and every movement's legs sum to zero.
    pub async fn ensure_paid(&self, batch: &Batch) -> anyhow::Result<()> {
        let (paid, posted): (i64, i64) = sqlx::query_as(
            "select count(*) filter (where o.state = 'PAID'), coalesce(sum(
                (select count(*) from billing.transactions t join billing.postings p on p.transaction_id = t.id
                 where t.order_id = o.id and abs(p.amount) = o.final_amount)), 0)::bigint
            from billing.orders o where o.id like format('bench-%s-%%', $1)",
        )
        .bind(batch.number.to_string())
        .fetch_one(&self.db)
        .await?;
        let count = i64::try_from(batch.count())?;
        ensure!(
            (paid, posted) == (count, 2 * count),
            "{paid} of {count} orders were paid, with {posted} postings"
        );
        Ok(())
    }

    /// Ends it.
    pub async fn end(self) -> anyhow::Result<()> {
        self.db.close().await;
        Ok(())
    }
}

async fn order(servers: &Replicas) -> anyhow::Result<String> {
    let client = reqwest::Client::builder().timeout(super::START).build()?;
    let user = json!({ "username": "bench", "password": "correct horse 4 batteries", "email": "bench@example.com" });
    let users = servers.users.context("nobody serves users")?;
    let mut token = String::new();
    for path in ["register", "login"] {
        let url = format!("http://{users}/auth/{path}");
        let reply = client.post(url).json(&user).send().await?;
        let reply: Value = reply.error_for_status()?.json().await?;
        token = text(&reply, "/access_token").unwrap_or_default();
    }
    let url = format!("http://{}/orders", servers.addresses[0]);
    let order = client.post(url).bearer_auth(token);
    let order = order.json(&json!({ "planId": "basic" })).send().await?;
    let order: Value = order.error_for_status()?.json().await?;
    text(&order, "/id").with_context(|| format!("an order without an id: {order}"))
}

fn text(reply: &Value, at: &str) -> Option<String> {
    let found = reply
        .pointer(at)
        .or_else(|| reply.pointer(&format!("/data{at}")));
    found.and_then(Value::as_str).map(str::to_owned)
}
