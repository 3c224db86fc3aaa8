//! PostgreSQL: the pool, its deadlines, and the migrations.

use std::time::Duration;

use anyhow::Context;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool, Row};
use tokio::time::Instant;
use tracing::info;

pub use crate::migrate::{migrate, migrate_within};

/// Every migration of the system, in the order of time.
pub static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// How long a statement may run; below the 8 s within which a request is answered.
const STATEMENT_TIMEOUT: &str = "6s";
/// How long a transaction may idle: its client is gone or stuck, and its row locks stand in others' way.
const IDLE_TRANSACTION_TIMEOUT: &str = "15s";
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a server may recover before a replica that starts gives up, and how often it is asked meanwhile.
const RECOVERY: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// Opens a pool of `least` to `most` connections.
///
/// # Errors
/// Where the URL cannot be read, the server does not answer within 3 s, or recovers for more than a minute; the text names the server, never the password.
pub async fn connect(url: &str, (least, most): (u32, u32)) -> anyhow::Result<PgPool> {
    let options: PgConnectOptions = url.parse().map_err(|_| {
        anyhow::anyhow!(
            "DATABASE_URL cannot be read: it looks like postgres://user:password@host:5432/database"
        )
    })?;
    let place = format!("{}:{}", options.get_host(), options.get_port());
    let options = options.application_name("cloudphone").options([
        ("statement_timeout", STATEMENT_TIMEOUT),
        (
            "idle_in_transaction_session_timeout",
            IDLE_TRANSACTION_TIMEOUT,
        ),
    ]);
    // Asked once by itself, since a pool only tells that its time was over.
    let ends = Instant::now() + RECOVERY;
    let first = loop {
        let asked = PgConnection::connect_with(&options);
        match tokio::time::timeout(ACQUIRE_TIMEOUT, asked).await {
            Ok(Err(error)) if is_recovering(&error) && Instant::now() < ends => {
                info!("PostgreSQL at {place} is starting up; waiting for it");
                tokio::time::sleep(ASK_AGAIN).await;
            }
            first => break first,
        }
    };
    match first {
        Ok(Ok(connection)) => _ = connection.close().await,
        Ok(Err(error)) if is_recovering(&error) => {
            anyhow::bail!("PostgreSQL at {place} has been starting up for {RECOVERY:?}: {error}")
        }
        Ok(Err(sqlx::Error::Database(refusal))) => {
            let reason = refusal.message().to_owned();
            anyhow::bail!(
                "PostgreSQL at {place} refuses us ({reason}): correct user, password and database in DATABASE_URL"
            );
        }
        Ok(Err(error)) => return Err(error).with_context(|| silent(&place)),
        Err(_) => anyhow::bail!("{}: nothing came for 3 s", silent(&place)),
    }
    PgPoolOptions::new()
        .min_connections(least)
        .max_connections(most)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // This asks the server, too.
        .test_before_acquire(false)
        .before_acquire(|connection, _| Box::pin(async { Ok(is_clean(connection).await) }))
        .connect_with(options)
        .await
        .with_context(|| silent(&place))
}

/// Whether the server is there and takes nobody yet (`cannot_connect_now`), as after a crash.
fn is_recovering(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == "57P03")
}

/// Whether a connection lives and is in no transaction. One whose `begin` was dropped before the server answered comes
/// back to the pool within a transaction that the driver does not know of: what its next user writes would be undone later.
async fn is_clean(connection: &mut PgConnection) -> bool {
    // Outside of a transaction a statement sent as text, not prepared, begins its own.
    let asked = sqlx::raw_sql("select transaction_timestamp() = statement_timestamp()");
    let answer = asked.fetch_one(connection).await;
    match answer.and_then(|row| row.try_get(0)) {
        Ok(true) => true,
        Ok(false) => {
            info!(
                "closed a connection to PostgreSQL on which a cancelled request had left a transaction open"
            );
            false
        }
        Err(error) => {
            info!("closed a connection to PostgreSQL that had ended: {error}");
            false
        }
    }
}

fn silent(place: &str) -> String {
    format!("PostgreSQL at {place} does not answer: start it, or correct DATABASE_URL")
}
