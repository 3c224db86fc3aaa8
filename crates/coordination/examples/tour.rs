//! A walk through the guarantees of this crate, on real stores:
//!
//! ```sh
//! cargo build --workspace --bins --examples
//! target/debug/with-stores target/debug/examples/tour
//! ```
//!
//! `with-stores` starts a Redis and a PostgreSQL of its own, sets `REDIS_URL` and `DATABASE_URL` for the command, and ends
//! them with it; `cargo run` in its place needs both set.

use std::time::Duration;

use anyhow::Context;
use coordination::redlock::SHORTEST_TTL;
use coordination::{
    Cron, FenceError, Job, Keys, Leases, PortError, PortPool, PortRanges, Recorded, Redlock, Run,
};
use fred::clients::Pool;
use fred::prelude::{Builder, ClientLike, Config, KeysInterface, ReconnectPolicy};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

const TTL: Duration = Duration::from_secs(10);

/// Where the tour keeps what it makes.
pub struct Stores {
    pub redis: Pool,
    pub redis_url: String,
    pub db: PgPool,
    pub keys: Keys,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let redis_url = setting("REDIS_URL")?;
    let db = PgPool::connect(&setting("DATABASE_URL")?).await?;
    sqlx::migrate!("../../migrations").run(&db).await?;
    let redis = connect(&redis_url).await?;
    let keys = Keys::new("tour");
    let stores = Stores {
        redis,
        redis_url,
        db,
        keys,
    };
    take(&stores).await
}

fn setting(name: &str) -> anyhow::Result<String> {
    std::env::var(name)
        .with_context(|| format!("{name} is not set; `with-stores` starts stores and sets it"))
}

pub async fn connect(redis_url: &str) -> anyhow::Result<Pool> {
    let mut builder = Builder::from_config(Config::from_url(redis_url)?);
    // Without a policy the client never reconnects; without a time-out its callers hang.
    builder
        .set_policy(ReconnectPolicy::new_exponential(0, 50, 1000, 2))
        .with_performance_config(|performance| {
            performance.default_command_timeout = Duration::from_secs(2);
        });
    let redis = builder.build_pool(2)?;
    redis.init().await?;
    Ok(redis)
}

pub async fn take(stores: &Stores) -> anyhow::Result<()> {
    late_holder(stores).await?;
    ports(stores).await?;
    once_a_slot(stores).await
}

/// A holder that does not know that its lease is gone writes nothing.
async fn late_holder(stores: &Stores) -> anyhow::Result<()> {
    sqlx::raw_sql(
        "create table if not exists public.tour_reports (id text primary key, text text not null);
        do $$ begin
            perform coordination.fence_table('public.tour_reports', 'report:', 'id');
        exception when duplicate_object then null; end $$",
    )
    .execute(&stores.db)
    .await?;
    let leases = Leases::new(stores.redis.clone(), stores.db.clone(), stores.keys.clone());
    let held = async || -> anyhow::Result<_> {
        let lease = leases.acquire("report:may", TTL).await?;
        lease.ok_or_else(|| anyhow::anyhow!("another holds the lease"))
    };

    let first = held().await?;
    // Redis loses its data, and another takes the lease: the first holder has not heard of it.
    let _: i64 = stores.redis.del(stores.keys.lease("report:may")).await?;
    let second = held().await?;

    let mut tx = second.guard().begin(&stores.db).await?;
    sqlx::query("insert into public.tour_reports values ('may', 'by the second') on conflict (id) do update set text = excluded.text")
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    match first.guard().begin(&stores.db).await {
        Err(FenceError::Fenced { token, highest, .. }) => {
            say(&format!(
                "lease   token {token} is late, {highest} is known: refused"
            ));
        }
        Err(error) => return Err(error.into()),
        Ok(_) => anyhow::bail!("the late holder may write"),
    }
    Ok(())
}

/// Three ports or none, the lowest that are free; the index is built anew where Redis has none.
async fn ports(stores: &Stores) -> anyhow::Result<()> {
    let rest = Duration::from_secs(60);
    let pool = PortPool::new(
        stores.redis.clone(),
        stores.keys.clone(),
        PortRanges::default(),
        rest,
    );
    let set = match pool.lease("node-1", "device-1", TTL).await {
        Err(PortError::IndexMissing { .. }) => {
            // What the database knows of held and resting ports; here nothing.
            pool.rebuild("node-1", &Recorded::default(), TTL).await?;
            pool.lease("node-1", "device-1", TTL).await?
        }
        answer => answer?,
    };
    say(&format!(
        "ports   {} {} {}",
        set.adb, set.webrtc, set.scrcpy
    ));
    pool.release("node-1", "device-1", set).await?;
    Ok(())
}

/// Two replicas have the same job; each slot is run by one of them, and its effect is in the database once.
async fn once_a_slot(stores: &Stores) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut replicas = Vec::new();
    let (ran, mut runs) = tokio::sync::mpsc::channel::<(&str, Run)>(8);
    for name in ["replica-0", "replica-1"] {
        let redlock = Redlock::new(vec![stores.redis_url.clone()], SHORTEST_TTL)?;
        let cron =
            Cron::new(stores.db.clone(), redlock, name.to_owned()).with_keys(stores.keys.clone());
        let (db, ran) = (stores.db.clone(), ran.clone());
        let job = Job::new("tour", "* * * * * *", move |run: Run| {
            let (db, ran) = (db.clone(), ran.clone());
            async move {
                let mut tx = db.begin().await?;
                // … the effect of the job …
                run.complete(&mut tx).await?;
                tx.commit().await?;
                let _ = ran.try_send((name, run));
                Ok(())
            }
        });
        replicas.push(Box::pin(cron.run(vec![job], stop.clone())));
    }
    let watching = async {
        for _ in 0..2 {
            if let Some((name, run)) = runs.recv().await {
                say(&format!(
                    "cron    slot {} with token {}, run by {name}",
                    run.slot, run.fence
                ));
            }
        }
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(futures::future::try_join_all(replicas), watching);
    ended?;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the tour speaks")]
fn say(line: &str) {
    println!("{line}");
}
