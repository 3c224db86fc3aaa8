//! What it costs to wait for jobs.

use std::time::{Duration, Instant};

use coordination::cron::{Cron, Job};
use coordination::{Keys, Redlock};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::load::load;
use crate::report::Figure;
use crate::stores::Private;

/// Measures a cron with one job, then one with all.
pub async fn run(jobs: u32, seconds: u32, rounds: u32) -> anyhow::Result<Vec<Figure>> {
    let private = Private::start().await?;
    let db = private.database().await?;
    let span = Duration::from_secs(seconds.into());
    let mut figures = Vec::new();
    for (rival, count) in [("one job", 1), ("all jobs", jobs)] {
        let url = private.redis_url().to_owned();
        let redlock = Redlock::new(vec![url], Duration::from_secs(10))?;
        let cron = Cron::new(db.clone(), redlock, rival.to_owned()).with_keys(Keys::new("bench"));
        let stop = CancellationToken::new();
        let running = cron.run((0..count).map(never_due).collect(), stop.clone());
        let measuring = async {
            // Until every job has been looked at once.
            tokio::time::sleep(Duration::from_secs(6)).await;
            let (mut ours, mut redis, mut statements) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..rounds {
                let (started, before) = (Instant::now(), transactions(&db).await?);
                let load = load(&private, span).await?;
                ours.push(load.ours);
                redis.push(load.redis);
                let done = transactions(&db).await? - before;
                statements.push(done as f64 / started.elapsed().as_secs_f64());
            }
            stop.cancel();
            anyhow::Ok([
                ("% (process)", ours),
                ("% (Redis)", redis),
                ("transactions/s", statements),
            ])
        };
        let (ended, measured) = tokio::join!(running, measuring);
        ended?;
        figures.extend(measured?.map(|(unit, values)| Figure {
            condition: format!("{jobs} jobs, none due"),
            rival,
            unit,
            values,
        }));
    }
    db.close().await;
    private.end().await?;
    Ok(figures)
}

fn never_due(number: u32) -> Job {
    // A job has its name for as long as the process lives.
    let name: &'static str = Box::leak(format!("job-{number}").into_boxed_str());
    Job::new(name, "0 0 1 1 *", |_| async { Ok(()) })
}

async fn transactions(db: &PgPool) -> anyhow::Result<i64> {
    let query = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()";
    Ok(sqlx::query_scalar(query).fetch_one(db).await?)
}
