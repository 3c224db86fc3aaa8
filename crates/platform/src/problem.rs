//! Refusals: `application/problem+json` with the members that existing clients read.
//!
//! A [`Problem`] is made where the fault is known; the layer of [`crate::http`] adds request id, time and path, which
//! only it knows, and writes the body.

use std::error::Error;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use contracts::Timestamp;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use tracing::{error, warn};

use crate::http::Json;

/// One field at fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FieldFault {
    /// The path of the field, as in `steps[0].type`.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

/// A refusal on its way to the client.
#[derive(Clone, Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    message: String,
    details: Vec<FieldFault>,
    retry_after: Option<Duration>,
}

/// The body of a refusal: RFC 9457, and the members that existing clients read.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProblemBody {
    /// A URI reference that names the kind of problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// The reason phrase of the status.
    pub title: String,
    /// The status code.
    pub status: u16,
    /// One sentence about this occurrence.
    pub detail: String,
    /// The status code once more.
    pub status_code: u16,
    /// The code by which clients tell problems apart.
    pub error: String,
    /// The sentence once more.
    pub message: String,
    /// The fields at fault.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<FieldFault>,
    /// Names the request in the logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// When it was refused.
    pub timestamp: Timestamp,
    /// The path of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

impl Problem {
    /// A refusal with a status, a code of the contract and one sentence for the client.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            details: Vec::new(),
            retry_after: None,
        }
    }

    /// 400 with every field at fault.
    pub fn validation(details: Vec<FieldFault>) -> Self {
        let message = match details.as_slice() {
            [only] => format!("{}: {}", only.field, only.message),
            faults => format!("{} fields are not valid", faults.len()),
        };
        Self {
            details,
            ..Self::new(StatusCode::BAD_REQUEST, "VALIDATION_FAILED", message)
        }
    }

    /// 400 with one field at fault.
    pub fn invalid_field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::validation(vec![FieldFault {
            field: field.into(),
            message: message.into(),
        }])
    }

    /// 401 without a usable token.
    pub fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", message)
    }

    /// 403 for a caller who may not.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "FORBIDDEN", message)
    }

    /// 404 for what is absent or not the caller's.
    pub fn not_found(what: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NOT_FOUND",
            format!("{what} not found"),
        )
    }

    /// 409 for a state that forbids it.
    pub fn conflict(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, message)
    }

    /// 503 for a store or a system behind us that does not answer.
    pub fn not_ready(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "NOT_READY", message)
            .retry_after(Duration::from_secs(1))
    }

    /// 500: our fault, told without detail.
    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "INTERNAL",
            "something went wrong on our side; the request id names it in our logs",
        )
    }

    /// What a failure of PostgreSQL means to the client: 503 when it is out of reach or out of time, else 500.
    pub fn from_sqlx(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Tls(_) => Self::not_ready("the database does not answer; try again"),
            // What cannot be stored as text or in jsonb, a NUL, is the client's doing.
            sqlx::Error::Database(database)
                if matches!(database.code().as_deref(), Some("22021" | "22P05")) =>
            {
                Self::invalid_field("body", "holds a character that cannot be stored")
            }
            sqlx::Error::Database(database)
                if database.code().is_some_and(|code| {
                    // 08: connection; 53: resources; 57: shutdown, statement time-out; 40: serialisation, deadlock;
                    // 55P03: lock; 25P03: a transaction that stood idle.
                    ["08", "53", "57", "40", "55P03", "25P03"]
                        .iter()
                        .any(|class| code.starts_with(class))
                }) =>
            {
                Self::not_ready("the database is busy or restarting; try again")
            }
            _ => Self::internal(),
        }
    }

    /// Adds a field at fault to a refusal of another status than 400.
    #[must_use]
    pub fn with_field(mut self, field: impl Into<String>, message: impl Into<String>) -> Self {
        self.details.push(FieldFault {
            field: field.into(),
            message: message.into(),
        });
        self
    }

    /// Adds `Retry-After`, rounded up to whole seconds.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The status code.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The code by which clients tell problems apart.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The sentence for the client.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The fields at fault.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.details.iter().map(|fault| fault.field.as_str())
    }

    /// Logs the error with all its causes, once, where it is ours or the stores', and turns into the reply.
    pub fn respond(self, error: &(dyn Error + 'static)) -> Response {
        self.log(error);
        self.into_response()
    }

    fn log(&self, error: &(dyn Error + 'static)) {
        if self.status == StatusCode::INTERNAL_SERVER_ERROR {
            error!(error.code = self.code, "{}", causes(error));
        } else if self.status.is_server_error() {
            warn!(error.code = self.code, "{}", causes(error));
        }
    }

    /// The body, with what only the caller knows about the request.
    pub fn body(
        &self,
        now: Timestamp,
        request_id: Option<&str>,
        path: Option<&str>,
    ) -> ProblemBody {
        ProblemBody {
            kind: format!(
                "urn:cloudphone:problem:{}",
                self.code.to_lowercase().replace('_', "-")
            ),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            detail: self.message.clone(),
            status_code: self.status.as_u16(),
            error: self.code.to_owned(),
            message: self.message.clone(),
            details: self.details.clone(),
            request_id: request_id.map(str::to_owned),
            timestamp: now,
            path: path.map(str::to_owned),
        }
    }

    /// The whole reply, with what only the caller knows about the request.
    pub fn reply(&self, now: Timestamp, request_id: Option<&str>, path: Option<&str>) -> Response {
        let mut response = (self.status, Json(self.body(now, request_id, path))).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, seconds.max(1).into());
        }
        response
    }
}

impl IntoResponse for Problem {
    /// Leaves the body to the layer of [`crate::http`], which finds the problem in the extensions.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        let problem = Self::from_sqlx(&error);
        problem.log(&error);
        problem
    }
}

/// An error and all its causes in one line.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        next = cause.source();
    }
    line
}
