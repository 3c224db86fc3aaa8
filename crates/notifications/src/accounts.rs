//! Accounts, asked of the service of users when they are needed: an address that changed yesterday is not written to
//! today.

use std::time::Duration;

use axum::body::Body;
use contracts::{Service, UserId};
use coordination::Registry;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use platform::Platform;
use platform::auth::SERVICE_HEADER;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tracing::warn;

/// How long an instance may take to accept a connection, and to answer.
const CONNECT: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(2);
/// How long the registry may take to tell where the service is.
const FIND: Duration = Duration::from_secs(1);
/// How many instances are asked.
const ASKED: usize = 2;
/// Bytes of an answer.
const MOST: usize = 256 * 1024;

/// The addresses of a user.
#[derive(Clone, Debug, Deserialize)]
pub struct Contact {
    /// For mail.
    pub email: String,
    /// For text messages.
    pub phone: Option<String>,
}

/// How many active accounts there are, and the number of the newest.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Census {
    /// How many.
    pub count: i64,
    /// The number of the newest; 0 where there is none.
    pub last_seq: i64,
}

/// An account and its number.
#[derive(Clone, Debug, Deserialize)]
pub struct Numbered {
    /// Who it is.
    pub id: UserId,
    /// Grows with each registration.
    pub seq: i64,
}

/// No instance of the service of users has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the service of users does not answer")]
pub struct Away;

/// The way to the service of users. Clones share connections.
#[derive(Clone, Debug)]
pub struct Accounts {
    platform: Platform,
    client: Client<HttpConnector, Body>,
}

impl Accounts {
    /// Connects when it is used.
    pub fn new(platform: &Platform) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        Self {
            platform: platform.clone(),
            client: Client::builder(TokioExecutor::new()).build(connector),
        }
    }

    /// The addresses of a user; `None` where there is no such user, or one who left.
    ///
    /// # Errors
    /// Where the service of users does not answer.
    pub async fn contact(&self, user: &UserId) -> Result<Option<Contact>, Away> {
        self.get(&format!("/internal/users/{user}/contact"), "")
            .await
    }

    /// How many active accounts there are, of those with a role where one is named.
    ///
    /// # Errors
    /// Where the service of users does not answer.
    pub async fn census(&self, role: Option<&str>) -> Result<Census, Away> {
        let query = self::query(role, "");
        self.get("/internal/users/census", &query)
            .await?
            .ok_or(Away)
    }

    /// The active accounts after a number and up to another one, in order, at most `limit`.
    ///
    /// # Errors
    /// Where the service of users does not answer.
    pub async fn page(
        &self,
        role: Option<&str>,
        (after, upto): (i64, i64),
        limit: i64,
    ) -> Result<Vec<Numbered>, Away> {
        let query = self::query(role, &format!("after={after}&upto={upto}&limit={limit}"));
        self.get("/internal/users", &query).await?.ok_or(Away)
    }

    /// What any instance answers; `None` for 404.
    async fn get<T: DeserializeOwned>(&self, path: &str, query: &str) -> Result<Option<T>, Away> {
        let registry = Registry::new(self.platform.redis.clone(), self.platform.keys.clone());
        let Ok(Ok(snapshot)) = timeout(FIND, registry.read()).await else {
            return Err(Away);
        };
        let mut instances: Vec<_> = snapshot.of(Service::Users.name()).iter().collect();
        // Who leaves is asked last, the least loaded first.
        instances.sort_by_key(|entry| (entry.load.draining, entry.load.outstanding));
        for entry in instances.into_iter().take(ASKED) {
            let address = &entry.announcement.address;
            match timeout(ANSWER, self.ask(address, path, query)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => {
                    warn!(
                        "{} of users at {address} gave no answer: {error:#}",
                        entry.instance
                    );
                }
                Err(_) => warn!("{} of users at {address} did not answer", entry.instance),
            }
        }
        Err(Away)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        address: &str,
        path: &str,
        query: &str,
    ) -> anyhow::Result<Option<T>> {
        let now = self.platform.clock.now();
        let auth = &self.platform.auth;
        let credential = auth.service_credential(Service::Notifications, now, &Method::GET, path);
        let request = Request::get(format!("http://{address}{path}?{query}"))
            .header(SERVICE_HEADER, credential)
            .body(Body::empty())?;
        let answer = self.client.request(request).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            status => anyhow::bail!("it answered {status}"),
        }
        let body = Limited::new(answer.into_body(), MOST).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
        Ok(Some(serde_json::from_slice(&body)?))
    }
}

fn query(role: Option<&str>, more: &str) -> String {
    let mut query = form_urlencoded::Serializer::new(more.to_owned());
    if let Some(role) = role {
        query.append_pair("role", role);
    }
    query.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_quoted_in_a_query() {
        assert_eq!(query(Some("a&b=c"), "after=1"), "after=1&role=a%26b%3Dc");
        assert_eq!(query(None, ""), "");
    }
}
