//! Accounts, asked of the service of users when they are needed: an address that changed yesterday is not written to
//! today.

use contracts::{Service, UserId};
use http::Response;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use platform::Platform;
pub use platform::http::Away;
use platform::http::Sibling;
use serde::Deserialize;
use serde::de::DeserializeOwned;

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

/// The way to the service of users. Clones share connections.
#[derive(Clone, Debug)]
pub struct Accounts {
    users: Sibling,
}

impl Accounts {
    /// Connects when it is used.
    pub fn new(platform: &Platform) -> Self {
        Self {
            users: Sibling::new(platform, Service::Notifications, Service::Users),
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
            .ok_or(Away(Service::Users))
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
        self.get("/internal/users", &query)
            .await?
            .ok_or(Away(Service::Users))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, query: &str) -> Result<Option<T>, Away> {
        let read = async |answer: Response<Incoming>| {
            let body = Limited::new(answer.into_body(), MOST).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
            Ok(serde_json::from_slice(&body)?)
        };
        self.users.get(path, query, read).await
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
