//! What can go wrong, and what the client is told.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use contracts::AppId;
use http::StatusCode;
use platform::Problem;
use platform::objects::ObjectError;

use crate::app::AppStatus;

/// A call that was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The package is larger than allowed.
    #[error("the package is larger than {limit} bytes")]
    TooLarge {
        /// The bound, in bytes.
        limit: u64,
    },
    /// The file is no Android package.
    #[error("the file is not an Android package: {reason}")]
    NotAPackage {
        /// What is missing.
        reason: String,
    },
    /// The package and version are there already.
    #[error("version {version_code} of {package_name} is there already")]
    Exists {
        /// The package.
        package_name: String,
        /// Its version.
        version_code: i64,
    },
    /// The upload broke off or was malformed.
    #[error("the upload could not be read: {reason}")]
    BrokenUpload {
        /// What the reader met.
        reason: String,
    },
    /// An upload has come to another offset than the client says, maybe by another connection.
    #[error(
        "the upload is not at this offset; ask where it is and go on there (it was at {offset})"
    )]
    OtherOffset {
        /// How far it was.
        offset: i64,
    },
    /// The client speaks another version of the protocol of resumable uploads.
    #[error("the header Tus-Resumable must be 1.0.0")]
    OtherVersion,
    /// The user has begun too many uploads.
    #[error("{0} uploads that are not whole are the most: end or give up one of them")]
    TooManyUploads(i64),
    /// An upload that is whole but no app.
    #[error("the upload is no app: {reason}")]
    RefusedUpload {
        /// Why.
        reason: String,
    },
    /// So many uploads are under way that there is no room for another one.
    #[error("too many uploads at once; try again")]
    Busy,
    /// What was stored could not be read, or another worker has it.
    #[error("what is stored of the upload could not be read")]
    Unreadable,
    /// The app does not stand where the step begins.
    #[error("the app is {}; this is for one that is {}", .status.as_str(), names(.wanted))]
    WrongStatus {
        /// Where it stands.
        status: AppStatus,
        /// Where it would have to stand.
        wanted: &'static [AppStatus],
    },
    /// No such app, or not the caller's.
    #[error("app {0} is not there")]
    NotFound(AppId),
    /// The object store failed.
    #[error("could not use the object store")]
    Objects(#[from] ObjectError),
    /// The database failed.
    #[error("could not use the database")]
    Database(#[from] sqlx::Error),
    /// Refused before the service was asked.
    #[error("refused")]
    Refused(Problem),
}

/// The outcome of a call.
pub type Result<T> = std::result::Result<T, Error>;

fn names(statuses: &[AppStatus]) -> String {
    let names: Vec<&str> = statuses.iter().map(|status| status.as_str()).collect();
    names.join(" or ")
}

impl Error {
    /// What its owner is told of an upload that ended with it.
    pub fn reason(&self) -> String {
        match self {
            Self::Refused(problem) => {
                let fields: Vec<&str> = problem.fields().collect();
                format!("{} {}", fields.join(", "), problem.message())
            }
            error => error.to_string(),
        }
    }

    /// Whether it is the stores' fault and not that of what was asked.
    pub const fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Objects(_) | Self::Database(_) | Self::Unreadable
        )
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let problem = match &self {
            Self::TooLarge { .. } => {
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE", self.to_string())
            }
            Self::NotAPackage { .. } => Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "BAD_TYPE",
                self.to_string(),
            ),
            Self::OtherVersion => Problem::new(
                StatusCode::PRECONDITION_FAILED,
                "BAD_VERSION",
                self.to_string(),
            ),
            Self::TooManyUploads(_) => Problem::new(
                StatusCode::TOO_MANY_REQUESTS,
                "TOO_MANY_UPLOADS",
                self.to_string(),
            ),
            Self::RefusedUpload { .. } => Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "BAD_TYPE",
                self.to_string(),
            ),
            Self::Busy => Problem::not_ready(self.to_string()).retry_after(Duration::from_secs(5)),
            Self::Unreadable => Problem::not_ready(self.to_string()),
            Self::OtherOffset { .. } | Self::Exists { .. } | Self::WrongStatus { .. } => {
                Problem::conflict("CONFLICT", self.to_string())
            }
            Self::BrokenUpload { .. } => Problem::invalid_field("file", self.to_string()),
            Self::NotFound(_) => Problem::not_found("app"),
            Self::Objects(_) => Problem::not_ready("the object store does not answer; try again"),
            Self::Database(error) => Problem::from_sqlx(error),
            Self::Refused(problem) => problem.clone(),
        };
        problem.respond(&self)
    }
}
