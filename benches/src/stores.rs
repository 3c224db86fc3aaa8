//! Stores of the benchmark's own.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use embedded::{Stores, SupervisorCommand};
use fred::prelude::*;
use fred::types::InfoKind;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tempfile::TempDir;

/// A Redis and a PostgreSQL that end with this value's [`Private::end`].
pub struct Private {
    folder: TempDir,
    stores: Stores,
    /// One connection, so that every rival pays for the same round trips.
    pub redis: Pool,
}

impl Private {
    /// Starts it.
    pub async fn start() -> anyhow::Result<Self> {
        let folder = TempDir::with_prefix("bench-")?;
        let args = vec!["supervise".into(), folder.path().into()];
        let supervisor = SupervisorCommand {
            program: std::env::current_exe()?,
            args,
        };
        let stores = embedded::join(folder.path(), supervisor).await?;
        let redis = Builder::from_config(Config::from_url(&stores.redis_url)?).build_pool(1)?;
        redis
            .init()
            .await
            .context("connecting to the private Redis")?;
        Ok(Self {
            folder,
            stores,
            redis,
        })
    }

    /// Where its Redis is.
    pub fn redis_url(&self) -> &str {
        &self.stores.redis_url
    }

    /// Where its PostgreSQL is.
    pub fn database_url(&self) -> &str {
        &self.stores.database_url
    }

    /// Its PostgreSQL, with all tables.
    pub async fn database(&self) -> anyhow::Result<PgPool> {
        let url = &self.stores.database_url;
        let db = PgPoolOptions::new()
            .max_connections(16)
            .connect(url)
            .await?;
        let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
        sqlx::migrate::Migrator::new(migrations)
            .await?
            .run(&db)
            .await?;
        Ok(db)
    }

    /// The processor time its Redis has used.
    pub async fn redis_time(&self) -> anyhow::Result<Duration> {
        let text: String = self.redis.next().info(Some(InfoKind::Cpu)).await?;
        let of = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.trim().parse().ok())
                .unwrap_or(0.0)
        };
        Ok(Duration::from_secs_f64(
            of("used_cpu_sys:") + of("used_cpu_user:"),
        ))
    }

    /// Ends it and waits until it is gone.
    pub async fn end(self) -> anyhow::Result<()> {
        self.redis.quit().await?;
        self.stores.leave().await;
        while embedded::is_running(self.folder.path()) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        Ok(())
    }
}
