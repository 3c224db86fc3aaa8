//! A record in the making: begun with the head of a request, and told however the request ends.

use std::borrow::Cow;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use contracts::{Service, Timestamp};
use coordination::Decision;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};

use crate::front::BoxBody;
use crate::front::access::{Access, AccessLog};
use crate::front::decisions::Decisions;
use crate::front::headers::Arrival;
use crate::front::instance::Instance;
use crate::front::metrics;
use crate::front::problem::Heard;
use crate::front::record::{End, Limited, Outcome, Record, Refused, Try};

/// How much of a path is kept.
const PATH: usize = 512;
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Begins records, and tells the finished ones. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Recorder(Arc<(Access, Decisions)>);

/// A record in the making. Where it is dropped before the end, the client has left.
#[derive(Debug)]
pub struct Recording {
    record: Option<Box<Record>>,
    recorder: Recorder,
    began: Instant,
    waited: Duration,
    trying: Option<Instant>,
    patient: bool,
    drawn: bool,
}

/// The body of an answer, by whose end the record ends.
#[derive(Debug)]
pub struct Recorded {
    body: BoxBody,
    recording: Option<Recording>,
    left: Option<u64>,
    /// The refusal of a service, as far as it has come.
    heard: Option<Heard>,
}

impl Recorder {
    /// Tells records to the access log and the decision log.
    pub fn new(access: AccessLog, decisions: Decisions) -> Self {
        Self(Arc::new((Access::new(access), decisions)))
    }

    /// Forgets records that are too old, and says how many lines the access log had no room for.
    pub fn forget_old(&self) {
        self.0.0.tell_left_out();
        self.0.1.forget_old();
    }

    /// Begins the record of a request.
    pub fn begin<B>(&self, request: &Request<B>, arrival: &Arrival, now: Timestamp) -> Recording {
        let path = platform::http::loggable(request.uri().path());
        let record = Record {
            request_id: String::from_utf8_lossy(arrival.id.as_bytes()).into(),
            trace_id: arrival.trace.trace,
            received_at: now,
            client: arrival
                .client(request.headers())
                .map(|client: IpAddr| client.to_canonical()),
            protocol: Cow::Borrowed(protocol(request.version())),
            method: Cow::Borrowed(known(request.method())),
            path: path[..path.floor_char_boundary(PATH)].into(),
            service: None,
            sticky: false,
            limit: None,
            tries: Vec::new(),
            refusal: None,
            problem: None,
            status: None,
            end: End::ClientLeft,
            bytes_received: 0,
            bytes_sent: 0,
            head_ms: 0.0,
            upstream_ms: 0.0,
            total_ms: 0.0,
        };
        Recording {
            record: Some(Box::new(record)),
            recorder: self.clone(),
            began: Instant::now(),
            waited: Duration::ZERO,
            trying: None,
            patient: false,
            drawn: self.0.0.log().draw(),
        }
    }
}

impl Recording {
    /// Notes the service that the request is for, and whether it may take its time by its nature.
    pub fn route(&mut self, service: Service, patient: bool) {
        self.patient = patient;
        self.note(|record| record.service = Some(service));
    }

    /// Notes that only the instance that has the session can answer.
    pub fn sticky(&mut self) {
        self.note(|record| record.sticky = true);
    }

    /// Notes what the rate limit said.
    pub fn limit(&mut self, decision: &Decision) {
        let limited = Limited {
            tier: Cow::Borrowed(decision.tier),
            allowed: decision.allowed,
            remaining: decision.remaining,
            limit: decision.limit,
            retry_after_ms: u64::try_from(decision.retry_after.as_millis()).unwrap_or(u64::MAX),
        };
        self.note(|record| record.limit = Some(limited));
    }

    /// Notes how many bytes of the request's body were read.
    pub fn received(&mut self, bytes: u64) {
        self.note(|record| record.bytes_received = bytes);
    }

    /// The request is sent to an instance. Until more is known, it will not have answered when the client left.
    pub fn try_begins(&mut self, instance: &Instance) {
        let began_ms = milliseconds(self.began.elapsed());
        self.trying = Some(Instant::now());
        self.note(|record| {
            record.tries.push(Try {
                instance: instance.name.clone(),
                address: instance.address.clone(),
                outcome: Outcome::Abandoned,
                status: None,
                error: None,
                began_ms,
                took_ms: 0.0,
            });
        });
    }

