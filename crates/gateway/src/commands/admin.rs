//! `gateway admin`.

use std::io::Read;

use anyhow::Context;
use platform::Env;
use platform::lifecycle::Readiness;
use serde_json::json;

use super::tell;
use crate::cluster::Cluster;
use crate::serve::Config;

/// Makes an administrator, with the password from the standard input.
pub async fn create_admin(
    env: Env,
    (username, email): (&str, &str),
    as_json: bool,
) -> anyhow::Result<i32> {
    let config = Config::from_env(env)?;
    let mut password = String::new();
    std::io::stdin()
        .take(1024)
        .read_to_string(&mut password)
        .context("reading the password from standard input")?;
    let password = password.trim_end_matches(['\n', '\r']).to_owned();
    let cluster = Cluster::join(config.settings, Readiness::default()).await?;
    let made = users::create_admin(&cluster.platform, username, email, password.into()).await;
    cluster.leave().await;
    let id = made?;
    let line = format!("the administrator {username} may sign in, with the id {id}");
    let told = json!({ "id": id, "username": username });
    tell(as_json, &told, &line)?;
    Ok(0)
}
