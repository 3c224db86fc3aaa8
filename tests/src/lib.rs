//! What the end-to-end tests share: calls to a cluster as its clients make them.

pub mod adb;
pub mod leftovers;
pub mod operator;
pub mod sockets;

use std::time::Duration;

use anyhow::{Context, ensure};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use testkit::{Cluster, eventually, fresh};

/// The port of the gateway.
pub const GATEWAY: u16 = 30_000;
/// The port of the billing service.
pub const BILLING: u16 = 30_005;
/// The port of the notification service.
pub const NOTIFICATIONS: u16 = 30_006;

/// What a test waits for at the longest; it is only reached by failures.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A reply with its body read as JSON.
#[derive(Debug)]
pub struct Reply {
    /// The status code.
    pub status: StatusCode,
    /// The body; null where there is none.
    pub body: Value,
}

impl Reply {
    /// The body, if the status is the one expected.
    ///
    /// # Panics
    /// Where it is another: the body says why.
    pub fn expect(self, status: u16) -> Value {
        self.expect_at("", status)
    }

    /// The body, if the status is the one expected of what the panic then names.
    ///
    /// # Panics
    /// Where it is another: the body says why.
    pub fn expect_at(self, what: &str, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{what} {:#}", self.body);
        self.body
    }
}

/// Calls a URL with an optional JSON body, on a fresh connection.
pub async fn call(method: Method, url: String, body: Option<Value>) -> anyhow::Result<Reply> {
    call_with(&fresh(), method, url, body).await
}

/// Calls a URL with a client of the test's choice.
pub async fn call_with(
    client: &Client,
    method: Method,
    url: String,
    body: Option<Value>,
) -> anyhow::Result<Reply> {
    let mut request = client.request(method, &url);
    if let Some(body) = body {
        request = request.json(&body);
    }
    let response = request.send().await.with_context(|| url.clone())?;
    let status = response.status();
    let text = response.text().await.with_context(|| url.clone())?;
    let body = if text.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    };
    Ok(Reply { status, body })
}

/// The own addresses of a service's instances, as the registry has them.
pub async fn instances(cluster: &Cluster, service: &str) -> anyhow::Result<Vec<String>> {
    let program = testkit::gateway_program()?;
    let stores = cluster.stores()?;
    let output = tokio::process::Command::new(program)
        .args(["status", "--json"])
        .env("CLOUDPHONE_HOME", cluster.home())
        // Not those that other tests share.
        .env("REDIS_URL", stores.redis_url)
        .env("DATABASE_URL", stores.database_url)
        .kill_on_drop(true)
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let entries: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    let of_service = entries.iter().filter(|entry| entry["service"] == service);
    of_service
        .map(|entry| {
            Ok(entry["address"]
                .as_str()
                .context("an entry without address")?
                .to_owned())
        })
        .collect()
}

/// The own addresses of a service's instances, once there are so many.
pub async fn all_instances(cluster: &Cluster, service: &str, count: usize) -> Vec<String> {
    eventually(
        PATIENCE,
        &format!("{count} instances of {service} in the registry"),
        async || {
            let found = instances(cluster, service).await?;
            ensure!(found.len() == count, "{found:?}");
            Ok(found)
        },
    )
    .await
}

/// Places an order through the gateway and gives it.
///
/// # Errors
/// Where it is refused.
pub async fn place_order(cluster: &Cluster, user: &str) -> anyhow::Result<Value> {
    let ask = json!({ "userId": user, "planId": "basic", "amount": 100 });
    let reply = call(
        Method::POST,
        cluster.url(GATEWAY, "/api/billing/orders"),
        Some(ask),
    )
    .await?;
    ensure!(reply.status == StatusCode::CREATED, "{reply:?}");
    Ok(reply.body)
}

/// Tells an instance of billing that an order was paid, as the seed's curl does.
///
/// # Errors
/// Where the instance cannot be reached.
pub async fn notice(address: &str, order: &str, event: Option<&str>) -> anyhow::Result<Reply> {
    let event = event
        .map(|event| format!("&eventId={event}"))
        .unwrap_or_default();
    let url = format!("http://{address}/webhooks/payment");
    let response = fresh()
        .post(url)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(format!("orderId={order}&status=paid{event}"))
        .send()
        .await?;
    let status = response.status();
    Ok(Reply {
        status,
        body: response.json().await.unwrap_or_default(),
    })
}

/// A text in a JSON value.
///
/// # Panics
/// Where it is not there.
pub fn text(value: &Value, field: &str) -> String {
    value[field]
        .as_str()
        .unwrap_or_else(|| panic!("no {field} in {value:#}"))
        .to_owned()
}

/// Registers a user through the gateway, signs in, and gives the token.
///
/// # Errors
/// Where either is refused.
pub async fn register(cluster: &Cluster, username: &str) -> anyhow::Result<String> {
    let ask = json!({ "username": username, "email": format!("{username}@example.com"), "password": "Correct1horse" });
    let reply = call(
        Method::POST,
        cluster.url(GATEWAY, "/api/auth/register"),
        Some(ask),
    )
    .await?;
    ensure!(reply.status == StatusCode::CREATED, "{reply:?}");
    let ask = json!({ "username": username, "password": "Correct1horse" });
    let reply = call(
        Method::POST,
        cluster.url(GATEWAY, "/api/auth/login"),
        Some(ask),
    )
    .await?;
    ensure!(reply.status == StatusCode::OK, "{reply:?}");
    Ok(text(&reply.body, "access_token"))
}
