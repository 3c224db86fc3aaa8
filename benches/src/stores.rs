//! A Redis of the benchmark's own.

use anyhow::Context;
use embedded::{Stores, SupervisorCommand};
use fred::prelude::*;
use tempfile::TempDir;

/// A Redis that ends with this value's [`Private::end`].
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
