//! What became of one request: the record that the access log and the decision log tell from.

use std::borrow::Cow;
use std::net::IpAddr;

use contracts::{Service, Timestamp};
use platform::http::TraceId;
use serde::{Deserialize, Serialize};

/// One request as the front door saw it. It holds no header, no query and no body but what a refusal says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Names the request: the client's `X-Request-ID`, or one of ours.
    pub request_id: Box<str>,
    /// The W3C trace it belongs to: the client's, or one that began here. The lines of services have it too.
    #[schema(value_type = String)]
    pub trace_id: TraceId,
    /// When its head was here.
    pub received_at: Timestamp,
    /// Who asked: the peer, or whom a trusted proxy names.
    #[schema(value_type = Option<String>)]
    pub client: Option<IpAddr>,
    /// As `HTTP/1.1`.
    #[schema(value_type = String)]
    pub protocol: Cow<'static, str>,
    /// As `GET`; `other` where the method is not one of HTTP's own.
    #[schema(value_type = String)]
    pub method: Cow<'static, str>,
    /// The path as it was asked for, without a ticket that is a secret.
    pub path: Box<str>,
    /// The service it is for; none where the gateway answers by itself.
    pub service: Option<Service>,
    /// Whether only the instance that has the session could answer.
    pub sticky: bool,
    /// What the rate limit said.
    pub limit: Option<Limited>,
    /// The instances it was sent to, one after the other.
    pub tries: Vec<Try>,
    /// Why the gateway itself said no.
    pub refusal: Option<Refused>,
    /// Why the service that answered said no.
    pub problem: Option<Told>,
    /// The status of the answer; none where the client left before it.
    pub status: Option<u16>,
    /// How it ended.
    pub end: End,
    /// Bytes of the request's body that were read.
    pub bytes_received: u64,
    /// Bytes of the answer's body that were passed on.
    pub bytes_sent: u64,
    /// Milliseconds until the head of the answer.
    pub head_ms: f64,
    /// The part of them in which instances were waited for.
    pub upstream_ms: f64,
    /// Milliseconds until the end of the answer's body.
    pub total_ms: f64,
}

/// What a rate limit said to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limited {
    /// The name of the limit.
    #[schema(value_type = String)]
    pub tier: Cow<'static, str>,
    /// Whether the request might pass.
    pub allowed: bool,
    /// How many more might have come right then.
    pub remaining: u32,
    /// How many may come at once.
    pub limit: u32,
    /// Milliseconds until the next might pass.
    pub retry_after_ms: u64,
}

/// Why the gateway itself said no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Refused {
    /// The reason in a word, as `circuit_open`.
    #[schema(value_type = String)]
    pub reason: Cow<'static, str>,
    /// The sentence that the client was told.
    #[schema(value_type = String)]
    pub message: Cow<'static, str>,
}

/// Why a service said no, as its answer has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = ToldProblem)]
pub struct Told {
    /// The code by which clients tell problems apart, as `VALIDATION_FAILED`.
    pub code: Box<str>,
    /// The sentence that the client was told, or its beginning.
    pub message: Box<str>,
    /// The fields at fault, or the first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<Box<str>>,
}

/// One instance that a request was sent to, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Try {
    /// The instance, as `instance-0`.
    #[schema(value_type = String)]
    pub instance: std::sync::Arc<str>,
    /// Its own address.
    #[schema(value_type = String)]
    pub address: std::sync::Arc<str>,
    /// What came of it.
    pub outcome: Outcome,
    /// The status of its answer.
    pub status: Option<u16>,
    /// What went wrong.
    pub error: Option<String>,
    /// Milliseconds after the request came.
    pub began_ms: f64,
    /// Milliseconds until the outcome.
    pub took_ms: f64,
}

/// What came of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The head of an answer.
    Answered,
    /// No connection; nothing was sent.
    Unreached,
    /// Another service has the address now; nothing was done.
    Misdirected,
    /// It took the request and broke off.
    BrokeOff,
    /// It did not answer in time.
    Late,
    /// It had not answered when the client left.
    Abandoned,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The answer was passed on in full.
    Whole,
    /// The answer's body broke off on our side.
    BrokeOff,
    /// The client left before the end.
    ClientLeft,
}

impl Record {
    /// Tries after the first one.
    pub fn retries(&self) -> usize {
        self.tries.len().saturating_sub(1)
    }
}

#[cfg(test)]
impl Record {
    /// A request that was answered.
    pub fn for_tests(id: &str, path: &str) -> Self {
        Self {
            request_id: id.into(),
            trace_id: platform::http::TraceParent::begin().trace,
            received_at: platform::Clock::system().now(),
            client: None,
            protocol: "HTTP/1.1".into(),
            method: "GET".into(),
            path: path.into(),
            service: None,
            sticky: false,
            limit: None,
            tries: Vec::new(),
            refusal: None,
            problem: None,
            status: Some(200),
            end: End::Whole,
            bytes_received: 0,
            bytes_sent: 0,
            head_ms: 0.0,
            upstream_ms: 0.0,
            total_ms: 0.0,
        }
    }
}

impl Outcome {
    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Unreached => "unreached",
            Self::Misdirected => "misdirected",
            Self::BrokeOff => "broke_off",
            Self::Late => "late",
            Self::Abandoned => "abandoned",
        }
    }
}

impl End {
    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::BrokeOff => "broke_off",
            Self::ClientLeft => "client_left",
        }
    }
}
