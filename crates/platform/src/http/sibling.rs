//! Calls from one service to the instances of another, past the gateway.

use std::future::Future;
use std::time::Duration;

use axum::body::Body;
use contracts::Service;
use coordination::Registry;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::timeout;
use tracing::warn;
use uuid::Uuid;

use crate::Platform;
use crate::auth::{CurrentUser, IDENTITY_HEADER, Occasion, SERVICE_HEADER};

/// How long the registry may take to tell where the service is.
const FIND: Duration = Duration::from_secs(1);
/// How long an instance may take to accept a connection …
const CONNECT: Duration = Duration::from_secs(1);
/// … and to answer, until the answer is read.
const ANSWER: Duration = Duration::from_secs(3);
/// How long it may take over a call that is made for a caller: below the 8 s in which a request is answered.
const ANSWER_FOR: Duration = Duration::from_millis(7_300);
/// Bytes of such an answer.
const MOST: usize = 1 << 20;
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

enum Failed {
    /// The instance has not seen the call.
    NotTaken,
    /// It may have.
    Other,
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

    /// What an instance answers to a call that is made for a caller of ours, as if the caller had called it; a body is JSON, and
    /// so is the answer. Another instance is asked only where one takes no connection, so that nothing is done twice. Of an API
    /// key the scopes that the called route wants must be held against the route that was called here.
    ///
    /// # Errors
    /// Where nobody takes the call, or answers in time: then it may have been done.
    pub async fn ask_for(
        &self,
        user: &CurrentUser,
        method: &Method,
        target: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value), Away> {
        let away = Away(self.to);
        let registry = Registry::new(self.platform.redis.clone(), self.platform.keys.clone());
        let Ok(Ok(snapshot)) = timeout(FIND, registry.read()).await else {
            return Err(away);
        };
        let mut instances: Vec<_> = snapshot.of(self.to.name()).iter().collect();
        instances.sort_by_key(|entry| (entry.load.draining, entry.load.outstanding));
        for entry in instances.into_iter().take(ASKED) {
            let address = &entry.announcement.address;
            let request = self.spoken_for(user, method, (address, target), body);
            let asking = async {
                let answer = self.client.request(request.ok_or(Failed::Other)?).await;
                let answer = answer.map_err(|error| match error.is_connect() {
                    true => Failed::NotTaken,
                    false => Failed::Other,
                })?;
                let status = answer.status();
                let body = Limited::new(answer.into_body(), MOST).collect().await;
                let body = body.map_err(|_| Failed::Other)?.to_bytes();
                Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
            };
            match timeout(ANSWER_FOR, asking).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Failed::NotTaken)) => {
                    warn!(
                        "{} of {} at {address} takes no connection",
                        entry.instance,
                        self.to.name()
                    );
                }
                Ok(Err(Failed::Other)) | Err(_) => {
                    warn!(
                        "{} of {} at {address} gave no answer to {target}",
                        entry.instance,
                        self.to.name()
                    );
                    return Err(away);
                }
            }
        }
        Err(away)
    }

    fn spoken_for(
        &self,
        user: &CurrentUser,
        method: &Method,
        (address, target): (&str, &str),
        body: Option<&Value>,
    ) -> Option<Request<Body>> {
        let request_id = HeaderValue::try_from(Uuid::new_v4().to_string()).ok()?;
        let occasion = Occasion {
            method,
            target: &target.parse().ok()?,
            request_id: &request_id,
        };
        let identity = self
            .platform
            .auth
            .speak_for(user, occasion, self.platform.clock.now());
        Request::builder()
            .method(method)
            .uri(format!("http://{address}{target}"))
            .header("x-request-id", &request_id)
            .header(IDENTITY_HEADER, identity)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.map_or_else(Body::empty, |body| body.to_string().into()))
            .ok()
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
