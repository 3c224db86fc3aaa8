//! A PostgreSQL that dies and comes back.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::PgPool;

use crate::audit::all_holds;
use crate::load::{Load, replicas, until};

#[tokio::test]
async fn a_postgres_that_crashes_and_one_that_restarts() -> anyhow::Result<()> {
    let cluster = replicas().start().await?;
    let load = Load::start(&cluster).await?;

    // At once, with recovery from its log; then in good order, which ends every session. Its supervisor starts it again.
    for signal in [Signal::SIGKILL, Signal::SIGINT] {
        let before = until("PostgreSQL answers", async || {
            Ok(postmaster(&cluster.database().await?).await?)
        })
        .await;
        kill(Pid::from_raw(before), signal)?;
        until("PostgreSQL is back", async || {
            let db = cluster.database().await?;
            anyhow::ensure!(postmaster(&db).await? != before, "not ended yet");
            Ok(())
        })
        .await;
        load.goes_on(20).await;
    }

    all_holds(&cluster, load).await
}

/// The number of the server's first process.
async fn postmaster(db: &PgPool) -> sqlx::Result<i32> {
    sqlx::query_scalar("select split_part(pg_read_file('postmaster.pid'), e'\\n', 1)::integer")
        .fetch_one(db)
        .await
}
