//! A user of a replica: registered, and signed in.

use std::time::Duration;

use anyhow::{Context, ensure};
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::process::Process;

/// How long is waited until the replica serves.
const PATIENCE: Duration = Duration::from_secs(300);

/// Registers a user as soon as a replica serves, and signs in; the token.
pub async fn sign_in(process: &mut Process, client: &Client, base: &str) -> anyhow::Result<String> {
    let user = json!({ "username": "bench", "password": "correct horse 4 batteries", "email": "bench@example.com" });
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        process.ensure_alive()?;
        let register = client.post(format!("{base}/auth/register")).json(&user);
        match register.send().await {
            Ok(reply) if reply.status() == StatusCode::CREATED => break,
            // It is not there yet.
            Ok(_) | Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
    let login = client.post(format!("{base}/auth/login")).json(&user);
    let reply = expect(login.send().await?, StatusCode::OK).await?;
    let reply: Value = serde_json::from_str(&reply)?;
    let token = reply.pointer("/access_token");
    let token = token.or_else(|| reply.pointer("/data/access_token"));
    let token = token.and_then(Value::as_str);
    Ok(token.context("who signed in got no token")?.to_owned())
}

/// Says what a request was answered that should have been done.
pub async fn expect(response: Response, status: StatusCode) -> anyhow::Result<String> {
    let (got, text) = (response.status(), response.text().await?);
    ensure!(got == status, "{got} in place of {status}: {text}");
    Ok(text)
}
