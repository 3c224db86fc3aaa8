//! Why the front door says no, and how.

use std::borrow::Cow;
use std::time::Duration;

use axum::response::IntoResponse;
use contracts::Timestamp;
use http::{HeaderValue, Response, StatusCode, header};
use platform::Problem;
use platform::auth::AuthError;

use crate::front::BoxBody;
use crate::front::record::Refused;

/// A refusal of the front door itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing is there for the outside.
    NotFound,
    /// It names more than one host, and the next reader might take another one.
    TwoHosts,
    /// Another gateway means a service that had this address before.
    Misdirected,
    /// The target, path and query, is longer than allowed.
    TargetTooLong,
    /// The fields of the head are larger than allowed, or too many.
    HeadTooLarge,
    /// The body is larger than allowed.
    TooLarge,
    /// The client did not send its body in time, or broke off.
    BodyTimeout,
    /// Who asks is not known, on a route that wants to know.
    NotSignedIn(AuthError),
    /// Too many requests from this address, or of this user.
    TooFast {
        /// When the next may come.
        wait: Duration,
    },
    /// No instance of the service is known, or none accepts a connection.
    Down,
    /// The service failed too often and is left alone.
    Open {
        /// When it is tried again.
        wait: Duration,
    },
    /// Too many requests are under way.
    Overloaded,
    /// Too many uploads are under way.
    TooManyUploads,
    /// The instance broke off, or what it answered is not HTTP.
    Broken,
    /// The instance did not answer in time.
    Timeout,
    /// The Socket.IO session is not known, or its instance is gone: the client opens a new one.
    UnknownSession,
}

impl Refusal {
    /// The status, the code of the contract and the sentence that the client is told.
    const fn words(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::NotFound => (
                StatusCode::NOT_FOUND,
                "NOT_FOUND",
                "there is nothing at this path",
            ),
            Self::TwoHosts => (
                StatusCode::BAD_REQUEST,
                "VALIDATION_FAILED",
                "a request names one host",
            ),
            Self::Misdirected => (
                StatusCode::MISDIRECTED_REQUEST,
                "MISDIRECTED",
                "this is not the service that was meant",
            ),
            Self::TargetTooLong => (
                StatusCode::URI_TOO_LONG,
                "URI_TOO_LONG",
                "the path and the query are longer than allowed",
            ),
            Self::HeadTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "HEADERS_TOO_LARGE",
                "the header fields are larger than allowed, or too many",
            ),
            Self::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "TOO_LARGE",
                "the body is larger than allowed",
            ),
            Self::BodyTimeout => (
                StatusCode::REQUEST_TIMEOUT,
                "BODY_TIMEOUT",
                "the body did not come in time",
            ),
            Self::TooFast { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "RATE_LIMITED",
                "too many requests; try again later",
            ),
            Self::Down => (
                StatusCode::SERVICE_UNAVAILABLE,
                "UPSTREAM_DOWN",
                "the service is not available; try again",
            ),
            Self::Open { .. } => (
                StatusCode::SERVICE_UNAVAILABLE,
                "UPSTREAM_DOWN",
                "the service is recovering; try again",
            ),
            Self::Overloaded => (
                StatusCode::SERVICE_UNAVAILABLE,
                "OVERLOADED",
                "too many requests are under way; try again",
            ),
            Self::TooManyUploads => (
                StatusCode::SERVICE_UNAVAILABLE,
                "OVERLOADED",
                "too many uploads are under way; try again",
            ),
            Self::Broken => (
                StatusCode::BAD_GATEWAY,
                "UPSTREAM_DOWN",
                "the service broke off; the request may have had its effect",
            ),
            Self::Timeout => (
                StatusCode::GATEWAY_TIMEOUT,
                "UPSTREAM_TIMEOUT",
                "the service did not answer in time",
            ),
            Self::NotSignedIn(error) => error.words(),
            Self::UnknownSession => (
                StatusCode::BAD_REQUEST,
                "UNKNOWN_SESSION",
                "the Socket.IO session is not known, or its instance is gone",
            ),
        }
    }

    /// What the record of the request says.
    pub const fn told(self) -> Refused {
        let reason = match self {
            Self::NotFound => "not_found",
            Self::TwoHosts => "two_hosts",
            Self::Misdirected => "misdirected",
            Self::TargetTooLong => "target_too_long",
            Self::HeadTooLarge => "head_too_large",
            Self::TooLarge => "too_large",
            Self::BodyTimeout => "body_timeout",
            Self::NotSignedIn(_) => "not_signed_in",
            Self::TooFast { .. } => "rate_limited",
            Self::Down => "no_instance",
            Self::Open { .. } => "circuit_open",
            Self::Overloaded => "overloaded",
            Self::TooManyUploads => "too_many_uploads",
            Self::Broken => "broke_off",
            Self::Timeout => "late",
            Self::UnknownSession => "unknown_session",
        };
        Refused {
            reason: Cow::Borrowed(reason),
            message: Cow::Borrowed(self.words().2),
        }
    }

    /// The reply.
    pub fn response(
        self,
        now: Timestamp,
        request_id: &HeaderValue,
        path: &str,
    ) -> Response<BoxBody> {
        if self == Self::UnknownSession {
            return unknown_session();
        }
        let (status, code, message) = self.words();
        let problem = Problem::new(status, code, message);
        let problem = match self {
            Self::TooFast { wait } | Self::Open { wait } => problem.retry_after(wait),
            Self::Down | Self::Overloaded => problem.retry_after(Duration::from_secs(1)),
            Self::TooManyUploads => problem.retry_after(Duration::from_secs(5)),
            _ => problem,
        };
        problem.reply(now, request_id.to_str().ok(), Some(path))
    }

    /// Whether the rest of the request is not worth reading.
    pub fn closes(self) -> bool {
        matches!(self, Self::TwoHosts | Self::TooLarge | Self::BodyTimeout)
    }
}

/// What the record says of a refusal by one of the gateway's own routes.
pub fn of(problem: &Problem) -> Refused {
    Refused {
        reason: Cow::Owned(problem.code().to_ascii_lowercase()),
        message: Cow::Owned(problem.message().to_owned()),
    }
}

/// As Engine.IO servers say it, so that its clients open a new session.
fn unknown_session() -> Response<BoxBody> {
    let body = r#"{"code":1,"message":"Session ID unknown"}"#;
    (
        StatusCode::BAD_REQUEST,
        [(header::CONTENT_TYPE, "application/json")],
        body,
    )
        .into_response()
}
