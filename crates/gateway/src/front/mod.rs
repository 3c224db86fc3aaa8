//! The front door: every request enters here and goes to the gateway's own router or to an instance of a service.

mod access;
mod body;
mod breaker;
mod budget;
mod choice;
mod compression;
mod config;
mod connections;
mod cors;
mod deadlines;
mod decisions;
mod exchange;
mod frames;
mod gate;
mod group;
mod headers;
pub mod health;
mod identity;
mod instance;
mod latencies;
mod limit;
mod locality;
mod metrics;
mod outliers;
mod problem;
mod proxy;
pub mod record;
mod recording;
mod refusal;
mod repeat;
mod routes;
mod security;
mod sticky;
mod tunnel;
mod uploads;
mod upstreams;
mod workers;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::ConnectInfo;
use fred::clients::Pool;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::Limited;
use hyper::body::Incoming;
use platform::auth::{IDENTITY_HEADER, Known, Subject};
use platform::http::{ADDRESSEE, DEADLINE, TRACEPARENT, TraceParent};
use platform::serve::tls::Secure;
use platform::{Clock, Problem};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

pub use access::AccessLog;
pub use body::BoxBody;
pub use config::{Balance, FrontConfig, Overload, TlsPort};
pub use cors::Origins;
pub use deadlines::Deadlines;
pub use decisions::Decisions;
pub use gate::GateReport;
pub use group::{GroupReport, Stats};
pub use identity::Identities;
pub use instance::InstanceReport;
pub use limit::{Limiters, RateLimits};
pub use locality::{Locality, hostname};
pub use recording::Recorded;
pub use repeat::Keyed;
pub use upstreams::{Directory, Upstream, Upstreams};
pub use workers::Workers;

use compression::{Compressors, Wish};
use headers::Arrival;
use identity::Presented;
use limit::{Limits, Standing};
use recording::{Recorder, Recording};
use refusal::Refusal;
use routes::{Kind, Route, Target};
use sticky::Sessions;
use uploads::Uploads;

// The future of a request is made and moved for each of them: what few requests come to, and what is large in it because a
// store is asked there, is kept out of it in a box.

/// The front door. Clones are the same one.
#[derive(Clone)]
pub struct Front(Arc<Inner>);

struct Inner {
    config: FrontConfig,
    upstreams: Upstreams,
    sessions: Sessions,
    identities: Option<Identities>,
    limits: Option<Limits>,
    recorder: Recorder,
    compressors: Compressors,
    uploads: Uploads,
    local: Router,
    drain: CancellationToken,
    tunnels: TaskTracker,
    clock: Clock,
}

impl Front {
    /// A front door before these services. `local` serves the gateway's own paths; `drain` says that the process
    /// leaves. Without Redis and limiters nothing is limited, and polling sessions are known to this process alone;
    /// without identities every token is left to the services.
    pub fn new(
        config: FrontConfig,
        upstreams: Upstreams,
        redis: Option<(Pool, Limiters)>,
        identities: Option<Identities>,
        local: Router,
        decisions: Decisions,
        drain: CancellationToken,
    ) -> Self {
        let (redis, limiters) = redis.unzip();
        let limits = config.limits.zip(limiters);
        let limits = limits.map(|(limits, limiters)| Limits::new(limiters, limits));
        let sessions = Sessions::new(redis, config.keys.clone(), config.session_ttl);
        let recorder = Recorder::new(config.access, decisions);
        let (tunnels, clock) = (TaskTracker::new(), Clock::system());
        let uploads = Uploads::new(config.overload.uploads);
        Self(Arc::new(Inner {
            uploads,
            config,
            upstreams,
            sessions,
            identities,
            limits,
            recorder,
            compressors: Compressors::default(),
            local,
            drain,
            tunnels,
            clock,
        }))
    }

    /// Forgets what was remembered for long enough. It wants to be called every few seconds.
    pub fn upkeep(&self) {
        self.0.recorder.forget_old();
    }

    /// Waits until every socket has ended, which they do a moment after `drain`.
    pub async fn drained(&self) {
        self.0.tunnels.close();
        self.0.tunnels.wait().await;
    }
}

impl tower::Service<Request<Incoming>> for Front {
    type Response = Response<Recorded>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// Answers a request. Its extensions name the peer as `ConnectInfo<SocketAddr>`.
    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move { Ok(inner.answer(request).await) })
    }
}

impl Inner {
    async fn answer(&self, request: Request<Incoming>) -> Response<Recorded> {
        let arrival = self.arrival(&request);
        let origin = self.config.origins.admit(request.headers());
        let (uri, version) = (request.uri().clone(), request.version());
        let wish = Wish::of(&request);
        let secure = arrival.is_secure(request.headers());
        let only_by_tls = secure.then_some(self.config.hsts);
        let now = self.clock.now();
        let mut recording = self.recorder.begin(&request, &arrival, now);

        let mut standing = Standing::default();
        let mut response = match cors::preflight(request.method(), request.headers()) {
            Some(preflight) => preflight,
            None => {
                let served = self.serve(request, &arrival, &mut standing, &mut recording);
                served.await.unwrap_or_else(|refusal| {
                    recording.refused(refusal.told());
                    let mut response = refusal.response(self.clock.now(), &arrival.id, uri.path());
                    if refusal.closes() && version < Version::HTTP_2 {
                        response
                            .headers_mut()
                            .insert(header::CONNECTION, HeaderValue::from_static("close"));
                    }
                    response
                })
            }
        };
        response.headers_mut().reserve(headers::ADDED);
        standing.tell(response.headers_mut());
        cors::finish(response.headers_mut(), origin);
        security::finish(response.headers_mut(), only_by_tls);
        response
            .headers_mut()
            .insert(headers::REQUEST_ID, arrival.id);
        recording.answer(wish.fulfil(response, &self.compressors).await)
    }

