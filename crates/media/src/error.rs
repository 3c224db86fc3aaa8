//! What can go wrong, and what the client is told.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use contracts::TaskId;
use http::StatusCode;
use platform::Problem;
use platform::objects::ObjectError;

use crate::task::TaskStatus;

/// A call that was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such task, or not the caller's.
    #[error("task {0} is not there")]
    NoTask(TaskId),
    /// The task has no such result.
    #[error("task {0} has no such result")]
    NoResult(TaskId),
    /// A task names a file that is not there, or not the caller's.
    #[error("input {index} names no upload that is stored")]
    NoInput {
        /// Its place in `inputUrls`.
        index: usize,
    },
    /// The task is over.
    #[error("the task is {status} already")]
    Final {
        /// What became of it.
        status: TaskStatus,
    },
    /// The user has too many tasks waiting.
    #[error("{waiting} of your tasks are waiting, and {most} may: try again when some are done")]
    UserQueueFull {
        /// How many wait.
        waiting: i64,
        /// How many may.
        most: i64,
    },
    /// Too many tasks are waiting.
    #[error("{most} tasks are waiting, and no more are taken for now")]
    QueueFull {
        /// How many may wait.
        most: i64,
    },
    /// The user has too many uploads.
    #[error("{most} of your uploads are kept, and no more may be: they are deleted after 7 days")]
    TooManyUploads {
        /// How many are kept for a user.
        most: i64,
    },
    /// No such provider.
    #[error("there is no such provider")]
    NoProvider,
    /// No such feature.
    #[error("there is no such feature")]
    NoFeature,
    /// The address takes no file: it never did, or no longer does.
    #[error("the upload address is not known, or its 30 minutes are over")]
    NoUpload,
    /// The address was used.
    #[error("the upload address was used already")]
    UploadUsed,
    /// The address was tried too often.
    #[error("the upload was tried too often: ask for a new address")]
    TooManyTries,
    /// The file is larger than was said.
    #[error("the file is larger than the {announced} bytes announced")]
    TooLarge {
        /// The bound, in bytes.
        announced: usize,
    },
    /// The file is smaller than was said.
    #[error("{came} bytes came, and {announced} were announced")]
    TooSmall {
        /// What came.
        came: usize,
        /// What was said.
        announced: usize,
    },
    /// The first bytes are those of another kind of file.
    #[error("the file does not begin as {announced} does")]
    WrongKind {
        /// What was said.
        announced: &'static str,
    },
    /// The upload broke off.
    #[error("the file did not come whole: {reason}")]
    BrokenUpload {
        /// What the reader met.
        reason: String,
    },
    /// A report that no provider signed, or too long ago.
    #[error("the report is not signed, or not by whom was asked, or not within 5 minutes")]
    BadSignature,
    /// As many uploads as may be are coming in through this replica.
    #[error("too many uploads at once; try again")]
    Busy,
    /// The object store failed.
    #[error("the object store failed")]
    Objects(#[from] ObjectError),
    /// The database failed.
    #[error("the database refused")]
    Database(#[from] sqlx::Error),
    /// Refused before the service was asked.
    #[error("refused")]
    Refused(Problem),
}

/// The outcome of a call.
pub type Result<T> = std::result::Result<T, Error>;

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let text = self.to_string();
        let too_many = |seconds| {
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "RATE_LIMITED", text.clone())
                .retry_after(Duration::from_secs(seconds))
        };
        let problem = match &self {
            Self::NoTask(_) => Problem::not_found("task"),
            Self::NoResult(_) => Problem::not_found("result"),
            Self::NoInput { index } => Problem::not_found("upload").with_field(
                format!("inputUrls[{index}]"),
                "names no upload of yours that is stored",
            ),
            Self::Final { .. } | Self::UploadUsed => Problem::conflict("CONFLICT", text),
            Self::UserQueueFull { .. } => too_many(5),
            Self::TooManyUploads { .. } => too_many(3600),
            Self::TooManyTries => too_many(1),
            Self::QueueFull { .. } => Problem::not_ready(text).retry_after(Duration::from_secs(10)),
            Self::NoProvider => Problem::not_found("provider"),
            Self::NoFeature => Problem::not_found("feature"),
            Self::NoUpload => Problem::not_found("upload"),
            Self::TooLarge { .. } => Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE", text),
            Self::TooSmall { .. } | Self::BrokenUpload { .. } => {
                Problem::invalid_field("body", text)
            }
            Self::WrongKind { .. } => {
                Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "BAD_TYPE", text)
            }
            Self::BadSignature => Problem::new(StatusCode::UNAUTHORIZED, "BAD_SIGNATURE", text),
            Self::Busy => Problem::not_ready(text),
            Self::Objects(_) => Problem::not_ready("the object store does not answer; try again"),
            Self::Database(error) => Problem::from_sqlx(error),
            Self::Refused(problem) => problem.clone(),
        };
        problem.respond(&self)
    }
}