    /// What came of the last try.
    pub fn try_ended(
        &mut self,
        outcome: Outcome,
        status: Option<StatusCode>,
        error: Option<String>,
    ) {
        let took = self
            .trying
            .take()
            .map_or(Duration::ZERO, |since| since.elapsed());
        self.waited += took;
        self.note(|record| {
            if let Some(last) = record.tries.last_mut() {
                last.outcome = outcome;
                last.status = status.map(|status| status.as_u16());
                last.error = error;
                last.took_ms = milliseconds(took);
            }
        });
    }

    /// Notes why the gateway itself says no.
    pub fn refused(&mut self, refused: Refused) {
        metrics::refused(&refused.reason);
        self.note(|record| record.refusal = Some(refused));
    }

    /// The head of the answer is there. It is told in `Server-Timing` how long that took: `gateway` is our own part,
    /// `upstream` what instances were waited for. The rest of the record comes with the body.
    pub fn answer(mut self, response: Response<BoxBody>) -> Response<Recorded> {
        let (mut parts, body) = response.into_parts();
        let head = self.began.elapsed();
        let (own, upstream) = (head.saturating_sub(self.waited), self.waited);
        let is_proxied = self
            .record
            .as_ref()
            .is_some_and(|record| !record.tries.is_empty());
        parts.headers.append(
            SERVER_TIMING,
            server_timing(own, is_proxied.then_some(upstream)),
        );
        self.note(|record| {
            record.status = Some(parts.status.as_u16());
            record.head_ms = milliseconds(head);
            record.upstream_ms = milliseconds(upstream);
        });
        let mut body = Recorded {
            heard: is_proxied.then(|| Heard::of(&parts.headers)).flatten(),
            left: body.size_hint().exact(),
            recording: Some(self),
            body,
        };
        if body.body.is_end_stream() {
            body.end(End::Whole);
        }
        Response::from_parts(parts, body)
    }

    fn note(&mut self, change: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut self.record {
            change(record);
        }
    }

    fn end(mut self, end: End) {
        self.note(|record| record.end = end);
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if self.trying.is_some() {
            self.try_ended(Outcome::Abandoned, None, None);
        }
        let Some(mut record) = self.record.take() else {
            return;
        };
        let total = self.began.elapsed();
        record.total_ms = milliseconds(total);
        if record.status.is_none() {
            record.head_ms = record.total_ms;
            record.upstream_ms = milliseconds(self.waited);
        }
        let (access, decisions) = &*self.recorder.0;
        access.tell(&record, self.patient, self.drawn);
        let notable = access.log().is_notable(&record, self.patient);
        decisions.keep(record, notable);
    }
}

impl Recorded {
    fn end(&mut self, end: End) {
        if let Some(mut recording) = self.recording.take() {
            if let Some(told) = self.heard.take().and_then(|heard| heard.told()) {
                recording.note(|record| record.problem = Some(told));
            }
            recording.end(end);
        }
    }

    /// Counts a frame. A body whose length was announced is not asked again after its last byte.
    fn passed(&mut self, data: Option<&Bytes>) {
        let size = data.map_or(0, Bytes::len) as u64;
        if let (Some(heard), Some(data)) = (&mut self.heard, data) {
            heard.hear(data);
        }
        self.left = self.left.map(|left| left.saturating_sub(size));
        if let Some(recording) = &mut self.recording {
            recording.note(|record| record.bytes_sent += size);
        }
        if self.left == Some(0) || self.body.is_end_stream() {
            self.end(End::Whole);
        }
    }
}

impl Body for Recorded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => this.passed(frame.data_ref()),
            Some(Err(_)) => this.end(End::BrokeOff),
            None => this.end(End::Whole),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn server_timing(own: Duration, upstream: Option<Duration>) -> HeaderValue {
    use std::fmt::Write as _;
    let mut text = BytesMut::with_capacity(48);
    // The buffer grows where it must: writing to it does not fail.
    let _ = write!(text, "gateway;dur={}", milliseconds(own));
    if let Some(upstream) = upstream {
        let _ = write!(text, ", upstream;dur={}", milliseconds(upstream));
    }
    HeaderValue::from_maybe_shared(text.freeze()).expect("digits are a header value")
}

/// Milliseconds, to the microsecond.
fn milliseconds(span: Duration) -> f64 {
    span.as_micros() as f64 / 1000.0
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_11 => "HTTP/1.1",
        Version::HTTP_2 => "HTTP/2",
        _ => "other",
    }
}

/// A client may call with any word as method.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::TRACE => "TRACE",
        Method::CONNECT => "CONNECT",
        _ => "other",
    }
}
