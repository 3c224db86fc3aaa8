//! What became of a request: every gateway replica is asked, for each remembers only what went through itself.

use std::time::Duration;

use contracts::Service;
use coordination::Entry;
use futures::StreamExt;
use futures::stream::iter;
use gateway::front::record::Record;
use http::{Method, StatusCode};
use platform::auth::SERVICE_HEADER;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

/// How long a replica may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// How long all of them may take together.
const ALL_WITHIN: Duration = Duration::from_secs(3);
/// Replicas that are asked at once.
const AT_ONCE: usize = 16;

/// What is known of the requests of one id.
#[derive(Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Explanation {
    /// Newest first; a client may have used the id more than once.
    pub requests: Vec<Found>,
    /// Gateways that did not answer in time, as `instance-1 at 10.0.0.7:41873`: they may know more.
    pub silent: Vec<String>,
}

/// A record, and whose it is.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Found {
    /// The gateway instance that the request went through.
    pub gateway: String,
    #[serde(flatten)]
    pub record: Record,
}

/// Asks gateway replicas over HTTP.
#[derive(Clone, Debug)]
pub struct Inquiry(reqwest::Client);

impl Inquiry {
    /// Connects when it is used.
    pub fn new() -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(ANSWER_WITHIN)
            .build()?;
        Ok(Self(client))
    }

    /// Asks these gateways what they remember. `sign` makes the credential for a path.
    pub async fn ask(
        &self,
        gateways: &[&Entry],
        request_id: &str,
        sign: impl Fn(&Method, &str) -> String,
    ) -> Explanation {
        let id: String = form_urlencoded::byte_serialize(request_id.as_bytes()).collect();
        let path = format!("/gateway/requests/{id}");
        let until = Instant::now() + ALL_WITHIN;
        let asked = gateways.iter().map(|gateway| {
            let credential = sign(&Method::GET, &path);
            let asked = self.ask_one(&gateway.announcement.address, &path, credential);
            async move { (*gateway, timeout_at(until, asked).await) }
        });
        let mut asked = iter(asked.collect::<Vec<_>>()).buffer_unordered(AT_ONCE);
        let mut all = Explanation::default();
        while let Some((gateway, answer)) = asked.next().await {
            match answer {
                Ok(Some(found)) => all.requests.extend(found),
                Ok(None) | Err(_) => {
                    let address = &gateway.announcement.address;
                    all.silent
                        .push(format!("{} at {address}", gateway.instance));
                }
            }
        }
        all.sort();
        all
    }

    /// What one gateway remembers; `None` where it did not say.
    async fn ask_one(&self, address: &str, path: &str, credential: String) -> Option<Vec<Found>> {
        let request = self.0.get(format!("http://{address}{path}"));
        let answer = request
            .header(SERVICE_HEADER, credential)
            .send()
            .await
            .ok()?;
        match answer.status() {
            StatusCode::OK => Some(answer.json::<Explanation>().await.ok()?.requests),
            StatusCode::NOT_FOUND => Some(Vec::new()),
            _ => None,
        }
    }
}

impl Explanation {
    /// Adds what another one knows.
    pub fn join(&mut self, other: Self) {
        self.requests.extend(other.requests);
        self.silent.extend(other.silent);
        self.sort();
    }

    fn sort(&mut self) {
        self.requests
            .sort_by_key(|found| std::cmp::Reverse(found.record.received_at));
        self.silent.sort();
    }
}

/// The gateways of the cluster.
pub fn gateways(snapshot: &coordination::Snapshot) -> Vec<&Entry> {
    snapshot.of(Service::Gateway.name()).iter().collect()
}
