//! Where a user is reached, asked of the service of users when it is needed: an address that changed yesterday is not
//! written to today.

use std::time::Duration;

use contracts::{Service, UserId};
use coordination::Registry;
use http::{Method, StatusCode};
use platform::Platform;
use platform::auth::SERVICE_HEADER;
use reqwest::Client;
use reqwest::redirect::Policy;
use serde::Deserialize;
use tokio::time::timeout;

use super::Failure;

const CONNECT: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(3);
/// How long the registry may take to tell where the service is.
const FIND: Duration = Duration::from_secs(2);
/// How many instances are asked.
const ASKED: usize = 3;

/// The addresses of a user.
#[derive(Clone, Debug, Deserialize)]
pub struct Contact {
    /// For mail.
    pub email: String,
    /// For text messages.
    pub phone: Option<String>,
}

/// The way to the service of users. Clones share connections.
#[derive(Clone, Debug)]
pub struct Contacts {
    platform: Platform,
    client: Client,
}

impl Contacts {
    /// Connects when it is used.
    ///
    /// # Errors
    /// Where the client cannot be set up.
    pub fn new(platform: &Platform) -> anyhow::Result<Self> {
        let client = Client::builder()
            .redirect(Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT)
            .timeout(ANSWER);
        Ok(Self {
            platform: platform.clone(),
            client: client.build()?,
        })
    }

    /// The addresses of a user.
    ///
    /// # Errors
    /// Final where there is no such user, or one who left.
    pub async fn find(&self, user: &UserId) -> Result<Contact, Failure> {
        let registry = Registry::new(self.platform.redis.clone(), self.platform.keys.clone());
        let Ok(Ok(snapshot)) = timeout(FIND, registry.read()).await else {
            return Err(Failure::Passing(
                "nobody can tell where the service of users is".to_owned(),
            ));
        };
        let mut instances: Vec<_> = snapshot.of(Service::Users.name()).iter().collect();
        instances.sort_by_key(|entry| (entry.load.draining, entry.load.outstanding));
        for entry in instances.into_iter().take(ASKED) {
            match self.ask(&entry.announcement.address, user).await {
                Ok(Some(contact)) => return Ok(contact),
                Ok(None) => return Err(Failure::Final("there is no such user".to_owned())),
                Err(error) => tracing::warn!(
                    "{} of users gave no contact: {}",
                    entry.instance,
                    error.without_url()
                ),
            }
        }
        Err(Failure::Passing(
            "no instance of the service of users answers".to_owned(),
        ))
    }

    async fn ask(&self, address: &str, user: &UserId) -> reqwest::Result<Option<Contact>> {
        let path = format!("/internal/users/{user}/contact");
        let now = self.platform.clock.now();
        let credential =
            self.platform
                .auth
                .service_credential(Service::Notifications, now, &Method::GET, &path);
        let request = self.client.get(format!("http://{address}{path}"));
        let answer = request.header(SERVICE_HEADER, credential).send().await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            _ => answer.error_for_status()?.json().await.map(Some),
        }
    }
}
