//! `/health` in turn: successive calls of the shared port are answered by one gateway replica after the other.
//!
//! The kernel spreads connections by chance; who asks ten times wants to see every replica. So a call of the shared
//! port is passed to the replica whose turn it is. Calls of a replica's own port, and all calls while Redis or the
//! other replica does not answer at once, are answered here.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use contracts::Service;
use coordination::{Registry, Snapshot};
use fred::interfaces::KeysInterface;
use http::{Method, StatusCode, header};
use platform::Platform;
use platform::http::Json;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::timeout;

/// Whose turn it is must be known at once, or it is ours.
const PATIENCE: Duration = Duration::from_millis(100);
/// A replica answers its `/health` within a second; a frozen one is passed over.
const ANSWER_WITHIN: Duration = Duration::from_millis(1500);

#[derive(Clone)]
struct Turns {
    platform: Platform,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    client: reqwest::Client,
}

/// Puts the taking of turns around the route of `/health`.
pub fn in_turn(health: Router, platform: &Platform, registry: &Registry) -> anyhow::Result<Router> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(ANSWER_WITHIN)
        .build()?;
    let turns = Turns {
        platform: platform.clone(),
        snapshots: registry.watch(),
        client,
    };
    Ok(health.layer(from_fn_with_state(turns, take_turn)))
}

async fn take_turn(State(turns): State<Turns>, request: Request, next: Next) -> Response {
    if request.method() == Method::GET
        && turns.is_for_the_shared_port(&request)
        && let Some(address) = turns.whose().await
        && let Some(answer) = turns.ask(&address).await
    {
        return answer;
    }
    next.run(request).await
}

impl Turns {
    fn is_for_the_shared_port(&self, request: &Request) -> bool {
        let host = request
            .headers()
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        let port = host.and_then(|host| host.rsplit_once(':')?.1.parse::<u16>().ok());
        port == Some(self.platform.settings.address(Service::Gateway).port())
    }

    /// The own address of the replica whose turn it is, where that is another one.
    async fn whose(&self) -> Option<String> {
        let snapshot = self.snapshots.borrow().clone();
        let ready: Vec<_> = snapshot
            .of(Service::Gateway.name())
            .iter()
            .filter(|entry| !entry.load.draining)
            .collect();
        if ready.len() < 2 {
            return None;
        }
        let turn = self
            .platform
            .redis
            .incr::<u64, _>(self.platform.keys.key("health-turn"));
        let turn = timeout(PATIENCE, turn).await.ok()?.ok()?;
        let entry = ready[usize::try_from(turn).ok()? % ready.len()];
        let ours = entry.instance == self.platform.instance(Service::Gateway);
        (!ours).then(|| entry.announcement.address.clone())
    }

    async fn ask(&self, address: &str) -> Option<Response> {
        let answer = self
            .client
            .get(format!("http://{address}/health"))
            .send()
            .await
            .ok()?;
        let healthy = answer.status() == StatusCode::OK;
        let body: Value = answer.json().await.ok()?;
        healthy.then(|| Json(body).into_response())
    }
}
