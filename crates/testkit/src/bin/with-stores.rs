//! Runs a command with a private Redis and PostgreSQL of its own: `with-stores cargo test`.
//!
//! The command finds them in `REDIS_URL` and `DATABASE_URL`; they end with it, and their data goes.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use embedded::SupervisorCommand;
use sqlx::{Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;
use tokio::process::Command;

/// The argument by which this program is started again to keep the stores.
const SUPERVISE: &str = "--supervise";

const USAGE: &str = "usage: with-stores COMMAND [ARGUMENTS]: runs the command with REDIS_URL and DATABASE_URL of a private \
    Redis and PostgreSQL, which end with it";

fn main() -> anyhow::Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        bail!(USAGE);
    };
    if program == "--help" || program == "-h" {
        bail!(USAGE);
    }
    if program == SUPERVISE {
        let dir: PathBuf = arguments.next().context("the folder is missing")?.into();
        return embedded::supervise(&dir).map(|()| ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let folder = TempDir::with_prefix("stores-")?;
        let args = vec![SUPERVISE.into(), folder.path().into()];
        let supervisor = SupervisorCommand {
            program: std::env::current_exe()?,
            args,
        };
        let stores = embedded::join(folder.path(), supervisor).await?;
        forgo_durability(&stores.database_url).await?;
        let mut command = Command::new(&program);
        command
            .args(arguments)
            .env("REDIS_URL", &stores.redis_url)
            .env("DATABASE_URL", &stores.database_url);
        let outcome = command.status().await;
        stores.leave().await;
        while embedded::is_running(folder.path()) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let status = outcome.with_context(|| format!("starting {}", program.display()))?;
        Ok(ExitCode::from(
            status
                .code()
                .and_then(|code| u8::try_from(code).ok())
                .unwrap_or(1),
        ))
    })
}

/// Data that go with the command need not survive the machine: a slow disk makes no test late.
async fn forgo_durability(database_url: &str) -> anyhow::Result<()> {
    let mut postgres = PgConnection::connect(database_url).await?;
    for statement in [
        "alter system set fsync = off",
        "alter system set full_page_writes = off",
        "select pg_reload_conf()",
    ] {
        postgres
            .execute(statement)
            .await
            .with_context(|| format!("executing {statement}"))?;
    }
    Ok(())
}
