//! Calls from one service to the instances of another, past the gateway.

use std::future::Future;
use std::time::Duration;

use axum::body::Body;
use contracts::Service;
use coordination::Registry;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::timeout;
use tracing::warn;

use crate::Platform;
use crate::auth::SERVICE_HEADER;

/// How long the registry may take to tell where the service is.
const FIND: Duration = Duration::from_secs(1);
/// How long an instance may take to accept a connection …
const CONNECT: Duration = Duration::from_secs(1);
/// … and to answer, until the answer is read.
const ANSWER: Duration = Duration::from_secs(3);
/// How many instances are asked.
const ASKED: usize = 2;

/// No instance of a service has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no instance of the service of {} answers; try again", .0.name())]
pub struct Away(pub Service);

/// The way from one service to another. Clones share connections.
#[derive(Clone, Debug)]
pub struct Sibling {
    platform: Platform,
    from: Service,
    to: Service,
    client: Client<HttpConnector, Body>,
}

impl Sibling {
    /// Connects when it is used.
    pub fn new(platform: &Platform, from: Service, to: Service) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        Self {
            platform: platform.clone(),
            from,
            to,
            client: Client::builder(TokioExecutor::new()).build(connector),
        }
    }

    /// What an instance answers to a GET, as `read` makes it out; `None` where it says 404. Another instance is asked
    /// where one does not answer, answers otherwise than 200, or so that `read` fails; the least loaded is asked first,
    /// and who leaves last. Takes seven seconds at most.
    ///
    /// # Errors
    /// Where nobody answers.
    pub async fn get<T, R, F>(&self, path: &str, query: &str, read: R) -> Result<Option<T>, Away>
    where
        R: Fn(Response<Incoming>) -> F,
        F: Future<Output = anyhow::Result<T>>,
    {
        let away = Away(self.to);
        let registry = Registry::new(self.platform.redis.clone(), self.platform.keys.clone());
        let Ok(Ok(snapshot)) = timeout(FIND, registry.read()).await else {
            return Err(away);
        };
        let mut instances: Vec<_> = snapshot.of(self.to.name()).iter().collect();
        instances.sort_by_key(|entry| (entry.load.draining, entry.load.outstanding));
        for entry in instances.into_iter().take(ASKED) {
            let address = &entry.announcement.address;
            let asking = async {
                match self.ask(address, path, query).await? {
                    None => Ok(None),
                    Some(answer) => read(answer).await.map(Some),
                }
            };
            let (instance, to) = (&entry.instance, self.to.name());
            match timeout(ANSWER, asking).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => {
                    warn!("{instance} of {to} at {address} gave no answer to {path}: {error:#}");
                }
                Err(_) => warn!("{instance} of {to} at {address} did not answer {path} in time"),
            }
        }
        Err(away)
    }

    async fn ask(
        &self,
        address: &str,
        path: &str,
        query: &str,
    ) -> anyhow::Result<Option<Response<Incoming>>> {
        let now = self.platform.clock.now();
        let auth = &self.platform.auth;
        let credential = auth.service_credential(self.from, now, &Method::GET, path);
        let request = Request::get(format!("http://{address}{path}?{query}"))
            .header(SERVICE_HEADER, credential)
            .body(Body::empty())?;
        let answer = self.client.request(request).await?;
        match answer.status() {
            StatusCode::OK => Ok(Some(answer)),
            StatusCode::NOT_FOUND => Ok(None),
            status => anyhow::bail!("it answered {status}"),
        }
    }
}
