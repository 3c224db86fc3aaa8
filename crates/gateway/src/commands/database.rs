//! `gateway migrate`.

use platform::Env;
use platform::lifecycle::Readiness;

use super::say;
use crate::cluster::Cluster;
use crate::serve::Config;

/// Brings the database up to date; joining a cluster does just that.
pub async fn migrate(env: Env) -> anyhow::Result<i32> {
    let cluster = Cluster::join(Config::from_env(env)?.settings, Readiness::default()).await?;
    let version: i64 = sqlx::query_scalar("select coalesce(max(version), 0) from _sqlx_migrations")
        .fetch_one(&cluster.platform.db)
        .await?;
    cluster.leave().await;
    say(&format!(
        "the database is up to date, at migration {version}"
    ))?;
    Ok(0)
}
