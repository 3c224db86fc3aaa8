//! What an operator does: commands of the binary, and calls with an administrator's token.

use std::process::Stdio;

use anyhow::{Context, ensure};
use reqwest::header::{AUTHORIZATION, HeaderMap};
use reqwest::{Client, Method};
use serde_json::json;
use testkit::Cluster;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::{GATEWAY, call, text};

/// Runs a command of the binary on the cluster, and gives what it printed.
///
/// # Errors
/// Where it failed, with what it said on standard error.
pub async fn gateway(cluster: &Cluster, arguments: &[&str], input: &str) -> anyhow::Result<String> {
    let mut child = command(cluster, arguments)?.spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(input.as_bytes()).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// A command of the binary on the cluster, with pipes to and from it, that ends with the test.
///
/// # Errors
/// Where the binary is not built.
pub fn command(cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(testkit::gateway_program()?);
    command
        .args(arguments)
        .env("CLOUDPHONE_HOME", cluster.home())
        .env_remove("REDIS_URL")
        .env_remove("DATABASE_URL")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Ok(command)
}

/// A client that sends a token.
///
/// # Errors
/// Where the token is none.
pub fn bearing(token: &str) -> anyhow::Result<Client> {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, format!("Bearer {token}").parse()?);
    Ok(Client::builder()
        .no_proxy()
        .default_headers(headers)
        .build()?)
}

/// An administrator, made and signed in.
///
/// # Errors
/// Where either is refused.
pub async fn administrator(cluster: &Cluster) -> anyhow::Result<Client> {
    bearing(&administrator_token(cluster).await?)
}

/// The token of an administrator, made and signed in.
///
/// # Errors
/// Where either is refused.
pub async fn administrator_token(cluster: &Cluster) -> anyhow::Result<String> {
    let named = [
        "admin",
        "create",
        "--username",
        "root",
        "--email",
        "root@example.com",
    ];
    gateway(cluster, &named, "Correct1horse\n").await?;
    let ask = json!({ "username": "root", "password": "Correct1horse" });
    let url = cluster.url(GATEWAY, "/api/auth/login");
    let signed_in = call(Method::POST, url, Some(ask)).await?.expect(200);
    Ok(text(&signed_in, "access_token"))
}
