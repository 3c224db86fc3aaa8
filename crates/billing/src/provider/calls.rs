//! Calls to providers: with a deadline, a bound on the answer, and no secret in an error.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder};
use serde_json::Value;

use super::Failure;

/// How long a connection and a whole call may take. A request of a client, which waits for one, has eight seconds.
const CONNECT: Duration = Duration::from_secs(2);
const WHOLE: Duration = Duration::from_secs(5);
/// Bytes of an answer. None that we understand comes near.
const MOST: usize = 256 * 1024;

/// An answer of a provider.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// A client for one provider.
///
/// # Errors
/// Where TLS cannot be set up.
pub fn client() -> anyhow::Result<Client> {
    Ok(Client::builder()
        .redirect(Policy::none())
        .connect_timeout(CONNECT)
        .timeout(WHOLE)
        .build()?)
}

/// Makes a call and reads its answer, whatever its status.
///
/// # Errors
/// `Unclear` where no whole answer came: it may have been carried out.
pub async fn call(request: RequestBuilder) -> Result<Answer, Failure> {
    let unclear = |error: reqwest::Error| {
        // The address may hold what nobody should read in a log.
        let error = error.without_url();
        Failure::Unclear(if error.is_timeout() {
            "no answer in time".to_owned()
        } else if error.is_connect() {
            "could not be reached".to_owned()
        } else {
            error.to_string()
        })
    };
    let mut response = request.send().await.map_err(unclear)?;
    let (status, headers) = (response.status(), response.headers().clone());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unclear)? {
        if body.len() + chunk.len() > MOST {
            return Err(Failure::Unclear("the answer is too long".to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer {
        status,
        headers,
        body,
    })
}

impl Answer {
    /// The body, which has to be JSON.
    pub fn json(&self) -> Result<Value, Failure> {
        serde_json::from_slice(&self.body)
            .map_err(|_| Failure::Unclear(format!("the answer {} is not JSON", self.status)))
    }

    /// A refusal, if the status says that asking again changes nothing.
    pub fn failure(&self, said: &str) -> Failure {
        let said = bounded(said);
        // Too many requests, and conflicts with a call that still runs, pass.
        let passes = matches!(
            self.status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::CONFLICT | StatusCode::REQUEST_TIMEOUT
        );
        if self.status.is_client_error() && !passes {
            Failure::Refused(format!("{} {said}", self.status.as_u16()))
        } else {
            Failure::Unclear(format!("{} {said}", self.status.as_u16()))
        }
    }
}

/// What a provider said, cut to what a row and a log line can take.
pub fn bounded(said: &str) -> String {
    said.chars()
        .filter(|character| !character.is_control())
        .take(200)
        .collect()
}