    fn arrival(&self, request: &Request<Incoming>) -> Arrival {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
        let came = TraceParent::read(request.headers());
        Arrival {
            id: headers::request_id(request.headers()),
            trace: came.map_or_else(TraceParent::begin, TraceParent::step),
            traced: came.is_some(),
            peer: peer.map(|info| info.0.ip()),
            scheme: match request.extensions().get::<Secure>() {
                Some(Secure) => "https",
                None => "http",
            },
            trusted: self.config.trust_forwarded,
        }
    }

    async fn serve(
        &self,
        mut request: Request<Incoming>,
        arrival: &Arrival,
        standing: &mut Standing,
        recording: &mut Recording,
    ) -> Result<Response<BoxBody>, Refusal> {
        if request
            .headers()
            .get_all(header::HOST)
            .iter()
            .nth(1)
            .is_some()
        {
            return Err(Refusal::TwoHosts);
        }
        // A gateway that would pass it on could meet itself again and again.
        if request.headers().contains_key(ADDRESSEE) {
            return Err(Refusal::Misdirected);
        }
        headers::check_size(request.uri(), request.headers())?;
        // These are our words alone.
        request.headers_mut().remove(IDENTITY_HEADER);
        request.headers_mut().remove(DEADLINE);
        let route = routes::route(request.method(), request.uri());
        match route.target {
            Target::Nowhere => return Err(Refusal::NotFound),
            Target::Local => {}
            Target::Service(service) => recording.route(service, route.kind != Kind::Plain),
        }
        let identities = self.identities.as_ref();
        let recalled = identities.and_then(|identities| identities.recall(&request));
        let subject = recalled.as_ref().and_then(Presented::subject);
        *standing = self.ask_limits(&request, &route, arrival, subject).await?;
        standing.admit(recording)?;
        if let Some(identities) = identities {
            let presented = match recalled {
                Some(presented) => presented,
                // It takes work to say who this is, and only now that is known to be worth it.
                None => {
                    let presented = Box::pin(identities.present(&request)).await;
                    if let Some((limits, subject)) = self.limits.as_ref().zip(presented.subject())
                        && !is_own(&route)
                    {
                        let method = request.method();
                        standing.add(limits.ask_of(method, &route, subject).await);
                        standing.admit(recording)?;
                    }
                    presented
                }
            };
            if let Some(known) = identities.admit(presented, request.method(), &route)? {
                request.extensions_mut().insert(known);
            }
        }
        match route.target {
            Target::Nowhere => Err(Refusal::NotFound),
            Target::Local => Box::pin(self.local(request, route, arrival, recording)).await,
            Target::Service(service) => {
                self.proxy(service, route, request, arrival, recording)
                    .await
            }
        }
    }

    /// The one place where a request is found to be too much: too large, which is refused, or too many, which is told.
    async fn ask_limits(
        &self,
        request: &Request<Incoming>,
        route: &Route,
        arrival: &Arrival,
        subject: Option<Subject<'_>>,
    ) -> Result<Standing, Refusal> {
        let announced = request.headers().get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if route.kind != Kind::Upload
            && announced.is_some_and(|length| length > self.config.body_limit)
        {
            return Err(Refusal::TooLarge);
        }
        let Some(limits) = self.limits.as_ref().filter(|_| !is_own(route)) else {
            return Ok(Standing::default());
        };
        let client = arrival.client(request.headers());
        Ok(limits.ask(request.method(), route, client, subject).await)
    }

    /// Gives the door's word for whom it knows.
    async fn vouch(
        &self,
        parts: &mut http::request::Parts,
        route: &Route,
        arrival: &Arrival,
    ) -> Result<(), Refusal> {
        let known = parts.extensions.remove::<Known>();
        match self.identities.as_ref().zip(known) {
            Some((identities, known)) => {
                let headers = &mut parts.headers;
                let vouched = identities.vouch(&known, &parts.method, route, &arrival.id, headers);
                vouched.await
            }
            None => Ok(()),
        }
    }

    async fn local(
        &self,
        request: Request<Incoming>,
        route: Route,
        arrival: &Arrival,
        recording: &mut Recording,
    ) -> Result<Response<BoxBody>, Refusal> {
        let (mut parts, body) = request.into_parts();
        self.vouch(&mut parts, &route, arrival).await?;
        parts.uri = route.path.into();
        parts
            .headers
            .insert(headers::REQUEST_ID, arrival.id.clone());
        parts.headers.insert(TRACEPARENT, arrival.trace.header());
        let limit = usize::try_from(self.config.body_limit).unwrap_or(usize::MAX);
        let request = Request::from_parts(parts, BoxBody::new(Limited::new(body, limit)));
        let answered = timeout(
            self.config.reply_within,
            self.local.clone().oneshot(request),
        )
        .await;
        let response = match answered {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_) => return Err(Refusal::Timeout),
        };
        let silent = response.headers().get(header::CONTENT_TYPE).is_none();
        if response.status() == StatusCode::NOT_FOUND && silent {
            return Err(Refusal::NotFound);
        }
        if let Some(problem) = response.extensions().get::<Problem>() {
            recording.refused(refusal::of(problem));
        }
        Ok(response)
    }
}

/// Probes and scrapes are no load of a client.
fn is_own(route: &Route) -> bool {
    let path = route.path.path();
    path.starts_with("/health") || path == "/metrics"
}
