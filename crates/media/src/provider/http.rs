//! A function behind a URL. Messages are signed by the Standard Webhooks specification.

use std::error::Error;
use std::time::Duration;

use futures::future::BoxFuture;
use http::{StatusCode, header};
use platform::standard_webhook;
use reqwest::redirect::Policy;
use reqwest::{Client, Response, Url};
use secrecy::SecretSlice;

use super::{Function, Refusal};

const CONNECT: Duration = Duration::from_secs(3);
/// Bytes of an answer.
const MOST: usize = 1 << 20;

/// A function behind a URL.
pub struct HttpFunction {
    client: Client,
    url: Url,
    key: SecretSlice<u8>,
}

impl HttpFunction {
    /// Connects when it is used.
    ///
    /// # Errors
    /// Where TLS cannot be set up.
    pub fn new(url: &Url, key: SecretSlice<u8>) -> anyhow::Result<Self> {
        Ok(Self {
            client: client()?,
            url: url.clone(),
            key,
        })
    }
}

impl Function for HttpFunction {
    fn call(&self, body: Vec<u8>, now: i64) -> BoxFuture<'_, Result<Vec<u8>, Refusal>> {
        Box::pin(async move {
            let id = hex::encode(rand::random::<[u8; 16]>());
            let mut request = self
                .client
                .post(self.url.clone())
                .header(header::CONTENT_TYPE, "application/json");
            for (name, value) in standard_webhook::sign(&self.key, &id, now, &body) {
                request = request.header(name, value);
            }
            answer(request.body(body).send().await).await
        })
    }
}

/// A client for functions.
///
/// # Errors
/// Where TLS cannot be set up.
pub fn client() -> anyhow::Result<Client> {
    Ok(Client::builder()
        .redirect(Policy::none())
        .connect_timeout(CONNECT)
        .user_agent("Cloudphone")
        .build()?)
}

/// Reads an answer whole, and what its status means.
///
/// # Errors
/// Where it is none, or not a good one.
pub async fn answer(response: reqwest::Result<Response>) -> Result<Vec<u8>, Refusal> {
    let mut response = response.map_err(broken)?;
    let status = response.status();
    let told = || format!("it answered {}", status.as_u16());
    match status {
        _ if status.is_success() => {}
        StatusCode::TOO_MANY_REQUESTS => return Err(Refusal::NotTaken(told())),
        StatusCode::REQUEST_TIMEOUT => return Err(Refusal::Unclear(told())),
        _ if status.is_client_error() => return Err(Refusal::Refused(told())),
        _ => return Err(Refusal::Unclear(told())),
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if body.len() + chunk.len() > MOST {
            return Err(Refusal::Unclear("the answer is too long".to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// A call without an answer. Only where there was no connection is it certain that nothing arrived.
fn broken(error: reqwest::Error) -> Refusal {
    if error.is_connect() {
        return Refusal::NotTaken("it could not be reached".to_owned());
    }
    let error = error.without_url();
    let cause = error.source().map(ToString::to_string);
    Refusal::Unclear(cause.unwrap_or_else(|| "the call was cut off".to_owned()))
}
