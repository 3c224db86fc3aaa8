//! A request on its way through: made ready for an instance, exchanged, and its reply made ready for the client.

use std::sync::Arc;
use std::time::Duration;

use contracts::Service;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use http_body::Body as _;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use platform::http::ADDRESSEE;
use tokio::time::{Instant, timeout};

use crate::front::body::{BoxBody, Outgoing, Progress, Reply, Stage};
use crate::front::connections::Held;
use crate::front::exchange::{Exchange, Patience};
use crate::front::headers::{self, Arrival};
use crate::front::instance::Instance;
use crate::front::recording::Recording;
use crate::front::refusal::Refusal;
use crate::front::routes::{Kind, Route};
use crate::front::sticky::{self, EngineQuery};
use crate::front::{Inner, metrics};

/// A body up to this size is held back so that it can be sent again.
const HELD_BODY: u64 = 64 * 1024;

impl Inner {
    /// Passes a request on to an instance of a service, and its reply back.
    pub async fn proxy(
        &self,
        service: Service,
        route: Route,
        mut request: Request<Incoming>,
        arrival: &Arrival,
        recording: &mut Recording,
    ) -> Result<Response<BoxBody>, Refusal> {
        let websocket =
            request.version() == Version::HTTP_11 && headers::wants_websocket(request.headers());
        let client = websocket.then(|| hyper::upgrade::on(&mut request));
        let done = self
            .pass(service, &route, request, websocket, arrival, recording)
            .await;
        let result = match &done {
            Ok((response, _)) => class(response.status()),
            Err(refusal) => label(*refusal),
        };
        metrics::upstream_request(service, result);

        let (mut response, held) = done?;
        headers::strip(response.headers_mut());
        let opens =
            matches!(&route.kind, Kind::Engine(query) if query.polling && query.sid.is_none());
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let client = client.ok_or(Refusal::Broken)?;
            let upstream = hyper::upgrade::on(&mut response);
            self.join(client, upstream, held);
            let mut response = response.map(|_| BoxBody::empty());
            headers::upgrade(response.headers_mut());
            Ok(response)
        } else if opens && response.status() == StatusCode::OK {
            Box::pin(self.open_session(response, held)).await
        } else {
            Ok(self.stream(response, held))
        }
    }

    async fn pass(
        &self,
        service: Service,
        route: &Route,
        request: Request<Incoming>,
        websocket: bool,
        arrival: &Arrival,
        recording: &mut Recording,
    ) -> Result<(Response<Incoming>, Held), Refusal> {
        let group = self.upstreams.group(service);
        let (mut parts, body) = request.into_parts();
        let session = match &route.kind {
            Kind::Engine(query) => query.sid.as_deref(),
            Kind::Plain | Kind::Upload | Kind::Command | Kind::Tunnel => None,
        };
        let home = match session {
            Some(sid) => Some(
                Box::pin(self.sessions.find(sid, group))
                    .await
                    .ok_or(Refusal::UnknownSession)?,
            ),
            None => None,
        };
        if home.is_some() {
            recording.sticky();
        }
        let open = |wait| Refusal::Open { wait };
        group
            .breaker
            .pass(std::time::Instant::now())
            .map_err(open)?;

        // Each holds a connection on both sides for as long as its client likes.
        let _upload = match route.kind {
            Kind::Upload => Some(
                self.uploads
                    .enter(arrival.client(&parts.headers))
                    .ok_or(Refusal::TooManyUploads)?,
            ),
            _ => None,
        };
        let own = self.config.deadlines.of(route.path.path());
        let reply_within = own.unwrap_or(self.config.reply_within);
        let (body, progress) = self.take_body(body, &route.kind, reply_within).await?;
        // Uploads, commands and polls take their time by nature, and who sends a large body takes his own: with a place each
        // they would keep out everyone else.
        let waits = !matches!(route.kind, Kind::Upload | Kind::Command) && session.is_none();
        let _place = match waits && progress.stage() == Stage::Sent {
            true => Some(
                self.upstreams
                    .enter(group, reply_within)
                    .await
                    .map_err(|_| Refusal::Overloaded)?,
            ),
            false => None,
        };
        // From here on all time is the service's.
        let now = Instant::now();
        let trial = (route.kind != Kind::Upload).then(|| group.breaker.admit(now.into()));
        let _trial = trial.transpose().map_err(open)?;
        group.budget.earn();
        let patience = match &route.kind {
            Kind::Upload => Patience::WhileMoving(self.config.stream_idle),
            Kind::Engine(EngineQuery {
                polling: true,
                sid: Some(_),
                ..
            }) => Patience::Until(now + self.config.poll_within),
            Kind::Command => Patience::Until(now + self.config.command_within),
            Kind::Plain | Kind::Engine(_) | Kind::Tunnel => Patience::Until(now + reply_within),
        };

        let host = host(&parts.uri, &parts.headers);
        headers::forward(&mut parts.headers, arrival, host);
        // What `Connection` names is not passed on, and makes nothing repeatable.
        let keyed = &self.config.keyed;
        let repeatable = home.is_none()
            && route.kind != Kind::Tunnel
            && keyed.may_repeat(&parts.method, route.path.path(), &parts.headers);
        self.vouch(&mut parts, route, arrival).await?;
        let named = HeaderValue::from_static(service.name());
        parts.headers.insert(ADDRESSEE, named);
        if websocket {
            headers::upgrade(&mut parts.headers);
        }
        if matches!(route.kind, Kind::Engine(_)) {
            // The first packet must be readable here.
            parts.headers.remove(header::ACCEPT_ENCODING);
        }
        let mut request = Request::new(body);
        *request.method_mut() = parts.method;
        *request.uri_mut() = Uri::from(route.path.clone());
        *request.headers_mut() = parts.headers;

        let load = if websocket || session.is_some() {
            Instance::occupancy
        } else {
            Instance::outstanding
        };
        let timed = route.kind == Kind::Plain && !websocket && progress.stage() == Stage::Sent;
        let exchange = Exchange {
            group,
            patience,
            progress: &progress,
            repeatable,
            home,
            load,
            timed,
            try_within: self.config.try_within,
        };
        let done = exchange.run(request, recording).await;
        recording.received(progress.passed());
        if let (Err(Refusal::UnknownSession), Some(sid)) = (&done, session) {
            self.sessions.forget(sid);
        }
        done
    }

    /// The body as it will be sent: held back where it is small, since it may have to be sent again.
    async fn take_body(
        &self,
        body: Incoming,
        kind: &Kind,
        within: Duration,
    ) -> Result<(Outgoing, Arc<Progress>), Refusal> {
        if body.is_end_stream() {
            return Ok((Outgoing::Empty, Arc::new(Progress::complete(0))));
        }
        let most = body.size_hint().upper();
        // An upload may take its time, however small it is.
        if *kind != Kind::Upload && most.is_some_and(|size| size <= HELD_BODY) {
            let read = timeout(within, body.collect()).await;
            let bytes = read
                .ok()
                .and_then(Result::ok)
                .ok_or(Refusal::BodyTimeout)?
                .to_bytes();
            let progress = Progress::complete(bytes.len() as u64);
            return Ok((Outgoing::Held(Some(bytes)), Arc::new(progress)));
        }
        let limit = (*kind != Kind::Upload).then_some(self.config.body_limit);
        let progress = Arc::new(Progress::begun());
        Ok((Outgoing::streamed(body, limit, progress.clone()), progress))
    }

    /// Reads the packet that opens a Socket.IO session, so that every gateway knows the session before its client does.
    async fn open_session(
        &self,
        response: Response<Incoming>,
        held: Held,
    ) -> Result<Response<BoxBody>, Refusal> {
        let (parts, body) = response.into_parts();
        let read = Limited::new(body, sticky::OPEN_PACKET).collect();
        let read = timeout(self.config.reply_within, read).await;
        let bytes = read
            .ok()
            .and_then(Result::ok)
            .ok_or(Refusal::Broken)?
            .to_bytes();
        if let Some(sid) = sticky::opened(&bytes) {
            self.sessions.remember(&sid, held.instance()).await;
        }
        held.give_back();
        Ok(Response::from_parts(parts, BoxBody::from(bytes)))
    }

    fn stream(&self, response: Response<Incoming>, held: Held) -> Response<BoxBody> {
        let (parts, body) = response.into_parts();
        let body = match body.is_end_stream() {
            true => {
                held.give_back();
                BoxBody::empty()
            }
            false => {
                let reply = Reply::new(body, held, self.config.stream_idle);
                BoxBody::new(match is_event_stream(&parts.headers) {
                    true => reply.until(self.leaving()),
                    false => reply,
                })
            }
        };
        Response::from_parts(parts, body)
    }
}

/// Events come for as long as both sides are there, and whoever reads them knows to come back.
fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

/// Whom the client means: HTTP/2, and whoever takes us for a proxy, says it in the request line.
fn host(uri: &Uri, headers: &HeaderMap) -> Option<HeaderValue> {
    let named = uri
        .authority()
        .and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    named.or_else(|| headers.get(header::HOST).cloned())
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}

fn label(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Down => "down",
        Refusal::Open { .. } => "open",
        Refusal::Overloaded | Refusal::TooManyUploads => "overloaded",
        Refusal::Broken => "broken",
        Refusal::Timeout => "timeout",
        Refusal::UnknownSession => "unknown_session",
        Refusal::NotFound
        | Refusal::TwoHosts
        | Refusal::Misdirected
        | Refusal::TargetTooLong
        | Refusal::HeadTooLarge
        | Refusal::TooLarge
        | Refusal::BodyTimeout
        | Refusal::NotSignedIn(_)
        | Refusal::TooFast { .. } => "refused",
    }
}
