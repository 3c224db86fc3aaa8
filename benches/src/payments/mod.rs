//! Payments: signed notices that pay an order each, beside the same transaction in pgbench and in a handler in Node.
//!
//! pgbench sends the very statements that our handler sends (`peers/payment.sql`), with no HTTP, no signature and no
//! program between: what PostgreSQL can do at most with this transaction. All work on the same tables of one database.

mod express;
mod notices;
mod orders;
mod pgbench;
mod replicas;

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::report::Figure;
use crate::stores::Private;
use notices::Turn;
use orders::Orders;
use replicas::Replicas;

/// How payments are measured.
pub struct Plan {
    /// How often each has its turn.
    pub rounds: u32,
    /// How many payments a turn makes.
    pub payments: usize,
    /// The numbers of clients, each with one payment on its way.
    pub clients: Vec<usize>,
}

const PGBENCH: &str = "pgbench, the same statements";
const RIVALS: [(&str, Server, usize); 4] = [
    ("ours, one replica", Server::Ours, 1),
    ("ours, three replicas", Server::Ours, 3),
    ("Express + pg, one process", Server::Express, 1),
    ("Express + pg, three processes", Server::Express, 3),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    Ours,
    Express,
}

/// Measures everybody in turn.
pub async fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let stores = Private::start().await?;
    let folder = TempDir::with_prefix("bench-")?;
    let mut orders = Orders::prepare(&stores, folder.path()).await?;
    let mut figures = Vec::new();
    for clients in &plan.clients {
        figures.extend(measure(plan, *clients, &stores, folder.path(), &mut orders).await?);
    }
    orders.end().await?;
    stores.end().await?;
    Ok(figures)
}

async fn measure(
    plan: &Plan,
    clients: usize,
    stores: &Private,
    folder: &Path,
    orders: &mut Orders,
) -> anyhow::Result<Vec<Figure>> {
    let each = plan.payments.div_ceil(clients);
    let mut limit = Vec::new();
    let mut rates = RIVALS.map(|_| Vec::new());
    let mut firsts = RIVALS.map(|_| Vec::new());
    let mut again = RIVALS.map(|_| Vec::new());
    for round in 0..=plan.rounds {
        let turn = orders.make(clients, each).await?;
        let rate = pgbench::run(stores.database_url(), folder, &turn).await?;
        orders.ensure_paid(&turn).await?;
        // The first round warms everybody up.
        if round > 0 {
            limit.push(rate);
        }
        for (rival, (_, server, processes)) in RIVALS.into_iter().enumerate() {
            let servers = match server {
                Server::Ours => Replicas::start(stores, folder, processes).await?,
                Server::Express => express::start(stores, folder, processes).await?,
            };
            let measured = one_turn(&servers, clients, each, orders).await;
            servers.end().await?;
            let (first, second) = measured?;
            if round > 0 {
                rates[rival].push(first.rate());
                firsts[rival].push(first.quantile_ms(0.99));
                again[rival].push(second.quantile_ms(0.99));
            }
        }
    }
    let condition = format!("{clients} clients");
    let mut figures = vec![Figure {
        condition: condition.clone(),
        rival: PGBENCH,
        unit: "payments/s",
        values: limit,
    }];
    figures.extend(
        RIVALS
            .iter()
            .zip(rates)
            .map(|((rival, ..), values)| Figure {
                condition: condition.clone(),
                rival,
                unit: "payments/s",
                values,
            }),
    );
    for ((rival, ..), (firsts, again)) in RIVALS.iter().zip(firsts.into_iter().zip(again)) {
        let condition = format!("{condition}, {rival}");
        for (rival, values) in [("a first delivery", firsts), ("a second delivery", again)] {
            figures.push(Figure {
                condition: condition.clone(),
                rival,
                unit: "ms p99",
                values,
            });
        }
    }
    Ok(figures)
}

/// Every notice once, and then every one again.
async fn one_turn(
    servers: &Replicas,
    clients: usize,
    each: usize,
    orders: &mut Orders,
) -> anyhow::Result<(Turn, Turn)> {
    // So that connections are open and statements prepared before the clock runs.
    let warm_up = orders.make(clients, WARM_UP).await?;
    notices::deliver(&servers.addresses, &warm_up, false).await?;
    notices::deliver(&servers.addresses, &warm_up, true).await?;
    let turn = orders.make(clients, each).await?;
    let first = notices::deliver(&servers.addresses, &turn, false).await?;
    let second = notices::deliver(&servers.addresses, &turn, true).await?;
    orders.ensure_paid(&turn).await?;
    Ok((first, second))
}

/// How many payments each client makes before it is measured.
const WARM_UP: usize = 30;
/// How long a server may take to answer for the first time.
const START: Duration = Duration::from_secs(60);
/// The key that signs the notices of the benchmark.
const SECRET: &[u8] = b"a key of the benchmark, 32 byte.";
