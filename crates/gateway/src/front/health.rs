//! `/health` of the gateway: itself, and every service by asking one of its instances.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use contracts::{Service, Timestamp};
use futures::future::join_all;
use http::{Request, StatusCode, header};
use platform::Clock;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::front::body::Outgoing;
use crate::front::group::Group;
use crate::front::instance::Instance;
use crate::front::upstreams::Upstreams;

/// How long an answer holds.
const FRESH: Duration = Duration::from_secs(5);
/// How long one instance may take, so that a second one can be asked within [`PATIENCE`].
const PROBE: Duration = Duration::from_millis(450);
/// How long a caller may have to wait.
const PATIENCE: Duration = Duration::from_millis(950);

/// What the gateway says about itself.
#[derive(Clone, Debug)]
pub struct About {
    /// The program's version.
    pub version: &'static str,
    /// The profile's name.
    pub environment: &'static str,
    /// The time.
    pub clock: Clock,
}

/// The whole answer.
#[derive(Clone, Debug, Serialize)]
pub struct Health {
    /// `ok`, or `degraded` where a service is not healthy.
    pub status: &'static str,
    /// Always `api-gateway`.
    pub service: &'static str,
    /// Which gateway answers.
    pub instance: String,
    /// The program's version.
    pub version: &'static str,
    /// When it answers.
    pub timestamp: Timestamp,
    /// Seconds since it started.
    pub uptime: u64,
    /// The profile's name.
    pub environment: &'static str,
    /// Every service by name.
    pub services: BTreeMap<&'static str, ServiceHealth>,
}

/// What is known of a service.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceHealth {
    /// `healthy` or `unhealthy`.
    pub status: &'static str,
    /// Who was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Milliseconds until it answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_time: Option<u64>,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

type Services = Arc<BTreeMap<&'static str, ServiceHealth>>;

struct Prober {
    upstreams: Upstreams,
    about: About,
    name: Box<dyn Fn() -> String + Send + Sync>,
    began: Instant,
    probes: TaskTracker,
    last: Mutex<Option<Round>>,
}

/// One round of asking, under way or done.
struct Round {
    began: Instant,
    result: watch::Receiver<Option<Services>>,
    before: Option<Services>,
}

/// A router that answers `/health`, whatever the method. `name` tells the gateway's own instance.
pub fn health(
    upstreams: Upstreams,
    about: About,
    name: impl Fn() -> String + Send + Sync + 'static,
) -> Router {
    let prober = Arc::new(Prober {
        upstreams,
        about,
        name: Box::new(name),
        began: Instant::now(),
        probes: TaskTracker::new(),
        last: Mutex::default(),
    });
    let answer = move || {
        let prober = prober.clone();
        async move { prober.answer().await }
    };
    Router::new().route("/health", any(answer))
}

impl Prober {
    async fn answer(self: Arc<Self>) -> Response {
        let services = self.services().await;
        let well = services.values().all(|service| service.status == "healthy");
        let health = Health {
            status: if well { "ok" } else { "degraded" },
            service: Service::Gateway.public_name(),
            instance: (self.name)(),
            version: self.about.version,
            timestamp: self.about.clock.now(),
            uptime: self.began.elapsed().as_secs(),
            environment: self.about.environment,
            services: (*services).clone(),
        };
        match serde_json::to_string(&health) {
            Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }

    /// The services as of 5 s ago at most; when asking takes too long, as they were before.
    async fn services(self: &Arc<Self>) -> Services {
        let (mut result, before) = self.round();
        let waited = timeout(PATIENCE, result.wait_for(Option::is_some)).await;
        let fresh = match waited {
            Ok(Ok(services)) => services.clone(),
            Ok(Err(_)) | Err(_) => None,
        };
        fresh.or(before).unwrap_or_else(|| {
            let silent = |group: &Group| {
                (
                    group.service.name(),
                    ServiceHealth::unhealthy(None, "did not answer in time"),
                )
            };
            Arc::new(self.upstreams.groups().map(silent).collect())
        })
    }

    /// Joins the round that is under way or still fresh, or begins one.
    fn round(self: &Arc<Self>) -> (watch::Receiver<Option<Services>>, Option<Services>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(round) = last.as_ref().filter(|round| round.began.elapsed() < FRESH) {
            return (round.result.clone(), round.before.clone());
        }
        let before = last.as_ref().and_then(|round| {
            round
                .result
                .borrow()
                .clone()
                .or_else(|| round.before.clone())
        });
        let (done, result) = watch::channel(None);
        let prober = self.clone();
        self.probes.spawn(async move {
            let asked = join_all(prober.upstreams.groups().map(ask)).await;
            done.send_replace(Some(Arc::new(asked.into_iter().collect())));
        });
        *last = Some(Round {
            began: Instant::now(),
            result: result.clone(),
            before: before.clone(),
        });
        (result, before)
    }
}

impl ServiceHealth {
    fn unhealthy(url: Option<String>, error: impl Into<String>) -> Self {
        Self {
            status: "unhealthy",
            url,
            response_time: None,
            error: Some(error.into()),
        }
    }
}

/// Asks one instance, and where that one fails another one.
async fn ask(group: &Group) -> (&'static str, ServiceHealth) {
    let name = group.service.name();
    let Some(first) = group.pick(&[], Instance::outstanding) else {
        return (
            name,
            ServiceHealth::unhealthy(None, "no instance is registered"),
        );
    };
    let health = probe(&first).await;
    if health.status == "healthy" {
        return (name, health);
    }
    match group.pick(&[first], Instance::outstanding) {
        Some(second) => (name, probe(&second).await),
        None => (name, health),
    }
}

async fn probe(instance: &Arc<Instance>) -> ServiceHealth {
    let url = format!("http://{}", instance.address);
    let request = Request::get("/health")
        .header(header::HOST, &*instance.address)
        .body(Outgoing::Empty);
    let Ok(request) = request else {
        return ServiceHealth::unhealthy(Some(url), "its address is not one");
    };
    let began = Instant::now();
    match timeout(PROBE, instance.send(request)).await {
        Ok(Ok((response, _held))) if response.status() == StatusCode::OK => ServiceHealth {
            status: "healthy",
            url: Some(url),
            response_time: u64::try_from(began.elapsed().as_millis()).ok(),
            error: None,
        },
        Ok(Ok((response, _held))) => {
            ServiceHealth::unhealthy(Some(url), format!("answered {}", response.status()))
        }
        Ok(Err(error)) => ServiceHealth::unhealthy(Some(url), error.to_string()),
        Err(_) => ServiceHealth::unhealthy(Some(url), "did not answer in time"),
    }
}
