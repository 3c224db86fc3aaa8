//! `gateway migrate`.

use platform::Env;
use platform::lifecycle::Readiness;
use serde_json::json;

use super::tell;
use crate::cluster::Cluster;
use crate::serve::Config;

/// Brings the database up to date; joining a cluster does just that.
pub async fn migrate(env: Env, as_json: bool) -> anyhow::Result<i32> {
    let cluster = Cluster::join(Config::from_env(env)?.settings, Readiness::default()).await?;
    let version: i64 = sqlx::query_scalar("select coalesce(max(version), 0) from _sqlx_migrations")
        .fetch_one(&cluster.platform.db)
        .await?;
    cluster.leave().await;
    let line = format!("the database is up to date, at migration {version}");
    tell(as_json, &json!({ "migration": version }), &line)?;
    Ok(0)
}
